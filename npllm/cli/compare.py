"""npllm compare: the first step at which two runs part."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..inspect.compare import OF_LARGEST, TOLERANCES, Difference, compare, first_beyond
from ..inspect.runs import Run, Side, check_same_text, from_file, from_run, only_in
from ..inspect.tokens import visible
from ..inspect.trace import parse_ids
from ..lm import LM
from ..loop import as_ids
from . import options, report

DESCRIPTION = """\
Find the first step at which two runs part: B is measured by A.

A and B are trace files (of npllm trace or tools/hf_trace.py), or models (a
folder, a .gguf file, a Hub name), which run on the ids of the other side's
trace, on --ids, or on PROMPT. Without A and B, the model of --model runs in two
ways, which the flags --a-... and --b-... tell apart. Only a trace file: it is
compared with that model.

One line sums up each layer; the layer of the first step beyond the tolerance is
shown in full, and that step is marked with >>. The exit code is 0 if all steps
are within it, and 1 if not.
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
    """Say what the command takes."""
    parser.add_argument("words", nargs="*", metavar="A B PROMPT", help="A and B, or PROMPT, or all three")
    parser.add_argument("--ids", metavar="1,2,3", help="token ids in place of PROMPT; they need no tokenizer")
    parser.add_argument("--only", metavar="PATTERN", default="*", help='names to compare: "*.residual*,layers.7.*"')
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="|a - b| may be T |a| + T/5 max|a| (default: 1e-4, and more where weights are rounded)",
    )
    parser.add_argument("--all", action="store_true", help="show every step, and not only a line for each layer")
    parser.add_argument("--json", action="store_true", help='print an object; its "first" names the step, or is null')
    group = parser.add_argument_group("how a side that is a model runs")
    for side in "ab":
        group.add_argument(f"--{side}-dtype", metavar="NAME", help=f"of {side.upper()}, in place of --dtype")
        group.add_argument(f"--{side}-device", metavar="NAME", help=f"of {side.upper()}, in place of --device")
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
    runs = [run_of(args, side, name, file) for side, name, file in zip("ab", names, files, strict=True)]
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise UsageError(f"--tolerance: expected 0 (equal) or more, got {args.tolerance}")
    if files == [None, None] and runs[0] == runs[1]:
        raise UsageError("A and B are the same run: say how they differ, such as with --b-no-cache")
    sides = [None if file is None else from_file(file, args.only) for file in files]
    ids, prompt = ids_or_prompt(args, sides, prompt)

    lm, loaded = None, None
    for i, how in enumerate(runs):
        if sides[i] is None:
            if loaded != (how.model, how.device, how.dtype):
                lm = None  # one model at a time: the other's weights go first
                lm, loaded = load(args, how), (how.model, how.device, how.dtype)
            assert lm is not None
            ids = as_ids(lm, prompt) if ids is None else ids
            sides[i] = from_run(lm, how, ids, args.only)
    a, b = sides
    assert a is not None
    assert b is not None
    check_same_text(a, b)
    tolerance = default_tolerance(a, b) if args.tolerance is None else args.tolerance
    rows = compare(a.values, b.values, tolerance, args.only)
    first = first_beyond(rows)
    lost = {"A": only_in(a, b, args.only), "B": only_in(b, a, args.only)}
    whats = [describe(side, file, how) for side, file, how in zip((a, b), files, runs, strict=True)]
    if args.json:
        result = as_json(rows, first, tolerance, lost, dict(zip("ab", whats, strict=True)), a.ids or b.ids)
        report.write(json.dumps(result, allow_nan=False, ensure_ascii=not report.writes_all()) + "\n")
    else:
        report.write("".join(f"{line}\n" for line in lines(rows, first, tolerance, lost, whats, args.all)))
    return 0 if first is None else 1


# What is compared


def sides_and_prompt(args: argparse.Namespace) -> tuple[list[str | None], str | None]:
    """The names of A and B, None where none is given, and the PROMPT."""
    for word in args.words:
        options.check_utf8("A, B, PROMPT", word)
    match args.words:
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
    raise UsageError(f"expected A and B, PROMPT, or all three, got {len(args.words)} words: put quotes around PROMPT")


def is_trace(name: str) -> bool:
    """Whether a name is that of a trace file, which may end as it likes, and not of a model."""
    return name.endswith(".safetensors") or (Path(name).is_file() and not name.endswith(".gguf"))


def run_of(args: argparse.Namespace, side: str, name: str | None, file: Path | None) -> Run:
    """How a side runs, as its flags say; a file takes none."""
    given = {flag: getattr(args, f"{side}_{flag}") for flag in ("dtype", "device", "no_cache", "chunk")}
    flags = [f"--{side}-{flag.replace('_', '-')}" for flag, value in given.items() if value not in (None, False)]
    if file is not None and flags:
        raise UsageError(f"{flags[0]}: {side.upper()} is {file}, a trace, of which nothing is computed")
    if given["chunk"] is not None and (given["chunk"] < 1 or given["no_cache"]):
        raise UsageError(f"--{side}-chunk: expected 1 or more, and not together with --{side}-no-cache")
    return Run(
        args.model if name is None else name,
        given["device"] or args.device,
        given["dtype"] or args.dtype,
        not given["no_cache"],
        given["chunk"],
    )


def ids_or_prompt(
    args: argparse.Namespace, sides: Sequence[Side | None], prompt: str | None
) -> tuple[list[int] | None, str]:
    """The ids that both sides see, or None and the prompt that the tokenizer of the first model makes them of."""
    traces = [side for side in sides if side is not None]
    ids = next((side.ids for side in traces if side.ids is not None), None)
    if (ids is not None or len(traces) == 2) and not (args.ids is None and prompt is None):
        raise UsageError("PROMPT, --ids: expected none of them: a trace is of one text, and has its ids")
    if args.ids is not None and prompt is not None:
        raise UsageError("PROMPT and --ids: expected one of them, got both")
    if args.ids is not None:
        ids = parse_ids(args.ids, "--ids")
    if ids is not None or len(traces) == 2:
        return ids, ""
    return None, options.read_prompt(prompt)


def load(args: argparse.Namespace, how: Run) -> LM:
    """The model of a side."""
    return options.load_model(argparse.Namespace(**{**vars(args), **how._asdict()}))


def default_tolerance(a: Side, b: Side) -> float:
    """For the side whose weights were rounded more."""
    unknown = [dtype for dtype in (a.rounded_to, b.rounded_to) if dtype not in TOLERANCES]
    if unknown:
        raise UsageError(
            f"--tolerance: expected one to be given for {visible(unknown[0])}: how much it may change is your choice;"
            " npllm evaluate --against tells what it costs"
        )
    return max(TOLERANCES[a.rounded_to], TOLERANCES[b.rounded_to])


# What is printed


def describe(side: Side, file: Path | None, how: Run) -> dict[str, str]:
    """What a side is: where its values are from, and how they were computed."""
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
    lost: Mapping[str, Sequence[str]],
    whats: Mapping[str, Mapping[str, str]],
    ids: Sequence[int] | None,
) -> dict[str, Any]:
    """All that was found, for programs. JSON has no NaN and no infinity: null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "first": None if first is None else first.name,
        "tolerance": {"relative": tolerance, "of_largest": OF_LARGEST * tolerance},
        **whats,
        "ids": ids,
        "only_in_a": lost["A"],
        "only_in_b": lost["B"],
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
    lost: Mapping[str, Sequence[str]],
    whats: Sequence[Mapping[str, str]],
    every_step: bool,
) -> list[str]:
    """The table, with what it is of above it, and what it shows below."""
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
    what = [
        f"{side}: {', '.join(labels.get(key, '') + text for key, text in parts.items())}"
        for side, parts in zip("AB", whats, strict=True)
    ]
    missing = [f"only in {side}: {', '.join(names)}" for side, names in lost.items() if names]
    limit = f"tolerance: |a - b| <= {tolerance:g} |a| + {OF_LARGEST * tolerance:g} max|a|; max rel is of max|a|"
    if first is None:
        return [*what, limit, *table, *missing, f"All {len(rows)} steps are within the tolerance."]
    size = math.prod(first.shape)
    return [
        *what,
        limit,
        *table,
        *missing,
        f">> {first.name} is the first step beyond the tolerance, in {first.beyond:,} of {size:,} numbers,",
        f"   the first of them at {place(first)}: {first.first_a:.6g} in A, {first.first_b:.6g} in B",
    ]


def layer_of(name: str) -> str:
    """The block that a step belongs to, or the step itself."""
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name


def row_cells(row: Difference, first: Difference | None) -> tuple[str, ...]:
    """A step as a line of the table."""
    mark = ">>" if row is first else "x" if row.beyond else ""
    notes = ["-" if row.first is None else str(list(row.first))]
    notes += [f"{count} NaN or inf in {side}" for side, count in zip("AB", row.not_finite, strict=True) if count]
    shape = str(list(row.shape))
    return mark, row.name, shape, short(row.max_abs), short(row.max_rel), f"{row.cosine:.6f}", ", ".join(notes)


def summary_cells(layer: str, rows: Sequence[Difference]) -> tuple[str, ...]:
    """The steps of a layer as one line: the worst of each."""
    beyond = next((row for row in rows if row.beyond), None)
    count = sum(1 for row in rows if row.beyond)
    bad = [sum(row.not_finite[side] for row in rows) for side in (0, 1)]
    notes = ["-" if beyond is None else f"{beyond.name.removeprefix(layer + '.')}, {count} step{'s' * (count > 1)}"]
    notes += [f"{number} NaN or inf in {side}" for side, number in zip("AB", bad, strict=True) if number]
    worst = short(max(row.max_abs for row in rows)), short(max(row.max_rel for row in rows))
    cosine = min(row.cosine for row in rows)
    return "x" if count else "", layer, f"{len(rows)} steps", *worst, f"{cosine:.6f}", ", ".join(notes)


def short(error: float) -> str:
    """An error in few digits."""
    return f"{error:.2g}"


def place(row: Difference) -> str:
    """Where the first number beyond the tolerance is, in words."""
    assert row.first is not None
    key = row.name.endswith((".scores", ".weights", ".visible"))
    axes = ["head", "token", "key" if key else "number"][-len(row.first) :]
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, row.first, strict=False))
