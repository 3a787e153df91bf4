"""The flags that several commands share, and reading what they name."""

import argparse
import os
import secrets
import sys
from typing import Any

from ..backend.checks import check_options
from ..checkpoint.load import load
from ..checkpoint.load import load_tokenizer as load_tokenizer_of
from ..errors import UsageError
from ..model import LM
from ..tokenizer import Tokenizer


def add_text(parser: argparse.ArgumentParser, name: str) -> None:
    """The positional PROMPT or TEXT."""
    parser.add_argument(
        "text", nargs="?", metavar=name, help="- or nothing: read from stdin, where one newline at the end is dropped"
    )


def add_model_flags(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """Which model, and if its weights are needed, where and how they are kept."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        default=os.environ.get("NPLLM_MODEL") or None,
        help="a folder, a .gguf file or a Hugging Face Hub name (default: $NPLLM_MODEL, else SmolLM2-135M-Instruct)",
    )
    group.add_argument("--revision", metavar="NAME", help="a branch, tag or commit on the Hub")
    group.add_argument("--offline", action="store_true", help="use only what is on this machine")
    group.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (default: the Hub's own cache)")
    if weights:
        group.add_argument(
            "--device",
            metavar="NAME",
            default=os.environ.get("NPLLM_DEVICE") or "cpu",
            help="cpu, cuda, cuda:1, or auto (default: $NPLLM_DEVICE, else cpu)",
        )
        group.add_argument(
            "--dtype",
            metavar="NAME",
            default="auto",
            help="of the weights: auto (as in the file), float32, float16, bfloat16, int8 or int4",
        )


def add_sampling_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """How the next token is chosen, and when to stop."""
    group = parser.add_argument_group("choosing tokens")
    group.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="make at most N tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest (default); 1: as trained"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest (default 0: all)")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest that sum to P (default 1: all)"
    )
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop those below P times the likeliest (default 0: none)"
    )
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: avoid what was said (default 1)"
    )
    group.add_argument("--seed", type=seed, metavar="S", help="the same seed draws the same text (default: any)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")


def seed(text: str) -> int:
    """The value of --seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags as the arguments of `npllm.steps`, checked; a seed is drawn if none was given."""
    for text in args.stop:
        check_utf8("--stop", text)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    options = {name: getattr(args, name) for name in names}
    check_options(**options)
    drawn = secrets.randbits(32) if args.seed is None and args.temperature > 0 else args.seed
    return options | {"seed": drawn}


def check_utf8(name: str, text: str) -> None:
    """Refuse a command line argument that is not text. Python keeps a byte it cannot read as U+DC00 + byte."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        raise UsageError(f"{name}: expected UTF-8 text, got the byte {byte:#x} at character {error.start}") from error


def read_text(text: str | None, name: str) -> str:
    """The positional argument, or stdin where it is "-", or left out with stdin being a file or a pipe.

    One newline at the end of stdin is dropped: echo and editors add it, and with it the text would go on differently.
    """
    if text is not None and text != "-":
        check_utf8(name, text)
        return text
    if sys.stdin is None or (text is None and sys.stdin.isatty()):
        raise UsageError(f"no {name}: give it as an argument, or pipe it in")
    data = sys.stdin.buffer.read()
    try:
        read = data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UsageError(f"stdin: expected UTF-8 text, got the byte {byte:#x} at offset {error.start}") from error
    return read.removesuffix("\r\n") if read.endswith("\r\n") else read.removesuffix("\n")


def read_prompt(text: str | None) -> str:
    """`read_text` for a prompt, which may not be empty."""
    prompt = read_text(text, "PROMPT")
    if not prompt:
        raise UsageError("the prompt is empty: expected text to continue")
    return prompt


def load_model(args: argparse.Namespace) -> LM:
    """The model that the flags name."""
    return load(
        args.model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        cache_dir=args.cache_dir,
        offline=args.offline,
        progress=sys.stderr is not None and sys.stderr.isatty(),
    )


def load_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """The tokenizer of the model that the flags name, without its weights."""
    return load_tokenizer_of(args.model, args.revision, args.cache_dir, args.offline)
