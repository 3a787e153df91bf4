"""npllm evaluate: how well a model predicts a text, and the effect of rounding its weights."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..apps.evaluate import Reference, Scores, evaluate, joined, reference, summary
from ..checkpoint.load import DTYPES
from ..errors import UsageError
from ..lm import LM
from ..loop import as_ids
from ..storage.paths import input_path
from ..text.one_line import escaped
from . import options, report

if TYPE_CHECKING:
    from tqdm import tqdm

DESCRIPTION = """\
Measure the perplexity of the text in TEXTFILE, and its bits per byte.

With --against, also measure how far the model's predictions are from those of a
reference: the Kullback-Leibler divergence KL(reference || model) per token, in
nats (mean, 99th percentile, largest), and how often both models have the same
likeliest token. The reference is the same model in another dtype, such as
float32, or another model with the same tokenizer.
"""
EXAMPLES = """\
examples:
  npllm evaluate letter.txt
  npllm evaluate letter.txt --dtype bfloat16 --against float32
  npllm evaluate letter.txt -m ./model-8bit --against ./model
  head -c 20000 book.txt | npllm evaluate - --window 1024 --stride 512 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", metavar="TEXTFILE", help="the text, in UTF-8; - for stdin")
    parser.add_argument(
        "--against", metavar="MODEL|DTYPE", help=f"the reference: a model, or a dtype: {', '.join(DTYPES)}"
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens per window (default: 512)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens between the starts of two windows (default: half the window)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and return the exit code."""
    text = read_file(args.file)
    theirs, against = None, None
    if args.against is not None:
        theirs, against = predictions(
            args, text
        )  # one model at a time: its blocks are freed before the other is loaded
    lm = options.load_writer(args)
    ids = as_ids(lm, text)
    if theirs is not None and theirs != ids:
        raise UsageError(
            f"--against {args.against}: expected a model with the same tokenizer, got other tokens for the text"
        )
    window, stride = windows_of(args, lm)
    pieces: list[Scores] = []
    with bar(args.file, len(ids) - 1) as progress:
        for piece in evaluate(lm, ids, window, stride, against):
            pieces.append(piece)
            progress.update(len(piece.losses))

    size = len(text.encode())
    first = "" if lm.tokenizer is None else lm.tokenizer.decode(ids[:1])
    # The first token is not scored, so its bytes do not count. A prepended BOS token is not part of the text.
    scored_bytes = size - (len(first.encode()) if text.startswith(first) else 0)
    result = {
        "model": args.model or "the default model",
        "dtype": args.dtype,
        "against": args.against,
        "tokens": len(ids),
        "bytes": size,
        "window": window,
        "stride": stride,
        **summary(joined(pieces), scored_bytes),
    }
    if args.json:
        report.write(json.dumps(result, ensure_ascii=not report.writes_all()) + "\n")
    else:
        report.write_lines(lines(result))
    return 0


def read_file(name: str) -> str:
    """The text to evaluate."""
    if name == "-":
        text = options.read_text("-", "TEXTFILE")
    else:
        try:
            text = options.file_text(input_path(name, name, pipes=True).read_bytes(), name)
        except OSError as error:
            raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    if not text:
        raise UsageError(f"{name}: the text is empty: expected at least two tokens")
    return text


def predictions(args: argparse.Namespace, text: str) -> tuple[list[int], Reference]:
    """The ids of the text under the reference's tokenizer, and the reference's predictions for them."""
    if args.against in DTYPES:
        other = {"dtype": args.against}
    else:
        other = {"model": args.against, "dtype": "auto", "revision": None}
    lm = options.load_writer(argparse.Namespace(**{**vars(args), **other}), "--against")
    ids = as_ids(lm, text)
    with bar(f"reference {args.against}", len(ids) - 1) as progress:
        for made in reference(lm, ids, *windows_of(args, lm)):
            progress.update(made.hidden[-1].shape[0])
    return ids, made


def windows_of(args: argparse.Namespace, lm: LM) -> tuple[int, int]:
    """The values of --window and --stride, or their defaults."""
    window = min(512, lm.config.max_position_embeddings) if args.window is None else args.window
    return window, window // 2 if args.stride is None else args.stride


def bar(what: str, tokens: int) -> "tqdm[Any]":
    """A progress bar, if stderr is a terminal."""
    from tqdm import tqdm  # here, because only this shows a bar

    quiet = sys.stderr is None or not sys.stderr.isatty()
    return tqdm(total=tokens, unit=" tokens", desc=escaped(what), disable=quiet, leave=False)


def lines(result: dict[str, Any]) -> list[str]:
    """The statistics as text."""
    rows = {
        "perplexity": f"{result['perplexity']:.4f}",
        "bits per byte": "-" if result["bits_per_byte"] is None else f"{result['bits_per_byte']:.4f}",
    }
    if result["against"] is not None:
        rows |= {
            f"perplexity of the reference, {result['against']}": f"{result['reference_perplexity']:.4f}",
            "KL(reference || model), mean": f"{result['mean_kl_divergence']:.6f} nats",
            "    99th percentile": f"{result['kl_divergence_99']:.6f} nats",
            "    largest": f"{result['max_kl_divergence']:.6f} nats",
            "same likeliest token": f"{result['same_top_share']:.2%}",
        }
    width = max(map(len, rows))
    counts = f"{result['scored_tokens']:,} of {result['tokens']:,} tokens scored, {result['bytes']:,} bytes"
    return [
        f"{counts}, windows of {result['window']}, stride {result['stride']}",
        *(f"{name:{width}}  {value}" for name, value in rows.items()),
    ]
