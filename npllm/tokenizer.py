"""Text to token ids and back, and the chat format.

A model reads and writes token ids: indices into a vocabulary of pieces. " Paris" is one piece; a rare word is several.
Each checkpoint has its own vocabulary, and the `tokenizers` library splits text as the checkpoint's files specify.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

import operator
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, SupportsIndex

from .errors import UsageError
from .text.chat_ids import Messages, Renderer, chat_ids
from .text.utf8 import checked_text

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Text <-> token ids, as a checkpoint's files define them (see checkpoint/folder_tokenizer.py, gguf_tokenizer.py).

    Parameters
    ----------
    backend : the tokenizer of the `tokenizers` library
    end_ids : the ids that end a text
    chat_template : the jinja2 source that formats a conversation as one text; None if the checkpoint has none
    render : the template as a checkpoint/chat_template.py's ChatRenderer, which applies it
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        end_ids: Iterable[int] = (),
        chat_template: str | None = None,
        render: Renderer | None = None,
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.end_ids = backend, frozenset(end_ids)
        self.chat_template, self.render = chat_template, render

    def __len__(self) -> int:
        return self.size

    @cached_property
    def size(self) -> int:
        """The largest id + 1: the embeddings need at least this many rows."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Control tokens in it are parsed; BOS is prepended if the checkpoint says so."""
        return self.backend.encode(checked_text(text)).ids

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = False) -> str:
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(self.checked_ids(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Each id's piece as the vocabulary spells it, with Ġ or ▁ for a space; "" for an id without a piece."""
        return [self.backend.id_to_token(i) or "" for i in self.checked_ids(ids)]

    def checked_ids(self, ids: Iterable[SupportsIndex]) -> list[int]:
        """The ids as a list. Raises UsageError if one is outside the vocabulary."""
        checked = [operator.index(i) for i in ids]
        wrong = [i for i in checked if not 0 <= i < len(self)]
        if wrong:
            raise UsageError(f"token ids: expected 0 to {len(self) - 1}, the vocabulary's range, got {wrong[0]}")
        return checked

    def chat_ids(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation in the chat format that the model was trained on; see text/chat_ids.py."""
        return chat_ids(self.backend, self.render, messages, add_generation_prompt)
