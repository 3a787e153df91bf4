"""Text to token ids and back, and the chat format.

A model reads and writes token ids, the numbers of the pieces in its vocabulary: " Paris" is one piece, a rare word is
several. Each checkpoint has its own pieces; the `tokenizers` library cuts a text as the checkpoint's files say.

Control tokens such as <|end|> tell the model who speaks. They stand in the vocabulary beside the other pieces, and
`encode` knows them by their text. In a conversation that would let a user write the assistant's part, so `chat_ids`
takes them from the chat template only.

On a first reading `encode` and `decode` are enough; `chat_ids` and `TextStream` are about text at its edges.
"""

import operator
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, SupportsIndex

import tokenizers

from .errors import UsageError

Messages = Sequence[Mapping[str, Any]]  # [{"role": "user", "content": "Hello"}, ...]
# A character has at most 4 bytes and a piece at least one, so 4 pieces hold the start of a character that is not over.
WINDOW = 4


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
        """The ids of a conversation, in the chat format that the model was trained on.

        They are the ids of the whole conversation as one text, if its control tokens are those of the template alone.
        If a message would add one, its text is cut apart from the template's and encoded without control tokens.

        Parameters
        ----------
        messages : [{"role": "user", "content": "Hello"}, ...]
        add_generation_prompt : whether the assistant's turn is opened at the end

        Raises
        ------
        UsageError : there is no chat template, or it does not accept these messages
        ModelFileError : the template fails
        """
        if self.render is None:
            raise UsageError("the model has no chat template: use generate without --chat")
        texts: dict[str, str] = {}  # placeholder -> the message's text; digits, because no template changes them
        over_placeholders = []
        for message in messages:
            if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
                raise UsageError(f"messages: expected texts under role and content, got {dict(message)!r:.80}")
            if not re.fullmatch(
                r"\w+", message["role"]
            ):  # the template writes it as it is: it could hold control tokens
                raise UsageError(f"messages: expected a word as role, got {message['role']!r:.80}")
            content = checked_text(message["content"])
            if text := content.strip():  # the white space around it stays in place: many templates strip it
                placeholder = str(10**40 + secrets.randbelow(10**40))
                texts[placeholder] = text
                content = content.replace(text, placeholder, 1)
            over_placeholders.append({"role": message["role"], "content": content})

        whole = self.render(messages, add_generation_prompt)
        template = self.render(over_placeholders, add_generation_prompt)
        for placeholder, text in texts.items():
            if placeholder not in template and text not in whole:
                warnings.warn(f"the model's chat template leaves out the message {text[:40]!r}", stacklevel=2)
        # A template that looks for certain words in a message writes something else over placeholders.
        placeholders = re.compile(f"({'|'.join(texts) or '(?!)'})")
        filled = placeholders.sub(lambda match: texts[match[0]], template)
        harmless = filled != whole and not any(self.control_ids(text) for text in texts.values())
        if harmless or self.control_ids(whole) == self.control_ids(template):
            return self.backend.encode(whole, add_special_tokens=False).ids
        ids = []
        for part in placeholders.split(template):
            ids += (
                self.encode_plain(texts[part])
                if part in texts
                else self.backend.encode(part, add_special_tokens=False).ids
            )
        return ids

    @cached_property
    def control(self) -> frozenset[int]:
        """The added tokens that a user must not write: all but white space, and what stands for unknown characters."""
        unknown = getattr(self.backend.model, "unk_token", None)
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, t in added.items() if not t.content.isspace() and t.content != unknown)

    def control_ids(self, text: str) -> list[int]:
        """The control tokens that `encode` finds in a text."""
        return [i for i in self.backend.encode(text, add_special_tokens=False).ids if i in self.control]

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a control token."""
        ids = self.plain.encode(text, add_special_tokens=False).ids
        if not self.control.isdisjoint(ids):
            raise UsageError(f"messages: expected plain text, got {text[:40]!r}, always a control token for this model")
        return ids

    @cached_property
    def plain(self) -> tokenizers.Tokenizer:
        """The same tokenizer without added tokens."""
        backend = tokenizers.Tokenizer(self.backend.model)
        backend.normalizer, backend.pre_tokenizer = self.backend.normalizer, self.backend.pre_tokenizer
        return backend


class TextStream:
    """The text of ids that come one by one, in pieces that end with a whole character.

    The pieces join to what `decode` adds to the text of the ids before them: a tokenizer that drops the first space of
    a text does not drop the one between "is" and "Paris". Special tokens give no text, as do ids without a piece.

    Parameters
    ----------
    tokenizer : the model's
    context_ids : the ids before, such as the prompt's
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int] = ()):
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


def checked_text(text: str) -> str:
    """The text, if UTF-8 can write it: half of a surrogate pair, which bytes of other encodings leave, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text: expected UTF-8, got {text[error.start]!r} at character {error.start}") from error
    return text
