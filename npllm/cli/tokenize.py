"""npllm tokenize: the tokens of a text."""

import argparse
import json

from . import options, report

DESCRIPTION = """\
Show the tokens of TEXT, one per line: the id, and the piece in the vocabulary.

Special tokens in TEXT, such as <|end|>, are parsed as such, as in the prompt of
generate.
"""
EXAMPLES = """\
examples:
  npllm tokenize "Have the bards who preceded me left any theme unsung?"
  npllm tokenize --json < letter.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_text(parser, "TEXT")
    parser.add_argument("--json", action="store_true", help='print one JSON object: {"ids": [...], "pieces": [...]}')
    options.add_model_flags(parser, weights=False)


def run(args: argparse.Namespace) -> int:
    """Tokenize, print, and return the exit code."""
    text = options.read_text(args.text, "TEXT")
    tokenizer = options.load_tokenizer(args)
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    if args.json:
        report.write(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=not report.writes_all()) + "\n")
    else:
        report.write_lines(f"{token:6}  {piece!r}" for token, piece in zip(ids, pieces, strict=True))
    return 0
