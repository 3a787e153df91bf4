"""The ids of a conversation, in which nobody can write a control token.

Control tokens such as <|end|> tell the model who speaks. They stand in the vocabulary beside the other pieces, and
`Tokenizer.encode` knows them by their text. In a conversation that would let a user write the assistant's part, so they
are taken from the chat template only.
"""

import re
import secrets
import warnings
from typing import TYPE_CHECKING

import tokenizers

from ..errors import UsageError
from .utf8 import checked_text

if TYPE_CHECKING:
    from ..tokenizer import Messages, Tokenizer


def chat_ids(tokenizer: "Tokenizer", messages: "Messages", add_generation_prompt: bool = True) -> list[int]:
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
    backend, render = tokenizer.backend, tokenizer.render
    if render is None:
        raise UsageError("the model has no chat template: use generate without --chat")
    texts: dict[str, str] = {}  # placeholder -> the message's text; digits, because no template changes them
    over_placeholders = []
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            raise UsageError(f"messages: expected texts under role and content, got {dict(message)!r:.80}")
        if not re.fullmatch(r"\w+", message["role"]):  # the template writes it as it is: it could hold control tokens
            raise UsageError(f"messages: expected a word as role, got {message['role']!r:.80}")
        content = checked_text(message["content"])
        if text := content.strip():  # the white space around it stays in place: many templates strip it
            placeholder = str(10**40 + secrets.randbelow(10**40))
            texts[placeholder] = text
            content = content.replace(text, placeholder, 1)
        over_placeholders.append({"role": message["role"], "content": content})

    whole = render(messages, add_generation_prompt)
    template = render(over_placeholders, add_generation_prompt)
    for placeholder, text in texts.items():
        if placeholder not in template and text not in whole:
            warnings.warn(f"the model's chat template leaves out the message {text[:40]!r}", stacklevel=2)
    # A template that looks for certain words in a message writes something else over placeholders.
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


def control_tokens(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """The added tokens that a user must not write: all but white space, and what stands for unknown characters."""
    unknown = getattr(backend.model, "unk_token", None)
    added = backend.get_added_tokens_decoder()
    return frozenset(i for i, t in added.items() if not t.content.isspace() and t.content != unknown)


def control_ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """The control tokens that `encode` finds in a text."""
    control = control_tokens(backend)
    return [i for i in backend.encode(text, add_special_tokens=False).ids if i in control]


def encode_plain(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of a text in which nothing is a control token."""
    without_added_tokens = tokenizers.Tokenizer(backend.model)
    without_added_tokens.normalizer, without_added_tokens.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    ids = without_added_tokens.encode(text, add_special_tokens=False).ids
    if not control_tokens(backend).isdisjoint(ids):
        raise UsageError(f"messages: expected plain text, got {text[:40]!r}, always a control token for this model")
    return ids
