"""The text of ids that arrive one at a time: never half a character, never an extra space."""

import re
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from .library_errors import library_errors

if TYPE_CHECKING:
    import tokenizers

# A character has at most 4 bytes and a piece at least one, so an incomplete character began within the last 4 pieces.
WINDOW = 4


class TextStream:
    """The text of ids that arrive one at a time, in pieces that end at a character boundary.

    Joined, the pieces are what `decode` adds to the text of the preceding ids: a tokenizer that drops the first space
    of a text does not drop the one between "is" and "Paris". Special tokens and ids without a piece add no text.

    Parameters
    ----------
    backend : the model's tokenizer of the `tokenizers` library
    context_ids : the preceding ids, such as the prompt's
    """

    def __init__(self, backend: "tokenizers.Tokenizer", context_ids: Sequence[int] = ()):
        self.backend = backend
        added = self.backend.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in added.items() if token.special}
        # Llama's decoder decodes consecutive byte tokens such as <0xF0> together: one invalid byte turns all of them
        # into U+FFFD. So the text of such a run is known only when it ends.
        decoder = self.backend.decoder
        self.waits_for_bytes = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self.window: list[int] = []  # the last ids already emitted: enough context to see what the next ones add
        for i in reversed(context_ids):
            if self.piece(i) is not None:
                self.window.insert(0, i)
                if len(self.window) >= WINDOW and not self.is_byte(i):
                    break
        self.emitted = self.text(self.window)  # the part of the window's text already emitted
        self.waiting: list[int] = []

    def step(self, token: int) -> str:
        """The text that this id completes; "" while a character is incomplete."""
        if self.piece(token) is None:
            return ""
        self.waiting.append(token)
        return "" if self.is_byte(token) else self.emit(settled)

    def complete(self) -> str:
        """The rest of the text, if it ends at a character boundary; otherwise "", and the ids go on waiting."""
        text = self.text(self.window + self.waiting)
        return self.flush() if text == settled(text) else ""

    def flush(self) -> str:
        """The rest of the text. An incomplete character becomes U+FFFD, as in `decode`."""
        return self.emit(lambda text: text)

    def emit(self, part: Callable[[str], str]) -> str:
        """The text not yet emitted, up to where `part` cuts it off."""
        ids = self.window + self.waiting
        text = self.text(ids)
        if not text.startswith(self.emitted):  # the context ended within a character, which these ids complete
            self.emitted = settled(self.emitted)
        end = max(len(part(text)), len(self.emitted))
        new = text[len(self.emitted) : end]
        self.window, self.waiting = ids[-WINDOW:], []
        emitted = self.text(self.window)
        self.emitted = emitted[: len(emitted) - (len(text) - end)]
        return new

    def text(self, ids: list[int]) -> str:
        """The text of these ids, without special tokens."""
        with library_errors():
            return self.backend.decode(ids, skip_special_tokens=True)

    def piece(self, token: int) -> str | None:
        """The id's piece; None for an id that adds no text."""
        return None if token in self.special else self.backend.id_to_token(token)

    def is_byte(self, token: int) -> bool:
        """Whether the id is a single byte of a character and must wait for the others."""
        return self.waits_for_bytes and re.fullmatch("<0x[0-9A-Fa-f]{2}>", self.piece(token) or "") is not None


def settled(text: str) -> str:
    """The text without a final U+FFFD, which the next bytes may complete."""
    return text.removesuffix("\N{REPLACEMENT CHARACTER}")


class StoppingStream:
    """A TextStream up to the first stop string.

    As in transformers, a stop string is also found in the texts of special tokens, which are not shown, and across
    tokens: half of it may be special.

    Parameters
    ----------
    backend, context_ids : as in TextStream
    stop : the stop strings
    """

    def __init__(self, backend: "tokenizers.Tokenizer", context_ids: Sequence[int], stop: Sequence[str]):
        self.stream, self.stop = TextStream(backend, context_ids), stop
        self.waiting, self.shown = "", b""  # the text that waits; for each character 1 if it is to be shown, else 0

    def step(self, token: int | None, last: bool) -> tuple[str, bool]:
        """The text that may be shown after this id, and whether a stop string was found.

        token : None for an end token, which has no text
        last : whether no other id follows
        """
        if token is not None:
            self.add(self.stream.step(token))
            if self.stop and token in self.stream.special:
                self.add(self.stream.complete())
                self.add(self.stream.special[token], shown=False)
        if last:
            self.add(self.stream.flush())
        text, waiting, stopped = split_at_stop(self.waiting, self.stop)
        if last and not stopped:
            text, waiting = self.waiting, ""
        shown = "".join(compress(text, self.shown))
        self.waiting, self.shown = waiting, self.shown[len(text) :]
        return shown, stopped

    def add(self, text: str, shown: bool = True) -> None:
        """Append to the text that waits."""
        self.waiting += text
        self.shown += bytes([shown]) * len(text)


def split_at_stop(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """The text that may be shown, the text that must wait, and whether a stop string was found.

    What waits may be the beginning of a stop string.

    >>> split_at_stop("one, two", ["two"]), split_at_stop("one, tw", ["two"]), split_at_stop("one, twi", ["two"])
    (('one, ', '', True), ('one, ', 'tw', False), ('one, twi', '', False))
    """
    found = [text.index(s) for s in stop if s in text]
    if found:
        return text[: min(found)], "", True
    # From the front: all text before the first beginning is shown, so no place is tried twice in a stream.
    begins = range(max(0, len(text) - max(map(len, stop), default=0)), len(text))
    shown = next((n for n in begins if any(s.startswith(text[n:]) for s in stop)), len(text))
    return text[:shown], text[shown:], False
