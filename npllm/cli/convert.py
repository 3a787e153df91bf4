"""npllm convert: write a model to a folder in another dtype."""

import argparse
import os
import sys

from ..checkpoint.write import SHARD_BYTES, convert
from ..devices.memory import format_bytes
from . import options, report

DESCRIPTION = """\
Write the model SRC to the new folder DST, in Hugging Face layout: config.json,
tokenizer.json, model.safetensors. `npllm generate -m DST` loads it, without
quantizing int8 and int4 again; transformers loads the other dtypes.
"""
EXAMPLES = """\
examples:
  npllm convert microsoft/Phi-3-mini-4k-instruct phi3-int4 --dtype int4
  npllm convert model.gguf folder --dtype bfloat16
  npllm convert folder --dtype float32      (SRC is $NPLLM_MODEL, or the default model)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    default = os.environ.get("NPLLM_MODEL") or None
    parser.add_argument("source", nargs="?", metavar="SRC", default=default, help=options.MODEL_HELP)
    parser.add_argument("destination", metavar="DST", help="a new or empty folder")
    parser.add_argument(
        "--dtype", required=True, metavar="NAME", help="dtype of the weights: float32, float16, bfloat16, int8 or int4"
    )
    parser.add_argument(
        "--shard-size",
        type=float,
        default=SHARD_BYTES / 1e9,
        metavar="GB",
        help="split the weights into files of at most GB gigabytes (default: %(default)g)",
    )
    options.add_hub_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, report the result on stderr, and return the exit code."""
    done = convert(
        args.source,
        args.destination,
        args.dtype,
        revision=args.revision,
        cache_dir=args.cache_dir,
        offline=args.offline,
        progress=sys.stderr is not None and sys.stderr.isatty(),
        shard_bytes=int(args.shard_size * 1e9) if 0 < args.shard_size < 1e9 else 0,
    )
    if args.dtype.startswith("int") and not done.quantized:
        rows = "a matrix in 8 or 4 bits has rows of a multiple of 32 numbers, up to 65,536, and this model has none"
        report.note(f"{done.folder}: not quantized: {rows}; all weights are float32")
    files = "1 file" if done.files == 1 else f"{done.files} files"
    if done.part:
        report.note(f"{done.folder}: npllm writes only what it computes: {done.part}")
    report.note(f"{done.folder}: {format_bytes(done.nbytes)} of weights in {files}")
    return 0
