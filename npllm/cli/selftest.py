"""npllm selftest: whether a device computes correct values, and how fast."""

import argparse

from ..apps.selftest import GOLDEN_IDS, PROMPT, compute, differences, golden, same_tokens, speed, versions
from ..checkpoint.load import load
from ..compiled.jit import COMPILES
from ..devices.device import pick
from ..devices.memory import format_bytes
from ..errors import UsageError
from ..inspect.compare import TOLERANCES, first_beyond
from ..loop import as_ids
from ..text.arguments import check_writes
from . import options, report
from .compare import lines

DESCRIPTION = """\
Compare a device with the CPU, step by step, and time it. The report fits on one
page, to read or to paste into an issue.

1. tokens: compared with the CPU's, and with the known ones of the default model
2. every step of the pass: how far the device's values are from the CPU's
3. time per token, compared with the minimum for reading the weights

The exit code is 1 if anything differs by more than rounding explains.
"""
EXAMPLES = """\
examples:
  npllm selftest --device cuda
  npllm selftest --device cuda --no-kernels
  npllm selftest --device cuda --model microsoft/Phi-3-mini-4k-instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "-n", "--new-tokens", type=int, default=16, metavar="N", help="generate N tokens (default: %(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="show every step, not just one line per layer")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compute, print the page, and return the exit code."""
    if args.new_tokens < 8:
        raise UsageError(f"--new-tokens: expected at least 8, got {args.new_tokens}")
    place = pick(args.device)  # fails early, before the CPU's work
    dtype = ("float32" if place.name == "cpu" else "float16") if args.dtype == "auto" else args.dtype
    if dtype not in TOLERANCES:
        raise UsageError(f"--dtype: expected {', '.join(TOLERANCES)}, whose tolerances are known; got {dtype}")
    where = {"revision": args.revision, "cache_dir": args.cache_dir, "offline": args.offline}
    lm = load(args.model, **where, kernels=False)
    check_writes(lm, "--model")
    ids = as_ids(lm, PROMPT)
    # The page begins before the work, in case it cannot be written.
    kernels = (
        "" if place.name == "cpu" else ", without npllm's kernels" if args.no_kernels else ", with npllm's kernels"
    )
    report.write_lines(f"{name + ':':9}{text}" for name, text in versions(place).items())
    report.write_lines([f"model:   {args.model or 'the default model'}, {dtype}{kernels}"])

    report.note("computing on the CPU ...")
    reference = compute(lm, ids, args.new_tokens, use_cache=False)
    report.note(f"computing on {place.name} ...")
    loops = COMPILES and not args.no_kernels
    if (place.name, args.dtype) != ("cpu", "auto") or loops:  # else it would load the same model a second time
        del lm
        lm = options.load_model(args)
    side = compute(lm, ids, args.new_tokens, use_cache=True)
    rows = differences(reference, side, dtype)
    tokens, first = same_tokens(reference, side, rows), first_beyond(rows)
    known = golden(side) if tuple(ids) == GOLDEN_IDS and args.model is None else None
    passed = tokens.passed and first is None and known is not False

    report.write("\n1. Tokens\n")
    if known is not None:
        report.write(f"the known continuation of {PROMPT!r}: {'yes' if known else f'no: {side.made}'}\n")
    report.write(f"equal to the CPU's: {tokens.same} of {len(side.made)}\n")
    if tokens.gap is not None:
        report.write(
            f"there the CPU's best two logits differ by {tokens.gap:.4g}; up to {tokens.margin:.4g}, rounding decides\n"
        )
    sides = [
        {"device": "cpu", "dtype": "as in the file", "passes": "in one pass"},
        {"device": place.name, "dtype": dtype, "passes": "all but the last token, then one step with the cache"},
    ]
    table = lines(rows, first, TOLERANCES[dtype], {"A": [], "B": []}, sides, args.all)
    report.write_lines(["", "2. Steps", *table])

    figures = speed(lm, ids, args.new_tokens)
    seconds, bandwidth = figures["seconds_per_token"]["median"], figures["bandwidth"]
    read = figures["weight_bytes_per_token"] + figures["kv_cache_bytes_per_token"]
    report.write(
        f"\n3. Time\n{1000 * seconds:.2f} ms per token ({1 / seconds:.1f} tokens/s), after a prompt of {len(ids)}\n"
        f"it reads {format_bytes(round(read))} at {format_bytes(round(read / seconds))}/s; the memory bandwidth is"
        f" {format_bytes(round(bandwidth))}/s, at which a token would take {1000 * read / bandwidth:.2f} ms"
        f" ({figures['bandwidth_share']:.0%} reached)\n\n{'PASSED' if passed else 'FAILED'}\n"
    )
    return 0 if passed else 1
