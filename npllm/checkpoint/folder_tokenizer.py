"""The tokenizer of a folder in Hugging Face layout.

tokenizer.json            the vocabulary, and how text is split: the format of the `tokenizers` library
tokenizer_config.json     the tokens that begin and end a text; in older checkpoints also the chat template
chat_template.jinja       the chat template
special_tokens_map.json   only in older checkpoints: also the tokens that begin and end a text
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from ..errors import ModelFileError
from ..storage.json_file import read_json
from ..tokenizer import Tokenizer
from .chat_template import chat_renderer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_from_folder(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder; its ids are those of transformers.

    Raises
    ------
    ModelFileError : a file is missing or broken
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, found none; copy the whole folder of the checkpoint")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except MemoryError:
        raise
    except Exception as error:  # the library has no exception class for it
        raise ModelFileError(f"{path}: expected a tokenizer, got: {error}; download the file again") from error

    config_path = path.with_name("tokenizer_config.json")
    config, older = read_optional(config_path), read_optional(path.with_name("special_tokens_map.json"))
    named = config if "added_tokens_decoder" in config else config | older
    try:
        special = {name: added_token(named[name], special=True) for name in SPECIAL_TOKENS if named.get(name)}
        more = [added_token(token, special=True) for token in named.get("additional_special_tokens") or ()]
        described = {int(i): added_token(token) for i, token in config.get("added_tokens_decoder", {}).items()}
        template = config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str | None):
            raise TypeError(f"a chat_template that is {type(template).__name__}")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{config_path}: expected the settings of a tokenizer, got: {error!r}") from error
    if path.with_name("chat_template.jinja").is_file():
        template = read_template(path.with_name("chat_template.jinja"))

    # As in transformers, an added token in tokenizer_config.json overrides the one in tokenizer.json.
    backend.add_tokens([described[i] for i in sorted(described)])
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for token in (*special.values(), *more):
        added.setdefault(token.content, token)
    for token in special.values():
        added[token.content].special = True
    backend.add_tokens(list(added.values()))

    texts = {name: token.content for name, token in special.items()}
    # Whether BOS and EOS are added: as in tokenizer_config.json, else as in tokenizer.json.
    flags = {name: config.get(f"add_{name}") for name in ("bos_token", "eos_token")}
    if any(isinstance(flag, bool) for flag in flags.values()):
        current = backend.encode("").tokens
        add = {name: flag if isinstance(flag, bool) else texts.get(name) in current for name, flag in flags.items()}
        add_bos_and_eos(backend, *(texts.get(name) if add[name] else None for name in add))
    return Tokenizer(
        backend,
        end_ids=[
            i for i, token in backend.get_added_tokens_decoder().items() if token.content == texts.get("eos_token")
        ],
        chat_template=template,
        render=None if template is None else chat_renderer(template, texts),
    )


def add_bos_and_eos(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `backend` add only these tokens before and after each text; None for no token."""
    ends = {name: text for name, text in (("bos", bos), ("eos", eos)) if text is not None}
    backend.post_processor = TemplateProcessing(
        single=[name for name in ("bos", "$A", "eos") if name in ends or name == "$A"],
        special_tokens=[
            {"id": name, "ids": [backend.token_to_id(text)], "tokens": [text]} for name, text in ends.items()
        ],
    )


def added_token(value: Any, **flags: bool) -> AddedToken:
    """An added token from its JSON form, a text or an object; `flags` override the object's."""
    fields = value if isinstance(value, Mapping) else {"content": value}
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(fields["content"], **{flag: fields[flag] for flag in known if flag in fields} | flags)


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file does not exist."""
    return read_json(path) if path.exists() else {}


def read_template(path: Path) -> str:
    """The text of a chat template file."""
    try:
        return path.read_text(encoding="utf-8-sig")  # which drops a byte order mark
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: expected UTF-8, got {error}; download the file again") from error
