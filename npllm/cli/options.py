"""The flags that several commands share, and loading what they name."""

import argparse
import io
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..apps.speculation import check_count, draft_model, prompt_lookup
from ..checkpoint.hub import DEFAULT_FILE, is_default
from ..checkpoint.load import load
from ..checkpoint.load import load_tokenizer as load_tokenizer_of
from ..errors import UsageError
from ..lm import LM
from ..options import check_options
from ..text.arguments import check_writes
from ..text.utf8 import checked_text
from ..tokenizer import Tokenizer

MODEL_HELP = (
    "a folder, a .gguf file, a Hugging Face Hub name, or default for SmolLM2-135M-Instruct (omitted: $NPLLM_MODEL, else"
    " default)"
)


def add_text(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the positional PROMPT or TEXT."""
    parser.add_argument(
        "text", nargs="?", metavar=name, help="omit it, or use -, to read stdin (a final newline is dropped)"
    )


def add_hub_flags(group: "argparse._ActionsContainer") -> None:
    """Add the flags for a model on the Hub: its version, and the local cache."""
    group.add_argument("--revision", metavar="NAME", help="a branch, tag or commit on the Hub")
    group.add_argument("--offline", action="store_true", help="use only what is on this machine")
    group.add_argument("--cache-dir", metavar="DIR", help="where to store downloads (default: the Hub's own cache)")


def add_model_flags(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """Add the flags for the model and, if its weights are needed, their device and dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        type=model,
        metavar="NAME",
        default=os.environ.get("NPLLM_MODEL") or None,
        help=MODEL_HELP,
    )
    add_hub_flags(group)
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
            help="dtype of the weights: auto (as in the file), float32, float16, bfloat16, int8 or int4",
        )
        group.add_argument(
            "--threads",
            type=int,
            metavar="N",
            help="compute with N threads on the CPU (default: $NPLLM_THREADS, else one for each core)",
        )
        group.add_argument(
            "--no-kernels", action="store_true", help="use only the functions of NumPy, or on a GPU those of CuPy"
        )


def add_sampling_flags(parser: argparse.ArgumentParser, max_new_tokens: int, seed_is: str = "random") -> None:
    """Add the flags for choosing the next token, and for when to stop."""
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
        "--temperature", type=float, default=0.0, metavar="T", help="0: greedy decoding (default); 1: as trained"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest (default 0: all)")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest that sum to P (default 1: all)"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens below P times the likeliest (default 0: none)",
    )
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: avoid repetition (default 1: off)"
    )
    group.add_argument("--seed", type=seed, metavar="S", help=f"the same seed gives the same text (default: {seed_is})")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before TEXT; may be repeated")


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that save time or memory and leave the text unchanged, or nearly so."""
    group = parser.add_argument_group("speed and memory")
    group.add_argument(
        "--prompt-lookup",
        type=int,
        metavar="K",
        help="draft up to K tokens from the text so far, and verify them in one pass: the text stays the same",
    )
    group.add_argument("--draft-model", metavar="NAME", help="draft with a smaller model of the same vocabulary")
    group.add_argument(
        "--draft-tokens", type=int, metavar="K", help="with --draft-model: draft up to K tokens (default 4)"
    )
    add_cache_flag(group)


def add_cache_flag(parser: Any) -> None:
    """Add --cache-dtype to a parser, or to a group of its arguments."""
    parser.add_argument(
        "--cache-dtype",
        metavar="NAME",
        default="float32",
        help="dtype of the KV cache: float32, or float16 or bfloat16 in half the memory (default: %(default)s)",
    )


def check_speed(args: argparse.Namespace) -> None:
    """Raise UsageError for invalid flags of `add_speed_flags`, before a model is loaded."""
    check_options(cache_dtype=args.cache_dtype)
    for flag, count in (("--prompt-lookup", args.prompt_lookup), ("--draft-tokens", args.draft_tokens)):
        if count is not None:
            check_count(flag, count)
    if args.draft_tokens is not None and args.draft_model is None:
        raise UsageError("--draft-tokens: expected together with --draft-model")
    if args.prompt_lookup is not None and args.draft_model is not None:
        raise UsageError("--prompt-lookup: expected without --draft-model: only one of them can draft")
    if getattr(args, "no_cache", False) and (args.prompt_lookup is not None or args.draft_model is not None):
        raise UsageError(
            "--no-cache: expected without --prompt-lookup and --draft-model, which verify drafted tokens with the cache"
        )


def speculation(args: argparse.Namespace, counts: dict[str, int]) -> dict[str, Any]:
    """The drafting flags as arguments of `npllm.steps`, which fill `counts`; see apps/speculation.py."""
    if args.prompt_lookup is not None:
        return {"tokens": prompt_lookup(args.prompt_lookup, counts)}
    if args.draft_model is not None:
        return {"tokens": draft_model(load_model(args, args.draft_model), args.draft_tokens or 4, counts)}
    return {}


def model(text: str) -> str | None:
    """The value of --model; None for the default model, also where it is named."""
    try:
        return None if is_default(text) else text
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seed(text: str) -> int:
    """The value of --seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a non-negative integer, got {text!r}")
    return int(text)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags as arguments of `npllm.steps`, checked; with a random seed if none is given."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    options = {name: getattr(args, name) for name in names} | {"stop": [utf8("--stop", text) for text in args.stop]}
    check_options(**options)
    drawn = secrets.randbits(32) if args.seed is None and args.temperature > 0 else args.seed
    return options | {"seed": drawn}


def utf8(name: str, text: str) -> str:
    """An argument as text. Python keeps bytes that its locale cannot decode: in LC_ALL=C, those of UTF-8.

    Raises UsageError if it is not UTF-8.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # the bytes are in it, as U+DC00 + byte
        with suppress(UnicodeEncodeError):
            return decoded(os.fsencode(text), name)
        return checked_text(text)


def read_text(text: str | None, name: str) -> str:
    """The positional argument; or stdin, if the argument is "-", or is omitted and stdin is a file or a pipe.

    One final newline of stdin is dropped: echo and editors add it, and it would change the continuation.
    """
    if text is not None and text != "-":
        return utf8(name, text)
    if sys.stdin is None or (text is None and sys.stdin.isatty()):
        raise UsageError(f"no {name}: give it as an argument, or pipe it in")
    with readable_stdin():
        data = sys.stdin.buffer.read()
    return file_text(data, "stdin").removesuffix("\n")


def file_text(data: bytes, where: str) -> str:
    """The text of a file: without a byte order mark, with CRLF as a newline. Raises UsageError if it is not UTF-8."""
    return decoded(data, where).removeprefix("\ufeff").replace("\r\n", "\n")


def decoded(data: bytes, where: str) -> str:
    """UTF-8 as text. Raises UsageError for other bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UsageError(f"{where}: expected UTF-8 text, got the byte {byte:#x} at offset {error.start}") from error


@contextmanager
def readable_stdin() -> Iterator[None]:
    """Raise UsageError if stdin cannot be read, or is non-blocking: then what has not arrived yet would be missing."""
    try:
        with suppress(io.UnsupportedOperation):  # no file: replaced in this process
            if hasattr(os, "get_blocking") and not os.get_blocking(sys.stdin.fileno()):
                raise UsageError("stdin: expected a file or a pipe, got one that does not wait for data (O_NONBLOCK)")
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"stdin: cannot be read: {error.strerror or error}") from error


def read_prompt(text: str | None) -> str:
    """The PROMPT, as in `read_text`; it may not be empty."""
    prompt = read_text(text, "PROMPT")
    if not prompt:
        raise UsageError("the prompt is empty: expected at least one token")
    return prompt


def load_model(args: argparse.Namespace, name: str | None = None) -> LM:
    """The model that the flags name, or another model with the same flags."""
    progress = sys.stderr is not None and sys.stderr.isatty()
    return load(name or args.model, **load_options(args), progress=progress)


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `load` that the flags name."""
    names = ("device", "dtype", "revision", "cache_dir", "offline")
    return {name: getattr(args, name) for name in names} | {"kernels": not args.no_kernels}


def model_name(name: str | None) -> str:
    """A model's name without its parent folders, as for a title: "Phi-3-mini-4k-instruct"."""
    known = Path(name).resolve().name if name and Path(name).exists() else name
    return (known or DEFAULT_FILE).rsplit("/", 1)[-1].removesuffix(".gguf")


def load_writer(args: argparse.Namespace, flag: str = "--model") -> LM:
    """The model that the flags name. Raises UsageError, with the name of the flag, unless it predicts the next token.

    That is checked first: no prompt is too long for a model that cannot continue it.
    """
    lm = load_model(args)
    check_writes(lm, flag)
    return lm


def load_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """The tokenizer of the model that the flags name, without its weights."""
    return load_tokenizer_of(args.model, args.revision, args.cache_dir, args.offline)
