"""Text to token ids and back, and the chat format.

A model reads and writes token ids, the numbers of the pieces in its vocabulary: " Paris" is one piece, a rare word is
several. Each checkpoint has its own pieces; the `tokenizers` library cuts a text as the checkpoint's files say.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import SupportsIndex

import tokenizers

from .errors import UsageError
from .text.chat_ids import chat_ids
from .text.utf8 import checked_text

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "Hello"}, ...]


class Tokenizer:
    """Text <-> token ids, as a checkpoint's files say (read by checkpoint/folder_tokenizer.py and gguf_tokenizer.py).

    Parameters
    ----------
    backend : the tokenizer of the `tokenizers` library
    end_ids : the ids that end a text
    chat_template : how a conversation is written as one text, in jinja2; None where the checkpoint has none
    render : fills in the template: render(messages, add_generation_prompt) -> text
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        end_ids: Iterable[int] = (),
        chat_template: str | None = None,
        render: Callable[[Messages, bool], str] | None = None,
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.end_ids = backend, frozenset(end_ids)
        self.chat_template, self.render = chat_template, render

    def __len__(self) -> int:
        return self.size

    @cached_property
    def size(self) -> int:
        """The largest id + 1: how many rows the embeddings need at least."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Control tokens in it are parsed; BOS is put in front where the checkpoint says so."""
        return self.backend.encode(checked_text(text)).ids

    def decode(self, ids: Iterable[SupportsIndex], skip_special_tokens: bool = False) -> str:
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(self.checked_ids(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Each id's piece as the vocabulary spells it, where Ġ or ▁ is a space; "" for an id that has none."""
        return [self.backend.id_to_token(i) or "" for i in self.checked_ids(ids)]

    def checked_ids(self, ids: Iterable[SupportsIndex]) -> list[int]:
        """The ids as a list, all of them in the vocabulary's range."""
        checked = [operator.index(i) for i in ids]
        wrong = [i for i in checked if not 0 <= i < len(self)]
        if wrong:
            raise UsageError(f"token ids: expected 0 to {len(self) - 1}, as the vocabulary has them, got {wrong[0]}")
        return checked

    def chat_ids(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation in the chat format that the model was trained on; see text/chat_ids.py."""
        return chat_ids(self, messages, add_generation_prompt)
