"""npllm fill: the tokens that a masked language model puts in the place of [MASK]."""

import argparse
import json

from ..apps.fill import MASKED, gaps
from ..errors import UsageError
from ..inspect.tables import percent
from ..inspect.tokens import padded
from . import options, report

DESCRIPTION = """\
Fill each [MASK] in TEXT with its likeliest tokens, by a masked language model
such as BERT, which sees both sides of the gap. Special tokens in TEXT are
recognized; [CLS] and [SEP] are added as the tokenizer says.
"""
EXAMPLES = """\
examples:
  npllm fill "Paris is the [MASK] of France." -m google-bert/bert-base-uncased
  npllm fill "Who is it?" --pair "It is [MASK]." -m ./bert --top-k 3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_text(parser, "TEXT")
    parser.add_argument("--pair", metavar="TEXT", help="a second text, joined to the first as the tokenizer says")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="show the N likeliest (default: %(default)s)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: ids, and for each mask its position and answers (score, token, token_str,"
        " sequence)",
    )
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Fill, print, and return the exit code."""
    text = options.read_text(args.text, "TEXT")
    pair = None if args.pair is None else options.utf8("--pair", args.pair)
    if args.model is None:
        raise UsageError(
            f"--model: expected {MASKED}, got the default model, which npllm generate runs; give one with -m"
        )
    ids, found = gaps(options.load_model(args), text, args.top_k, pair=pair)
    if args.json:
        result = {"ids": ids, "masks": [gap._asdict() for gap in found]}
        report.write(json.dumps(result, ensure_ascii=not report.writes_all()) + "\n")
        return 0
    for gap in found:
        if len(found) > 1:
            report.write_lines([f"token {gap.position}:"])
        report.write_lines(
            f"{percent(answer['score']):>9}  {padded(answer['token_str'], 16)}  {answer['sequence']}"
            for answer in gap.answers
        )
    return 0
