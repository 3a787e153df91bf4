"""The text of ids that come one by one: never half a character, never a space too many."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

# A character has at most 4 bytes and a piece at least one, so 4 pieces hold the start of a character that is not over.
WINDOW = 4


class TextStream:
    """The text of ids that come one by one, in pieces that end with a whole character.

    The pieces join to what `decode` adds to the text of the ids before them: a tokenizer that drops the first space of
    a text does not drop the one between "is" and "Paris". Special tokens give no text, as do ids without a piece.

    Parameters
    ----------
    tokenizer : the model's
    context_ids : the ids before, such as the prompt's
    """

    def __init__(self, tokenizer: "Tokenizer", context_ids: Sequence[int] = ()):
        self.backend = tokenizer.backend
        self.special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        # Llama's decoder reads byte tokens such as <0xF0> together, as far as they follow each other: one wrong byte
        # makes U+FFFD of them all. So the text of such a run is known when it is over.
        decoder = self.backend.decoder
        self.waits_for_bytes = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self.window: list[int] = []  # the last ids whose text was given: enough to tell what the next ones add
        for i in reversed(context_ids):
            if self.piece(i) is not None:
                self.window.insert(0, i)
                if len(self.window) >= WINDOW and not self.is_byte(i):
                    break
        self.given = self.text(self.window)  # what of the window's text was given
        self.waiting: list[int] = []

    def step(self, token: int) -> str:
        """The text that this id makes certain, often "" and then that of several ids at once."""
        if self.piece(token) is None:
            return ""
        self.waiting.append(token)
        return "" if self.is_byte(token) else self.give(settled)

    def flush(self) -> str:
        """The rest of the text. Half a character is U+FFFD, as `decode` gives it."""
        return self.give(lambda text: text)

    def give(self, part: Callable[[str], str]) -> str:
        """What is new in this part of the text."""
        ids = self.window + self.waiting
        text = self.text(ids)
        if not text.startswith(self.given):  # the context ended within a character, which these ids complete
            self.given = settled(self.given)
        end = max(len(part(text)), len(self.given))
        new = text[len(self.given) : end]
        self.window, self.waiting = ids[-WINDOW:], []
        given = self.text(self.window)
        self.given = given[: len(given) - (len(text) - end)]
        return new

    def text(self, ids: list[int]) -> str:
        """Their text together."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def piece(self, token: int) -> str | None:
        """The id's piece, if it gives text."""
        return None if token in self.special else self.backend.id_to_token(token)

    def is_byte(self, token: int) -> bool:
        """Whether the id stands for one byte of a character, and must wait for the others."""
        return self.waits_for_bytes and re.fullmatch("<0x[0-9A-Fa-f]{2}>", self.piece(token) or "") is not None


def settled(text: str) -> str:
    """The text without a U+FFFD at its end, which the next bytes may make a character."""
    return text.removesuffix("\N{REPLACEMENT CHARACTER}")


def split_at_stop(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """What of the text may be shown, what must wait, and whether a stop string ends it here.

    What may be the beginning of a stop string waits for the next token.

    >>> split_at_stop("one, two", ["two"]), split_at_stop("one, tw", ["two"]), split_at_stop("one, twi", ["two"])
    (('one, ', '', True), ('one, ', 'tw', False), ('one, twi', '', False))
    """
    found = [text.index(s) for s in stop if s in text]
    if found:
        return text[: min(found)], "", True
    beginnings = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    shown = len(text) - max(beginnings, default=0)
    return text[:shown], text[shown:], False
