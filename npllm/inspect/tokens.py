"""The bytes of tokens, and text that shows the characters a terminal or a page would hide or interpret.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

import re
import unicodedata
from collections.abc import Sequence

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


def byte_letters() -> dict[str, bytes]:
    """GPT-2's letters for the bytes: a printable byte is its own letter, the others are mapped to U+0100 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


BYTE_LETTERS = byte_letters()


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
