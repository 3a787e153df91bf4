"""npllm tokenize: the tokens of a text."""

import argparse
import json

from ..inspect.tokens import Part, columns, padded, token_bytes, token_texts, visible
from ..tokenizer import Tokenizer
from . import options, report

DESCRIPTION = """\
Show the tokens of TEXT, one per line: the id, the piece as the vocabulary spells
it, and its text. A character may take several tokens: "1/2 of". Characters that a
terminal would obey, such as those that change the writing direction, are escaped.

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
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: ids, pieces, texts (that of several tokens at the last of them)",
    )
    options.add_model_flags(parser, weights=False)


def run(args: argparse.Namespace) -> int:
    """Tokenize, print, and return the exit code."""
    text = options.read_text(args.text, "TEXT")
    tokenizer = options.load_tokenizer(args)
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    parts = token_texts([text_bytes(data, tokenizer) for data in token_bytes(tokenizer, ids)])
    if args.json:
        texts = [part.text if part.number == part.of else "" for part in parts]
        found = {"ids": ids, "pieces": pieces, "texts": texts}
        report.write(json.dumps(found, ensure_ascii=not report.writes_all()) + "\n")
    else:
        spelled = [quoted(piece) for piece in pieces]
        width = max(map(columns, spelled), default=0)
        report.write_lines(
            f"{token:6}  {padded(piece, width)}  {described(part)}"
            for token, piece, part in zip(ids, spelled, parts, strict=True)
        )
    return 0


def text_bytes(data: bytes | None, tokenizer: Tokenizer) -> bytes | None:
    """The bytes of a token without BERT's mark for a token that continues a word: "##ing" is "ing"."""
    decoder = tokenizer.backend.decoder
    word_pieces = decoder is not None and b"WordPiece" in decoder.__getstate__()
    return data.removeprefix(b"##") if data and word_pieces else data


def quoted(text: str) -> str:
    """A text in quotes, with every unprintable character escaped."""
    mark = '"' if "'" in text else "'"
    return f"{mark}{visible(text)}{mark}"


def described(part: Part) -> str:
    """The text of a token; of one of several, which part it is."""
    return quoted(part.text) if part.of == 1 else f"{part.number}/{part.of} of {quoted(part.text)}"
