"""The ids of a conversation, in which a user cannot write a control token.

Control tokens such as <|end|> mark who speaks. They are entries of the vocabulary like any other, and
`Tokenizer.encode` recognizes them by their text. In a conversation this would let a user write the assistant's part. So
only the chat template may produce them.
"""

import re
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from .utf8 import checked_text

if TYPE_CHECKING:
    import tokenizers

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "Hello"}, ...]


def chat_ids(
    backend: "tokenizers.Tokenizer",
    render: Callable[[Messages, bool], str] | None,
    messages: Messages,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a conversation, in the chat format that the model was trained on.

    They are the ids of the rendered conversation if all control tokens in it come from the template. If a message would
    add one, its text is separated from the template's and encoded without control tokens.

    Parameters
    ----------
    backend : the tokenizer of the `tokenizers` library
    render : applies the chat template: render(messages, add_generation_prompt) -> text; None if there is no template
    messages : [{"role": "user", "content": "Hello"}, ...]
    add_generation_prompt : whether to open the assistant's turn at the end

    Raises
    ------
    UsageError : there is no chat template, or it does not accept these messages
    ModelFileError : the template fails
    """
    if render is None:
        raise UsageError("the model has no chat template: use generate without --chat")
    texts: dict[str, str] = {}  # placeholder -> the message's text; digits, because no template changes them
    with_placeholders = []
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            raise UsageError(f"messages: expected strings under role and content, got {dict(message)!r:.80}")
        if not re.fullmatch(r"\w+", message["role"]):  # the template writes it verbatim: it could hold control tokens
            raise UsageError(f"messages: expected a word as role, got {message['role']!r:.80}")
        content = checked_text(message["content"])
        if text := content.strip():  # the white space around it stays in place: many templates strip it
            placeholder = str(10**40 + secrets.randbelow(10**40))
            texts[placeholder] = text
            content = content.replace(text, placeholder, 1)
        with_placeholders.append({"role": message["role"], "content": content})

    whole = render(messages, add_generation_prompt)
    template = render(with_placeholders, add_generation_prompt)
    for placeholder, text in texts.items():
        if placeholder not in template and text not in whole:
            warnings.warn(f"the model's chat template leaves out the message {text[:40]!r}", stacklevel=2)
    # A template that looks for certain words in a message renders placeholders differently.
    placeholders = re.compile(f"({'|'.join(texts) or '(?!)'})")
    filled = placeholders.sub(lambda match: texts[match[0]], template)
    harmless = filled != whole and not any(control_ids(backend, text) for text in texts.values())
    if harmless or control_ids(backend, whole) == control_ids(backend, template):
        return backend.encode(whole, add_special_tokens=False).ids
    ids = []
    for part in placeholders.split(template):
        ids += (
            encode_plain(backend, texts[part]) if part in texts else backend.encode(part, add_special_tokens=False).ids
        )
    return ids


def control_tokens(backend: "tokenizers.Tokenizer") -> frozenset[int]:
    """The added tokens that a user must not write: all except white space and the token for unknown characters."""
    unknown = getattr(backend.model, "unk_token", None)
    added = backend.get_added_tokens_decoder()
    return frozenset(i for i, t in added.items() if not t.content.isspace() and t.content != unknown)


def control_ids(backend: "tokenizers.Tokenizer", text: str) -> list[int]:
    """The control tokens that `encode` finds in a text."""
    control = control_tokens(backend)
    return [i for i in backend.encode(text, add_special_tokens=False).ids if i in control]


def encode_plain(backend: "tokenizers.Tokenizer", text: str) -> list[int]:
    """The ids of a text in which nothing is parsed as a control token."""
    import tokenizers  # here, because the caller has a tokenizer, and other users of this module need none

    without_added_tokens = tokenizers.Tokenizer(backend.model)
    without_added_tokens.normalizer, without_added_tokens.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    ids = without_added_tokens.encode(text, add_special_tokens=False).ids
    if not control_tokens(backend).isdisjoint(ids):
        raise UsageError(f"messages: expected plain text, got {text[:40]!r}, always a control token for this model")
    return ids
