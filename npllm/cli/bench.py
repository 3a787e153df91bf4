"""npllm bench: timings of the loop, and of loading a model."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ..apps import speed
from ..apps.bench import cache_runs, compare
from ..checkpoint.load import DTYPES
from ..compiled.cpu import path_of
from ..devices.memory import format_bytes
from ..devices.threads import threads
from ..errors import NotEnoughMemoryError, UsageError
from ..lm import LM
from ..loop import as_ids
from ..options import check_options
from . import options, report

DESCRIPTION = """\
Time the loop of generation. WHAT is

  decode   tokens/s after a prompt, the bytes of weights and KV cache read per
           token, and the fraction of this machine's read bandwidth reached
  prefill  tokens/s for a prompt, compared with a bare np.matmul of equal FLOPs
  load     seconds to load the model and to make its first token, and the memory
           used, each time in a new process
  cache    the same tokens with and without the KV cache, alternating: mean and
           standard deviation of the runs, and how many streams each computed

--dtype takes a list, as in --dtype float32,bfloat16,int8: the dtypes alternate if
all of them fit into memory, and otherwise run one at a time. Except for "cache",
the figures are the median, minimum and maximum over the rounds. "cache" exits
with code 1 if the two did not make the same tokens.
"""
EXAMPLES = """\
examples:
  npllm bench decode --dtype float32,auto
  npllm bench decode --context 4000 --json
  npllm bench prefill --context 1024 -m ./Phi-3-mini-4k-instruct
  npllm bench load --dtype bfloat16 --repeat 1
  npllm bench cache -n 20 --repeat 7 --prompt "Once upon a time"
"""
PROMPT = "Write a very long email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."
# The defaults of each benchmark's flags. A flag that is not listed here is refused.
DEFAULTS: dict[str, dict[str, Any]] = {
    "decode": {"context": 64, "new_tokens": 32, "repeat": 5, "cache_dtype": "float32"},
    "prefill": {"context": 512, "repeat": 3},
    "load": {"context": 8, "repeat": 3},
    "cache": {"new_tokens": 100, "repeat": 3, "prompt": PROMPT},
}
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", choices=tuple(DEFAULTS), metavar="WHAT", help="what to time: one of the above")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of the prompt; for decode, those before the first timed token (default: decode 64, prefill 512,"
        " load 8)",
    )
    parser.add_argument(
        "-n", "--new-tokens", type=int, metavar="N", help="tokens to time (default: decode 32, cache 100)"
    )
    parser.add_argument("--repeat", type=int, metavar="R", help="rounds (default: decode 5, others 3)")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt for cache (default: the chapter's)")
    parser.add_argument(
        "--cache-dtype", metavar="NAME", help="dtype of the KV cache for decode: float32 (default), float16 or bfloat16"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print the figures, and return the exit code."""
    fill_defaults(args)
    dtypes = args.dtype.split(",")
    for name in dtypes:
        if name not in ("auto", *DTYPES):
            raise UsageError(
                f"--dtype: expected auto, {', '.join(DTYPES)}, or a comma-separated list of them, got {args.dtype!r}"
            )
    if len(set(dtypes)) < len(dtypes):
        raise UsageError(f"--dtype: expected each dtype once, got {args.dtype!r}")
    if args.what == "cache":
        return run_cache(args)
    result: dict[str, Any] = {"what": args.what, "model": args.model or "the default model", "device": args.device}
    result |= {"cores": speed.cores(), "threads": threads(), "context": args.context, "repeat": args.repeat}
    if args.what == "load":
        result["rows"] = load_rows(args, dtypes)
    else:
        result |= time_dtypes(args, dtypes)
    report.write(json.dumps(result) + "\n" if args.json else TEXTS[args.what](result))
    return 0


def time_dtypes(args: argparse.Namespace, dtypes: Sequence[str]) -> dict[str, Any]:
    """The figures of the dtypes, alternating; if they do not all fit into memory, one dtype at a time."""
    timed = decode_rows if args.what == "decode" else prefill_rows
    try:
        return {"in_turn": True} | timed(args, {name: load_as(args, name) for name in dtypes})
    except NotEnoughMemoryError:
        if len(dtypes) == 1:
            raise
    # Not inside the "except": there the error still references what was loaded.
    report.note("npllm: not enough memory for all dtypes at once: timing one at a time")
    parts = [timed(args, {name: load_as(args, name)}) for name in dtypes]
    return parts[0] | {"in_turn": False, "rows": {name: row for part in parts for name, row in part["rows"].items()}}


def fill_defaults(args: argparse.Namespace) -> None:
    """Set the defaults of omitted flags, and refuse flags that do not apply."""
    for name in ("context", "new_tokens", "repeat", "prompt", "cache_dtype"):
        flag, given = f"--{name.replace('_', '-')}", getattr(args, name)
        if name not in DEFAULTS[args.what]:
            if given is not None:
                raise UsageError(f"{flag}: bench {args.what} does not take this flag")
        elif given is None:
            setattr(args, name, DEFAULTS[args.what][name])
        elif name == "cache_dtype":
            check_options(cache_dtype=given)
        elif name != "prompt" and given < 1:
            raise UsageError(f"{flag}: expected at least 1, got {given}")


def load_as(args: argparse.Namespace, dtype: str) -> LM:
    """The model that the flags name, in this dtype."""
    lm = options.load_writer(argparse.Namespace(**{**vars(args), "dtype": dtype}))
    speed.check_context(lm, args.context, args.new_tokens or 0)
    return lm


def with_progress(runs: Iterable[T], rounds: int) -> Iterator[T]:
    """The runs, with a progress bar if stderr is a terminal."""
    from tqdm import tqdm  # here, because only this shows a bar

    hidden = sys.stderr is None or not sys.stderr.isatty()
    return iter(tqdm(runs, total=rounds, desc="Timing", unit="run", disable=hidden, leave=False))


def collect(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """The results of each side, run alternately."""
    values: dict[str, list[T]] = {name: [] for name in sides}
    for name, value in with_progress(speed.in_turn(sides, rounds), rounds * len(sides)):
        values[name].append(value)
    return values


def decode_rows(args: argparse.Namespace, lms: Mapping[str, LM]) -> dict[str, Any]:
    """The decoding figures of the models, run alternately; the bandwidth is measured in the same rounds."""
    first = next(iter(lms.values()))
    ids = speed.random_ids(first, args.context)
    sides: dict[str, Callable[[], float]] = {}
    for name, lm in lms.items():
        cache = speed.filled_cache(lm, ids, args.new_tokens + 1, args.cache_dtype)
        sides[name] = partial(seconds_to_decode, lm, ids, cache, args.new_tokens)
    sides["bandwidth"] = partial(speed.read_bandwidth, speed.bandwidth_buffer(first.weights.norm), speed.cores())
    values = collect(sides, args.repeat)
    bandwidth = max(values["bandwidth"])
    rows = {}
    for name, lm in lms.items():
        read = speed.decode_read(lm, args.context, args.new_tokens, args.cache_dtype)
        rows[name] = speed.decode_row(lm, values[name], read, bandwidth) | {"computed_by": path_of(lm)}
    result = {"new_tokens": args.new_tokens, "cache_dtype": args.cache_dtype}
    return result | {"read_bandwidth_bytes_per_second": bandwidth, "rows": rows}


def seconds_to_decode(lm: LM, ids: Sequence[int], cache: Any, new_tokens: int) -> float:
    """Seconds per token."""
    return speed.decode(lm, ids, cache, new_tokens)[0]


def prefill_rows(args: argparse.Namespace, lms: Mapping[str, LM]) -> dict[str, Any]:
    """The prefill figures of the models, run alternately; bare matrix products are timed in the same rounds."""
    first = next(iter(lms.values()))
    ids = speed.random_ids(first, args.context)
    flops = speed.product_flops(first, args.context)
    for lm in lms.values():
        speed.prefill(lm, ids[:32])  # warm-up
    sides: dict[str, Callable[[], float]] = {name: partial(speed.prefill, lm, ids) for name, lm in lms.items()}
    sides["matmul"] = partial(speed.bare_matmul, first, args.context, flops)
    values = collect(sides, args.repeat)
    rows = {name: speed.prefill_row(lm, args.context, values[name], values["matmul"]) for name, lm in lms.items()}
    return {"matmul_flops_per_second": statistics.median(values["matmul"]), "rows": rows}


def load_rows(args: argparse.Namespace, dtypes: Sequence[str]) -> dict[str, Any]:
    """The loading figures of the dtypes, alternating, each load in a new process."""
    where = {name: getattr(args, name) for name in ("device", "revision", "cache_dir", "offline")}
    where["kernels"] = not args.no_kernels
    sides = {
        dtype: partial(speed.load_in_new_process, {"name": args.model, "dtype": dtype, **where}, args.context)
        for dtype in dtypes
    }
    values = collect(sides, args.repeat)
    size = speed.model_file_bytes(args.model, args.revision, args.cache_dir, args.offline)
    return {dtype: speed.load_row(values[dtype], size) for dtype in dtypes}


def run_cache(args: argparse.Namespace) -> int:
    """Time the loop with and without the KV cache, print the figures, and return the exit code."""
    prompt = options.read_prompt(args.prompt)
    if "," in args.dtype:
        raise UsageError(f"--dtype: bench cache takes a single dtype, got {args.dtype!r}")
    lm = options.load_writer(args)
    ids = as_ids(lm, prompt)
    runs = cache_runs(lm, ids, args.new_tokens, args.repeat)
    result = {"prompt_tokens": len(ids)} | compare(list(with_progress(runs, 2 * args.repeat)))
    report.write(json.dumps(result) + "\n" if args.json else text(result))
    if result["same_ids"] == result["new_tokens"]:
        return 0
    report.note(f"npllm: with and without the cache, the tokens differ from new token {result['same_ids'] + 1} on")
    return 1


def text(result: dict[str, Any]) -> str:
    """The figures of cache as text, each side as %%timeit prints it."""
    lines = [f"{result['new_tokens']} tokens after a prompt of {result['prompt_tokens']}:"]
    runs = f"{result['repeat']} run{'' if result['repeat'] == 1 else 's'}"
    for label, name in (("with the KV cache", "with_cache"), ("without the KV cache", "without_cache")):
        side = result[name]
        lines += [
            f"{label + ':':22}{duration(side['mean_seconds'])} ± {duration(side['stdev_seconds'])} per loop"
            f" (mean ± std. dev. of {runs}, 1 loop each)",
            f"{'':22}{side['tokens_per_second']:.1f} tokens/s, {side['streams']:,} streams computed",
        ]
    lines.append(f"{result['ratio']:.1f} times as fast with the cache")
    return "\n".join(lines) + "\n"


def decode_text(result: dict[str, Any]) -> str:
    """The figures of decode as text."""
    lines = [f"{result['new_tokens']} tokens after {result['context']} of context, {rounds(result)}:"]
    for name, row in result["rows"].items():
        read = row["weight_bytes_per_token"] + row["kv_cache_bytes_per_token"]
        lines += [
            f"{name + ':':10}{row['tokens_per_second']:.1f} tokens/s, {with_range(row['seconds_per_token'])} per token",
            f"{'':10}reads {format_bytes(round(read))} per token, including a KV cache of"
            f" {format_bytes(round(row['kv_cache_bytes_per_token']))}: {row['read_bytes_per_second'] / 1e9:.1f} GB/s,"
            f" {row['bandwidth_share']:.0%} of the read bandwidth",
            f"{'':10}{storage_text(row)}" + (f"; computed by {row['computed_by']}" if row["computed_by"] else ""),
        ]
    cores = f"{result['cores']} core{'' if result['cores'] == 1 else 's'}"
    lines.append(f"read bandwidth: {result['read_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s (maximum, {cores})")
    return "\n".join(lines) + "\n"


def prefill_text(result: dict[str, Any]) -> str:
    """The figures of prefill as text."""
    lines = [f"a prompt of {result['context']} tokens, {rounds(result)}:"]
    for name, row in result["rows"].items():
        lines += [
            f"{name + ':':10}{row['tokens_per_second']:.1f} tokens/s, {with_range(row['seconds'])}",
            f"{'':10}{row['flops_per_second'] / 1e9:.1f} GFLOP/s, {row['matmul_share']:.0%} of a bare np.matmul's",
            f"{'':10}{storage_text(row)}",
        ]
    lines.append(f"np.matmul: {result['matmul_flops_per_second'] / 1e9:.1f} GFLOP/s")
    return "\n".join(lines) + "\n"


def load_text(result: dict[str, Any]) -> str:
    """The figures of load as text."""
    lines = [f"{rounds(result)}, each in a new process:"]
    for name, row in result["rows"].items():
        lines += [
            f"{name + ':':10}loaded after {with_range(row['load_seconds'])}",
            f"{'':10}first token after {with_range(row['first_token_seconds'])}, with a prompt of {result['context']}",
            f"{'':10}resident {size(row['resident_bytes'])}, peak {size(row['peak_bytes'])};"
            f" before loading {size(row['resident_bytes_before'])}, model file {size(row['file_bytes'])}",
            f"{'':10}{storage_text(row)}",
        ]
    return "\n".join(lines) + "\n"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {"decode": decode_text, "prefill": prefill_text, "load": load_text}


def rounds(result: Mapping[str, Any]) -> str:
    """The number of rounds, and their order."""
    count = f"{result['repeat']} round{'' if result['repeat'] == 1 else 's'}"
    several = len(result["rows"]) > 1
    return count + (", alternating" if several and result.get("in_turn", True) else " each" if several else "")


def with_range(values: Mapping[str, Any]) -> str:
    """The median time, with the minimum and maximum of its rounds."""
    if len(values["rounds"]) == 1:
        return duration(values["median"])
    return f"{duration(values['median'])} ({duration(values['least'])} to {duration(values['most'])})"


def storage_text(row: Mapping[str, Any]) -> str:
    """The storage of the weights."""
    storages = ", ".join(f"{format_bytes(count)} {name}" for name, count in row["storages"].items())
    return f"weights: {storages}; {row['bytes_per_weight']:.2f} bytes per parameter"


def size(count: int | None) -> str:
    """A number of bytes; "unknown" for None."""
    return "unknown" if count is None else format_bytes(count)


def duration(seconds: float) -> str:
    """A time with three significant digits, in a suitable unit.

    >>> duration(0.0123456), duration(1.0), duration(234.5)
    ('12.3 ms', '1 s', '234 s')
    """
    if seconds >= 100:
        return f"{seconds:.0f} s"
    unit, size = ("s", 1.0) if seconds >= 0.9995 else ("ms", 1e-3) if seconds >= 0.9995e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"
