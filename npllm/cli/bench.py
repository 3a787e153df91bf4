"""npllm bench: how fast it is."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from ..apps import speed
from ..apps.bench import cache_runs, compare
from ..checkpoint.load import DTYPES
from ..devices.memory import format_bytes
from ..errors import NotEnoughMemoryError, UsageError
from ..lm import LM
from ..loop import as_ids
from ..options import check_options
from . import options, report

DESCRIPTION = """\
Time the loop of generation. WHAT is

  decode   tokens/s after a prompt, the bytes of weights and KV cache that a token
           reads, and the share of this machine's read bandwidth that is reached
  prefill  tokens/s of reading a prompt, beside a bare np.matmul of as many FLOPs
  load     seconds to load the model, and to its first token, and the memory that
           takes, in a new process each time
  cache    the same tokens with the KV cache and without it, in turn: mean and
           standard deviation of the runs, and how many streams each computed

--dtype takes several, as in --dtype float32,bfloat16,int8: they take turns where
all fit into memory, and come one after the other where not. Without "cache", the
figures are medians over the rounds, and the least and the most of them.
"cache" ends with exit code 1 if both did not make the same tokens.
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
# What each takes where the flag is left out. A flag that has no place here is refused.
DEFAULTS: dict[str, dict[str, Any]] = {
    "decode": {"context": 64, "new_tokens": 32, "repeat": 5, "cache_dtype": "float32"},
    "prefill": {"context": 512, "repeat": 3},
    "load": {"context": 8, "repeat": 3},
    "cache": {"new_tokens": 100, "repeat": 3, "prompt": PROMPT},
}
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("what", choices=tuple(DEFAULTS), metavar="WHAT", help="what to time: one of those above")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of the prompt; of decode those before the first that is timed (default: decode 64, prefill 512,"
        " load 8)",
    )
    parser.add_argument(
        "-n", "--new-tokens", type=int, metavar="N", help="tokens that are timed (default: decode 32, cache 100)"
    )
    parser.add_argument("--repeat", type=int, metavar="R", help="rounds (default: decode 5, all others 3)")
    parser.add_argument("--prompt", metavar="TEXT", help="what cache continues (default: the chapter's prompt)")
    parser.add_argument(
        "--cache-dtype", metavar="NAME", help="of decode's KV cache: float32 (default), float16, bfloat16"
    )
    parser.add_argument("--json", action="store_true", help="print one object with all figures")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Time it, print the figures, and return the exit code."""
    fill_defaults(args)
    dtypes = args.dtype.split(",")
    for name in dtypes:
        if name not in ("auto", *DTYPES):
            raise UsageError(f"--dtype: expected auto, {', '.join(DTYPES)}, or several with commas, got {args.dtype!r}")
    if len(set(dtypes)) < len(dtypes):
        raise UsageError(f"--dtype: expected each one once, got {args.dtype!r}")
    if args.what == "cache":
        return run_cache(args)
    result: dict[str, Any] = {"what": args.what, "model": args.model or "the default model", "device": args.device}
    result |= {"cores": speed.cores(), "context": args.context, "repeat": args.repeat}
    if args.what == "load":
        result["rows"] = load_rows(args, dtypes)
    else:
        result |= together_or_not(args, dtypes)
    report.write(json.dumps(result) + "\n" if args.json else TEXTS[args.what](result))
    return 0


def together_or_not(args: argparse.Namespace, dtypes: Sequence[str]) -> dict[str, Any]:
    """Time the dtypes in turn; where memory has no room for all of them, one after the other."""
    timed = decode_rows if args.what == "decode" else prefill_rows
    try:
        return {"in_turn": True} | timed(args, {name: load_as(args, name) for name in dtypes})
    except NotEnoughMemoryError:
        if len(dtypes) == 1:
            raise
    # Not inside of "except": there the error still holds what was loaded.
    report.note("npllm: not enough memory for all at once: one after the other")
    parts = [timed(args, {name: load_as(args, name)}) for name in dtypes]
    return parts[0] | {"in_turn": False, "rows": {name: row for part in parts for name, row in part["rows"].items()}}


def fill_defaults(args: argparse.Namespace) -> None:
    """Put in what was left out, and refuse what has no place."""
    for name in ("context", "new_tokens", "repeat", "prompt", "cache_dtype"):
        flag, given = f"--{name.replace('_', '-')}", getattr(args, name)
        if name not in DEFAULTS[args.what]:
            if given is not None:
                raise UsageError(f"{flag}: bench {args.what} does not take it")
        elif given is None:
            setattr(args, name, DEFAULTS[args.what][name])
        elif name == "cache_dtype":
            check_options(cache_dtype=given)
        elif name != "prompt" and given < 1:
            raise UsageError(f"{flag}: expected at least 1, got {given}")


def load_as(args: argparse.Namespace, dtype: str) -> LM:
    """The model that the flags name, in one of the dtypes."""
    lm = options.load_model(argparse.Namespace(**{**vars(args), "dtype": dtype}))
    speed.check_context(lm, args.context, args.new_tokens or 0)
    return lm


def shown(runs: Iterable[T], rounds: int) -> Iterator[T]:
    """The runs, with a progress bar on stderr if that is a terminal."""
    hidden = sys.stderr is None or not sys.stderr.isatty()
    return iter(tqdm(runs, total=rounds, desc="Timing", unit="run", disable=hidden))


def gathered(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What the sides give, in turn, by side."""
    values: dict[str, list[T]] = {name: [] for name in sides}
    for name, value in shown(speed.in_turn(sides, rounds), rounds * len(sides)):
        values[name].append(value)
    return values


def decode_rows(args: argparse.Namespace, lms: Mapping[str, LM]) -> dict[str, Any]:
    """Decode with each of the models in turn, and measure the memory in the same turns."""
    first = next(iter(lms.values()))
    ids = speed.random_ids(first, args.context)
    sides: dict[str, Callable[[], float]] = {}
    for name, lm in lms.items():
        cache = speed.filled_cache(lm, ids, args.new_tokens + 1, args.cache_dtype)
        sides[name] = partial(seconds_to_decode, lm, ids, cache, args.new_tokens)
    sides["bandwidth"] = partial(speed.read_bandwidth, speed.bandwidth_buffer(first.weights.norm), speed.cores())
    values = gathered(sides, args.repeat)
    bandwidth = max(values["bandwidth"])
    rows = {}
    for name, lm in lms.items():
        read = speed.decode_read(lm, args.context, args.new_tokens, args.cache_dtype)
        rows[name] = speed.decode_row(lm, values[name], read, bandwidth)
    result = {"new_tokens": args.new_tokens, "cache_dtype": args.cache_dtype}
    return result | {"read_bandwidth_bytes_per_second": bandwidth, "rows": rows}


def seconds_to_decode(lm: LM, ids: Sequence[int], cache: Any, new_tokens: int) -> float:
    """Per token."""
    return speed.decode(lm, ids, cache, new_tokens)[0]


def prefill_rows(args: argparse.Namespace, lms: Mapping[str, LM]) -> dict[str, Any]:
    """Read a prompt with each of the models in turn, and do bare matrix products in the same turns."""
    first = next(iter(lms.values()))
    ids = speed.random_ids(first, args.context)
    flops = speed.product_flops(first, args.context)
    for lm in lms.values():
        speed.prefill(lm, ids[:32])  # not counted
    sides: dict[str, Callable[[], float]] = {name: partial(speed.prefill, lm, ids) for name, lm in lms.items()}
    sides["matmul"] = partial(speed.bare_matmul, first, args.context, flops)
    values = gathered(sides, args.repeat)
    rows = {name: speed.prefill_row(lm, args.context, values[name], values["matmul"]) for name, lm in lms.items()}
    return {"matmul_flops_per_second": statistics.median(values["matmul"]), "rows": rows}


def load_rows(args: argparse.Namespace, dtypes: Sequence[str]) -> dict[str, Any]:
    """Load in new processes, the dtypes in turn."""
    where = {name: getattr(args, name) for name in ("device", "revision", "cache_dir", "offline")}
    where["kernels"] = not args.no_kernels
    sides = {
        dtype: partial(speed.load_in_new_process, {"name": args.model, "dtype": dtype, **where}, args.context)
        for dtype in dtypes
    }
    values = gathered(sides, args.repeat)
    size = speed.model_file_bytes(args.model, args.revision, args.cache_dir, args.offline)
    return {dtype: speed.load_row(values[dtype], size) for dtype in dtypes}


def run_cache(args: argparse.Namespace) -> int:
    """Time the loop with the KV cache and without it."""
    prompt = options.read_prompt(args.prompt)
    if "," in args.dtype:
        raise UsageError(f"--dtype: bench cache takes one, got {args.dtype!r}")
    lm = options.load_model(args)
    ids = as_ids(lm, prompt)
    runs = cache_runs(lm, ids, args.new_tokens, args.repeat)
    result = {"prompt_tokens": len(ids)} | compare(list(shown(runs, 2 * args.repeat)))
    report.write(json.dumps(result) + "\n" if args.json else text(result))
    if result["same_ids"] == result["new_tokens"]:
        return 0
    report.note(f"npllm: with and without the cache the tokens differ, from new token {result['same_ids'] + 1} on")
    return 1


def text(result: dict[str, Any]) -> str:
    """The figures of the cache for people, a run as %%timeit prints it."""
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
    """The figures of decode for people."""
    lines = [f"{result['new_tokens']} tokens after {result['context']} of context, {rounds(result)}:"]
    for name, row in result["rows"].items():
        read = row["weight_bytes_per_token"] + row["kv_cache_bytes_per_token"]
        lines += [
            f"{name + ':':10}{row['tokens_per_second']:.1f} tokens/s, {ranged(row['seconds_per_token'])} per token",
            f"{'':10}reads {format_bytes(round(read))} per token, of them KV cache"
            f" {format_bytes(round(row['kv_cache_bytes_per_token']))}: {row['read_bytes_per_second'] / 1e9:.1f} GB/s,"
            f" {row['bandwidth_share']:.0%} of the read bandwidth",
            f"{'':10}{kept(row)}",
        ]
    cores = f"{result['cores']} core{'' if result['cores'] == 1 else 's'}"
    lines.append(f"read bandwidth: {result['read_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s (a maximum, {cores})")
    return "\n".join(lines) + "\n"


def prefill_text(result: dict[str, Any]) -> str:
    """The figures of prefill for people."""
    lines = [f"a prompt of {result['context']} tokens, {rounds(result)}:"]
    for name, row in result["rows"].items():
        lines += [
            f"{name + ':':10}{row['tokens_per_second']:.1f} tokens/s, {ranged(row['seconds'])}",
            f"{'':10}{row['flops_per_second'] / 1e9:.1f} GFLOP/s, {row['matmul_share']:.0%} of a bare np.matmul's",
            f"{'':10}{kept(row)}",
        ]
    lines.append(f"np.matmul: {result['matmul_flops_per_second'] / 1e9:.1f} GFLOP/s")
    return "\n".join(lines) + "\n"


def load_text(result: dict[str, Any]) -> str:
    """The figures of load for people."""
    lines = [f"{rounds(result)}, each in a new process:"]
    for name, row in result["rows"].items():
        lines += [
            f"{name + ':':10}loaded after {ranged(row['load_seconds'])}",
            f"{'':10}first token after {ranged(row['first_token_seconds'])}, with a prompt of {result['context']}",
            f"{'':10}resident {size(row['resident_bytes'])}, at the most {size(row['peak_bytes'])};"
            f" before loading {size(row['resident_bytes_before'])}, the model's file {size(row['file_bytes'])}",
            f"{'':10}{kept(row)}",
        ]
    return "\n".join(lines) + "\n"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {"decode": decode_text, "prefill": prefill_text, "load": load_text}


def rounds(result: Mapping[str, Any]) -> str:
    """How often, and in which order."""
    count = f"{result['repeat']} round{'' if result['repeat'] == 1 else 's'}"
    several = len(result["rows"]) > 1
    return count + (" in turn" if several and result.get("in_turn", True) else " each" if several else "")


def ranged(values: Mapping[str, Any]) -> str:
    """A time with the least and the most of its rounds."""
    if len(values["rounds"]) == 1:
        return duration(values["median"])
    return f"{duration(values['median'])} ({duration(values['least'])} to {duration(values['most'])})"


def kept(row: Mapping[str, Any]) -> str:
    """How the weights are kept."""
    storages = ", ".join(f"{format_bytes(count)} {name}" for name, count in row["storages"].items())
    return f"weights: {storages}; {row['bytes_per_weight']:.2f} bytes for each"


def size(count: int | None) -> str:
    """A number of bytes, where it is known."""
    return "unknown" if count is None else format_bytes(count)


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it.

    >>> duration(0.0123456), duration(1.0), duration(234.5)
    ('12.3 ms', '1 s', '234 s')
    """
    if seconds >= 100:
        return f"{seconds:.0f} s"
    unit, size = ("s", 1.0) if seconds >= 0.9995 else ("ms", 1e-3) if seconds >= 0.9995e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"
