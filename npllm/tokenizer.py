"""Text to token ids and back, and the chat format.

A model reads and writes token ids: indices into a vocabulary of pieces. " Paris" is one piece; a rare word is several.
Each checkpoint has its own vocabulary, and the `tokenizers` library splits text as the checkpoint's files specify.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .text.chat_ids import Messages, Renderer, chat_ids
from .text.library_errors import library_errors
from .text.token_ids import checked_ids, with_rows
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
        self.rows: int | None = None  # of the model's embeddings: often more than there are pieces, rarely fewer

    @cached_property
    def size(self) -> int:
        """The largest id + 1."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        kind, chat = type(self.backend.model).__name__, "no " if self.chat_template is None else ""
        return f"Tokenizer({kind}, {self.size:,} pieces, end ids {sorted(self.end_ids)}, {chat}chat format)"

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Control tokens in it are parsed; BOS is prepended if the checkpoint says so."""
        with library_errors():
            return with_rows(self.backend.encode(checked_text(text)).ids, self.rows, self.backend)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of the ids, "" for an id without a piece. Bytes that are not UTF-8 become U+FFFD."""
        with library_errors():
            return self.backend.decode(self.checked_ids(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Any) -> list[str]:
        """Each id's piece as the vocabulary spells it, with Ġ or ▁ for a space; "" for an id without a piece."""
        return [self.backend.id_to_token(i) or "" for i in self.checked_ids(ids)]

    def checked_ids(self, ids: Any) -> list[int]:
        """The ids as a list. Raises UsageError if one has neither a piece nor a row."""
        return checked_ids(ids, max(len(self), self.rows or 0))

    def chat_ids(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation in the chat format that the model was trained on; see text/chat_ids.py."""
        with library_errors():
            ids = chat_ids(self.backend, self.render, messages, add_generation_prompt)
            return with_rows(ids, self.rows, self.backend)
