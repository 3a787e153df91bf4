"""npllm bench: how fast it is."""

import argparse
import json
import sys
from typing import Any

from tqdm import tqdm

from ..apps.bench import cache_runs, compare
from ..errors import UsageError
from ..generate import as_ids
from . import options, report

DESCRIPTION = """\
Time the loop of generation. WHAT is

  cache    the same tokens with the KV cache and without it, in turn: mean and
           standard deviation of the runs, and how many streams each computed

It ends with exit code 1 if both did not make the same tokens.
"""
EXAMPLES = """\
examples:
  npllm bench cache
  npllm bench cache -n 20 --repeat 7 --prompt "Once upon a time" --json
"""
PROMPT = "Write a very long email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("what", choices=("cache",), metavar="WHAT", help="what to time: cache")
    parser.add_argument(
        "-n",
        "--new-tokens",
        type=int,
        default=100,
        metavar="N",
        help="make N tokens in each run (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="R", help="time each side R times (default: %(default)s)"
    )
    parser.add_argument("--prompt", metavar="TEXT", default=PROMPT, help="what to continue (default: the chapter's)")
    parser.add_argument("--json", action="store_true", help="print one object with all figures")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Time it, print the figures, and return the exit code."""
    prompt = options.read_prompt(args.prompt)
    for flag, count in (("--new-tokens", args.new_tokens), ("--repeat", args.repeat)):
        if count < 1:
            raise UsageError(f"{flag}: expected at least 1, got {count}")
    lm = options.load_model(args)
    ids = as_ids(lm, prompt)
    runs = cache_runs(lm, ids, args.new_tokens, args.repeat)
    hidden = sys.stderr is None or not sys.stderr.isatty()
    result = {"prompt_tokens": len(ids)} | compare(
        list(tqdm(runs, total=2 * args.repeat, desc="Timing", unit="run", disable=hidden))
    )
    report.write(json.dumps(result) + "\n" if args.json else text(result))
    if result["same_ids"] == result["new_tokens"]:
        return 0
    report.note(f"npllm: with and without the cache the tokens differ, from new token {result['same_ids'] + 1} on")
    return 1


def text(result: dict[str, Any]) -> str:
    """The figures for people, a run as %%timeit prints it."""
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


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it.

    >>> duration(0.0123456), duration(1.0), duration(234.5)
    ('12.3 ms', '1 s', '234 s')
    """
    if seconds >= 100:
        return f"{seconds:.0f} s"
    unit, size = ("s", 1.0) if seconds >= 0.9995 else ("ms", 1e-3) if seconds >= 0.9995e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"
