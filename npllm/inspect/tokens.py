"""The bytes of tokens, and text that shows the characters a terminal or a page would hide or interpret.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

import codecs
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..lm import LM
from ..text.arguments import shown, whole_number
from ..tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> list[bytes | None]:
    """The bytes that each token adds to a text; None for an id without a piece.

    A token need not be a whole character: several may form one together. The decoder shows how a vocabulary spells
    bytes: byte-level ones (GPT-2, Llama 3) have a letter for each byte; those of Llama and Phi-3 write ▁ for a space
    and <0xE2> for a byte of a character without a piece.
    """
    decoder = tokenizer.backend.decoder
    byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
    added = {i: token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items()}

    def one(token: int) -> bytes | None:
        if token in added:
            return added[token].encode()
        piece = tokenizer.backend.id_to_token(token)
        if piece is None:
            return None
        if byte_level:
            return b"".join(BYTE_LETTERS.get(letter, letter.encode()) for letter in piece)
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()

    return [one(token) for token in ids]


class Part(NamedTuple):
    """What a token adds to a text: the text, or a part of a character that several tokens spell."""

    text: str  # of all these tokens; bytes that form no character are escaped
    number: int = 1  # which of them this is
    of: int = 1  # how many they are


def token_texts(pieces: Sequence[bytes | None]) -> list[Part]:
    r"""For each token the text that it is a part of, from the bytes of `token_bytes`.

    >>> [part.text for part in token_texts([b"Hi", b" \xf0\x9f", b"\x99\x82", b"\xff"])]
    ['Hi', ' 🙂', ' 🙂', '\\xff']
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    parts: list[Part] = []
    text, tokens = "", 0
    for position, piece in enumerate(pieces):
        text, tokens = text + decoder.decode(piece or b"", final=position == len(pieces) - 1), tokens + 1
        if not decoder.getstate()[0]:  # no character is incomplete
            parts += [Part(text, number, tokens) for number in range(1, tokens + 1)]
            text, tokens = "", 0
    return parts


def byte_letters() -> dict[str, bytes]:
    """GPT-2's letters for the bytes: a printable byte is its own letter, the others are mapped to U+0100 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


BYTE_LETTERS = byte_letters()


def token_labels(lm: LM, ids: Sequence[int]) -> list[str]:
    """The text of each token, with unprintable characters and incomplete ones escaped; or its id as "#7042"."""
    found = [None] * len(ids) if lm.tokenizer is None else token_bytes(lm.tokenizer, ids)
    return [f"#{i}" if data is None else visible(data) for i, data in zip(ids, found, strict=True)]


def named_token(lm: LM, token: str | int) -> int:
    """The id of a token that is given as its text, such as " Paris", or as its id.

    Raises UsageError if the text is not one token, or the id is outside the vocabulary.
    """
    if not isinstance(token, str):
        return whole_number("token", token, 0, lm.config.vocab_size - 1)
    if lm.tokenizer is None:
        raise UsageError(f"token: expected an id, because the model has no tokenizer, got {shown(token)}")
    known = one_token(lm.tokenizer, token)
    if known is not None and known < lm.config.vocab_size:
        return known
    with_space = one_token(lm.tokenizer, f" {token}")
    hint = "" if with_space is None or not token else f"; did you mean {f' {token}'!r}?"
    parts = token_labels(lm, lm.tokenizer.backend.encode(token, add_special_tokens=False).ids)
    spelled = ", ".join(map(repr, parts[:8])) + (", ..." if len(parts) > 8 else "")
    what = f"{len(parts)}: {spelled}" if parts else "none"
    raise UsageError(f"token: expected one token, got {shown(token)}, which is {what}{hint}")


def one_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of the token that is this text; None if it is several. (Vocabularies with ▁ for a space add one.)"""
    piece = tokenizer.backend.token_to_id(text.replace(" ", "▁"))
    ids = [piece] if piece is not None else tokenizer.backend.encode(text, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 else None


def visible(text: str | bytes) -> str:
    r"""The text with every unprintable character escaped: it cannot move the cursor, change a colour or reverse the
    writing direction. Bytes of incomplete characters are escaped too.

    >>> visible("a\x1b[31m\u202eb"), visible("é".encode()), visible("é".encode()[:1])
    ('a\\x1b[31m\\u202eb', 'é', '\\xc3')
    """
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(text: str) -> int:
    """The width of a visible text on a terminal, in columns: 2 for a wide character, 0 for a combining mark."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


def padded(text: str, width: int) -> str:
    """The visible text padded or truncated to `width` columns; truncated text ends in "..." (ASCII, for any terminal).

    >>> padded("Paris", 7), padded("archipelago", 7), padded("東京", 7)
    ('Paris  ', 'arch...', '東京   ')
    """
    if columns(text) > width:
        while columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - columns(text))
