"""The ids of a conversation, in which a user cannot write a control token.

Control tokens such as <|end|> mark who speaks. They are entries of the vocabulary like any other, and
`Tokenizer.encode` recognizes them by their text. In a conversation, this would let a user write the assistant's part.
So only the chat template may produce them: the rendered text comes in parts that name their origin.
"""

import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from ..errors import ModelFileError, UsageError
from .utf8 import checked_text

if TYPE_CHECKING:
    import tokenizers

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "Hello"}, ...]

UNKNOWN, TEMPLATE = -2, -1  # in checkpoint/origin.py 2 is added, because an origin is a character there


class Part(NamedTuple):
    """A part of a rendered conversation. origin: TEMPLATE, the index of a message, or UNKNOWN: perhaps a message."""

    origin: int
    text: str


@runtime_checkable
class Renderer(Protocol):
    """A chat template: checkpoint/chat_template.py."""

    def parts(self, messages: Messages, add_generation_prompt: bool) -> list[Part]:
        """The conversation as consecutive parts of one text; neighbors have different origins."""


class Control(NamedTuple):
    """A control token in a text, at text[start:end]."""

    id: int
    start: int
    end: int


def chat_ids(
    backend: "tokenizers.Tokenizer",
    render: Renderer | None,
    messages: Messages,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a conversation, in the chat format that the model was trained on.

    They are the ids of the rendered text, in which a control token counts only if the template alone wrote it. Anything
    else that looks like one is plain text.

    Parameters
    ----------
    backend : the tokenizer of the `tokenizers` library
    render : the chat template; None if there is none
    messages : [{"role": "user", "content": "Hello"}, ...]
    add_generation_prompt : whether to open the assistant's turn at the end

    Raises
    ------
    UsageError : there is no chat template, it does not accept these messages, or they are not of this form
    ModelFileError : the template fails
    UnavailableError : the process for templates does not start
    """
    if render is None:
        raise UsageError("the model has no chat template: give it a prompt, not messages (generate without --chat)")
    check_messages(messages)

    parts = render.parts(messages, add_generation_prompt)
    text = "".join(part.text for part in parts)
    warn_of_missing(messages, parts, text)
    origins = "".join({TEMPLATE: "T", UNKNOWN: "?"}.get(part.origin, "M") * len(part.text) for part in parts)
    foreign = [token for token in controls(backend, text) if origins[token.start : token.end].strip("T")]
    if not foreign:
        return backend.encode(text, add_special_tokens=False).ids
    for token in foreign:
        if "M" not in origins[token.start : token.end]:
            warnings.warn(
                f"the model's chat template makes {text[token.start : token.end]!r} in a way that a message could:"
                " it is encoded as plain text",
                stacklevel=3,
            )
    written = [
        Control(token.id, run.start() + token.start, run.start() + token.end)
        for run in re.finditer("T+", origins)
        for token in controls(backend, text[slice(*run.span())])
    ]
    return encode_with(backend, text, written)


def check_messages(messages: Any) -> None:
    """Raise UsageError for anything but a list of messages, [{"role": "user", "content": "Hello"}, ...]."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError(f"messages: expected a list of them, got {messages!r:.80}")
    for message in messages:
        fields = message if isinstance(message, Mapping) else {}
        if set(fields) != {"role", "content"} or not all(isinstance(text, str) for text in fields.values()):
            raise UsageError(f"messages: expected strings under role and content, got {message!r:.80}")
        if not re.fullmatch(r"\w+", message["role"]):
            raise UsageError(f"messages: expected a word as role, got {message['role']!r:.80}")
        checked_text(message["content"])


def warn_of_missing(messages: Messages, parts: list[Part], text: str) -> None:
    """Warn about each message that the template leaves out. Raises ModelFileError if it leaves out all text."""
    if not text and any(message["content"].strip() for message in messages):
        raise ModelFileError(
            "the model's chat template: expected the conversation as text, got no text;"
            " give it a prompt, not messages (generate without --chat), or take another copy of the model"
        )
    shown = {part.origin for part in parts if part.text.strip()}
    for i, message in enumerate(messages):
        content = message["content"].strip()
        if content not in text and i not in shown and UNKNOWN not in shown:
            warnings.warn(f"the model's chat template leaves out the message {content[:40]!r}", stacklevel=4)


def control_tokens(backend: "tokenizers.Tokenizer") -> frozenset[int]:
    """The added tokens that a user must not write: all except white space and the token for unknown characters."""
    unknown = getattr(backend.model, "unk_token", None)
    added = backend.get_added_tokens_decoder()
    return frozenset(i for i, t in added.items() if not t.content.isspace() and t.content != unknown)


def controls(backend: "tokenizers.Tokenizer", text: str) -> list[Control]:
    """The control tokens that `encode` finds in a text, without the white space around them that some include."""
    control, found = control_tokens(backend), []
    encoding = backend.encode(text, add_special_tokens=False)
    for i, piece, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
        if i in control:
            at = text.find(piece, start, end)  # -1 for a token that is only found in normalized text
            found.append(Control(i, at, at + len(piece)) if at >= 0 else Control(i, start, end))
    return found


def encode_with(backend: "tokenizers.Tokenizer", text: str, written: list[Control]) -> list[int]:
    """The ids of a text in which only these control tokens count.

    Each is replaced by a word that nobody can guess: a control token of a second tokenizer, which has no others.
    """
    import tokenizers  # here, because the caller has a tokenizer, and other users of this module need none

    second = tokenizers.Tokenizer(backend.model)
    second.normalizer, second.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    added, control = backend.get_added_tokens_decoder(), control_tokens(backend)
    words = {token.id: str(10**40 + secrets.randbelow(10**40)) for token in written}
    second.add_tokens([added[i] for i in sorted(added.keys() - control)])
    for i, word in words.items():
        how = {"lstrip": added[i].lstrip, "rstrip": added[i].rstrip} if i in added else {}
        second.add_tokens([tokenizers.AddedToken(word, normalized=False, **how)])
    pieces, end = [], 0
    for token in written:
        pieces += [text[end : token.start], words[token.id]]
        end = token.end
    ids = second.encode("".join([*pieces, text[end:]]), add_special_tokens=False).ids

    original = {second.token_to_id(word): i for i, word in words.items()}
    original |= {second.token_to_id(added[i].content): i for i in added.keys() - control}
    made = next((i for i in ids if i not in original and i in control), None)  # formed by merges
    if made is not None:
        token_text = backend.id_to_token(made)
        raise UsageError(f"messages: expected plain text, got {token_text!r}, always a control token for this model")
    return [original.get(i, i) for i in ids]
