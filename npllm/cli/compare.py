"""npllm compare: the first step at which two runs differ."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..checkpoint.hub import is_default
from ..errors import UsageError
from ..inspect.compare import OF_LARGEST, TOLERANCES, Difference, compare, first_beyond
from ..inspect.runs import Run, Side, check_same_text, from_file, from_run, only_in
from ..inspect.tokens import visible
from ..inspect.trace import parse_ids
from ..lm import LM
from ..loop import as_ids
from ..storage.file_kind import is_gguf
from ..storage.paths import user_path
from . import options, report

DESCRIPTION = """\
Find the first step at which two runs differ. A is the reference for B.

A and B are trace files (from npllm trace or tools/hf_trace.py) or models (a
folder, a .gguf file, a Hub name). A model runs on the ids of the other side's
trace, on --ids, or on PROMPT. Without A and B, the model of --model runs twice,
as the --a-... and --b-... flags specify. With a single trace file, it is
compared with that model.

Each layer is summarized in one line; the layer of the first step beyond the
tolerance is shown in full, with that step marked >>. The exit code is 0 if all
steps are within the tolerance, and 1 otherwise.
"""
EXAMPLES = """\
examples:
  npllm compare theirs.safetensors ours.safetensors
  npllm compare theirs.safetensors ./model
  npllm compare --b-no-cache "The capital of France is"
  npllm compare --b-dtype bfloat16 --only "*.residual*,logits" "The capital of France is"
  npllm compare ./model ./model-converted --ids 1,2,3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("operands", nargs="*", metavar="A B PROMPT", help="A and B, or PROMPT, or all three")
    parser.add_argument("--ids", metavar="1,2,3", help="token ids instead of PROMPT; needs no tokenizer")
    parser.add_argument("--only", metavar="PATTERN", default="*", help='names to compare: "*.residual*,layers.7.*"')
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="the limit is |a - b| <= T |a| + T/5 max|a| (default: 1e-4, more for rounded weights)",
    )
    parser.add_argument("--all", action="store_true", help="show every step, not just one line per layer")
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object; "first" is the name of the step, or null'
    )
    group = parser.add_argument_group("how to run a side that is a model")
    for side in "ab":
        group.add_argument(f"--{side}-dtype", metavar="NAME", help=f"dtype of {side.upper()}, instead of --dtype")
        group.add_argument(f"--{side}-device", metavar="NAME", help=f"device of {side.upper()}, instead of --device")
        group.add_argument(
            f"--{side}-no-cache",
            action="store_true",
            help="all tokens in one pass (default: all but the last, then one step with the KV cache)",
        )
        group.add_argument(f"--{side}-chunk", type=int, metavar="N", help="N tokens at a time, with the KV cache")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print, and return the exit code."""
    names, prompt = sides_and_prompt(args)
    files = [Path(name) if name is not None and is_trace(name) else None for name in names]
    runs = [run_for(args, side, name, file) for side, name, file in zip("ab", names, files, strict=True)]
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise UsageError(f"--tolerance: expected 0 (equal) or more, got {args.tolerance}")
    if files == [None, None] and runs[0] == runs[1]:
        raise UsageError("A and B are the same run; make them differ, for example with --b-no-cache")
    sides = [None if file is None else from_file(file, args.only) for file in files]
    ids, prompt = ids_or_prompt(args, sides, prompt)

    lm, loaded = None, None
    for i, how in enumerate(runs):
        if sides[i] is None:
            if loaded != (how.model, how.device, how.dtype):
                lm = None  # one model at a time: free the other's weights first
                lm, loaded = load(args, how), (how.model, how.device, how.dtype)
            assert lm is not None
            if lm.config.bidirectional and how.chunk is not None:
                flag = f"--{'ab'[i]}-chunk"
                raise UsageError(
                    f"{flag}: expected none with BERT, where every token sees the later ones; leave it out"
                )
            ids = as_ids(lm, prompt) if ids is None else ids
            if lm.config.bidirectional:  # it has no cache
                runs[i] = how._replace(use_cache=False)
            sides[i] = from_run(lm, runs[i], ids, args.only)
    a, b = sides
    assert a is not None
    assert b is not None
    check_same_text(a, b)
    tolerance = default_tolerance(a, b) if args.tolerance is None else args.tolerance
    rows = compare(a.values, b.values, tolerance, args.only)
    first = first_beyond(rows)
    unmatched = {"A": only_in(a, b, args.only), "B": only_in(b, a, args.only)}
    descriptions = [describe(side, file, how) for side, file, how in zip((a, b), files, runs, strict=True)]
    if args.json:
        result = as_json(rows, first, tolerance, unmatched, dict(zip("ab", descriptions, strict=True)), a.ids or b.ids)
        report.write(json.dumps(result, allow_nan=False, ensure_ascii=not report.writes_all()) + "\n")
    else:
        report.write_lines(lines(rows, first, tolerance, unmatched, descriptions, args.all))
    return 0 if first is None else 1


# The two sides


def sides_and_prompt(args: argparse.Namespace) -> tuple[list[str | None], str | None]:
    """The names of A and B (None if not given), and the PROMPT."""
    match args.operands:
        case []:
            return [None, None], None
        case [name] if name.endswith(".safetensors"):
            return [name, None], None
        case [prompt]:
            return [None, None], prompt
        case [a, b]:
            return [a, b], None
        case [a, b, prompt]:
            return [a, b], prompt
    raise UsageError(
        f"expected A and B, PROMPT, or all three, got {len(args.operands)} arguments: put quotes around PROMPT"
    )


def is_trace(name: str) -> bool:
    """Whether a name is a trace file, which may have any suffix, rather than a model."""
    path = user_path(name, name)
    return name.endswith(".safetensors") or (path.is_file() and path.suffix != ".gguf" and not is_gguf(path))


def run_for(args: argparse.Namespace, side: str, name: str | None, file: Path | None) -> Run:
    """How a side runs, from its flags; a trace file takes none."""
    given = {flag: getattr(args, f"{side}_{flag}") for flag in ("dtype", "device", "no_cache", "chunk")}
    flags = [f"--{side}-{flag.replace('_', '-')}" for flag, value in given.items() if value not in (None, False)]
    if file is not None and flags:
        raise UsageError(f"{flags[0]}: {side.upper()} is {file}, a trace, for which nothing is computed")
    if given["chunk"] is not None and (given["chunk"] < 1 or given["no_cache"]):
        raise UsageError(f"--{side}-chunk: expected 1 or more, and not together with --{side}-no-cache")
    return Run(
        args.model if name is None else None if is_default(name) else name,
        given["device"] or args.device,
        given["dtype"] or args.dtype,
        not given["no_cache"],
        given["chunk"],
    )


def ids_or_prompt(
    args: argparse.Namespace, sides: Sequence[Side | None], prompt: str | None
) -> tuple[list[int] | None, str]:
    """The ids for both sides; or None, and the prompt that the first model's tokenizer encodes."""
    traces = [side for side in sides if side is not None]
    ids = next((side.ids for side in traces if side.ids is not None), None)
    if (ids is not None or len(traces) == 2) and not (args.ids is None and prompt is None):
        raise UsageError("PROMPT, --ids: expected neither: a trace has the ids of its text")
    if args.ids is not None and prompt is not None:
        raise UsageError("PROMPT and --ids: expected only one of them, got both")
    if args.ids is not None:
        ids = parse_ids(args.ids, "--ids")
    if ids is not None or len(traces) == 2:
        return ids, ""
    return None, options.read_prompt(prompt)


def load(args: argparse.Namespace, how: Run) -> LM:
    """The model of a side."""
    return options.load_model(argparse.Namespace(**{**vars(args), **how._asdict()}))


def default_tolerance(a: Side, b: Side) -> float:
    """The tolerance for the side with the more coarsely rounded weights."""
    unknown = [dtype for dtype in (a.rounded_to, b.rounded_to) if dtype not in TOLERANCES]
    if unknown:
        raise UsageError(
            f"--tolerance: expected a value, because {visible(unknown[0])} has no default; npllm evaluate --against"
            " measures the effect of rounding"
        )
    return max(TOLERANCES[a.rounded_to], TOLERANCES[b.rounded_to])


# The output


def describe(side: Side, file: Path | None, how: Run) -> dict[str, str]:
    """A side's origin, and how its values were computed."""
    known: dict[str, str] = {}
    for key in ("model", "dtype", "device", "made_by"):
        if key in side.metadata:
            known[key] = visible(side.metadata[key])
    if file is not None:
        return {"file": str(file), **known}
    passes = "in one pass" if not how.use_cache else "all but the last token, then one step with the cache"
    return known | {"passes": passes if how.chunk is None else f"{how.chunk} tokens at a time, with the cache"}


def as_json(
    rows: Sequence[Difference],
    first: Difference | None,
    tolerance: float,
    unmatched: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, Mapping[str, str]],
    ids: Sequence[int] | None,
) -> dict[str, Any]:
    """The result for programs. JSON has no NaN and no infinity, so they become null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "first": None if first is None else first.name,
        "tolerance": {"relative": tolerance, "of_largest": OF_LARGEST * tolerance},
        **descriptions,
        "ids": ids,
        "only_in_a": unmatched["A"],
        "only_in_b": unmatched["B"],
        "steps": [
            {
                "name": row.name,
                "shape": row.shape,
                "max_abs_error": number(row.max_abs),
                "max_rel_error": number(row.max_rel),
                "cosine": row.cosine,
                "beyond": row.beyond,
                "first_beyond": row.first,
                "not_finite_a": row.not_finite[0],
                "not_finite_b": row.not_finite[1],
            }
            for row in rows
        ],
    }


def lines(
    rows: Sequence[Difference],
    first: Difference | None,
    tolerance: float,
    unmatched: Mapping[str, Sequence[str]],
    descriptions: Sequence[Mapping[str, str]],
    every_step: bool,
) -> list[str]:
    """The table, with the two sides above it and the conclusion below."""
    cells: list[tuple[str, ...]] = [("", "step", "shape", "max abs", "max rel", "cosine", "first beyond")]
    for layer, group in groupby(rows, lambda row: layer_of(row.name)):
        of_layer = list(group)
        if every_step or len(of_layer) == 1 or first in of_layer:
            cells += [row_cells(row, first) for row in of_layer]
        else:
            cells.append(summary_cells(layer, of_layer))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    table = [
        f"{mark:2} {step:{widths[1]}}  {shape:{widths[2]}}  {absolute:>{widths[3]}}  {relative:>{widths[4]}}"
        f"  {cosine:>{widths[5]}}  {beyond}".rstrip()
        for mark, step, shape, absolute, relative, cosine, beyond in cells
    ]
    labels = {"dtype": "dtype ", "device": "on ", "made_by": "by "}
    headings = [
        f"{side}: {', '.join(labels.get(key, '') + text for key, text in parts.items())}"
        for side, parts in zip("AB", descriptions, strict=True)
    ]
    missing = [f"only in {side}: {', '.join(names)}" for side, names in unmatched.items() if names]
    limit = (
        f"tolerance: |a - b| <= {tolerance:g} |a| + {OF_LARGEST * tolerance:g} max|a|; max rel is relative to max|a|"
    )
    if first is None:
        return [*headings, limit, *table, *missing, f"All {len(rows)} steps are within the tolerance."]
    size = math.prod(first.shape)
    return [
        *headings,
        limit,
        *table,
        *missing,
        f">> {first.name} is the first step beyond the tolerance, in {first.beyond:,} of {size:,} elements,",
        f"   the first of them at {place(first)}: {first.first_a:.6g} in A, {first.first_b:.6g} in B",
    ]


def layer_of(name: str) -> str:
    """The block of a step; outside of the blocks, the step itself."""
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name


def row_cells(row: Difference, first: Difference | None) -> tuple[str, ...]:
    """The row of a step."""
    mark = ">>" if row is first else "x" if row.beyond else ""
    notes = ["-" if row.first is None else str(list(row.first))]
    notes += [f"{count} NaN or inf in {side}" for side, count in zip("AB", row.not_finite, strict=True) if count]
    shape = str(list(row.shape))
    return mark, row.name, shape, short(row.max_abs), short(row.max_rel), f"{row.cosine:.6f}", ", ".join(notes)


def summary_cells(layer: str, rows: Sequence[Difference]) -> tuple[str, ...]:
    """The row of a layer: the worst of its steps."""
    beyond = next((row for row in rows if row.beyond), None)
    count = sum(1 for row in rows if row.beyond)
    bad = [sum(row.not_finite[side] for row in rows) for side in (0, 1)]
    notes = ["-" if beyond is None else f"{beyond.name.removeprefix(layer + '.')}, {count} step{'s' * (count > 1)}"]
    notes += [f"{number} NaN or inf in {side}" for side, number in zip("AB", bad, strict=True) if number]
    worst = short(max(row.max_abs for row in rows)), short(max(row.max_rel for row in rows))
    cosine = min(row.cosine for row in rows)
    return "x" if count else "", layer, f"{len(rows)} steps", *worst, f"{cosine:.6f}", ", ".join(notes)


def short(error: float) -> str:
    """An error with two significant digits."""
    return f"{error:.2g}"


def place(row: Difference) -> str:
    """The position of the first element beyond the tolerance, as text."""
    assert row.first is not None
    key = row.name.endswith((".scores", ".weights", ".visible"))
    axes = ["head", "token", "key" if key else "element"][-len(row.first) :]
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, row.first, strict=False))
