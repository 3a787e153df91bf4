"""The tokenizer of a folder in Hugging Face layout.

tokenizer.json            the vocabulary, and how text is split: the format of the `tokenizers` library
tokenizer_config.json     the tokens that begin and end a text; in older checkpoints also the chat template
chat_template.jinja       the chat template
special_tokens_map.json   only in older checkpoints: also the tokens that begin and end a text
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.normalizers import BertNormalizer
from tokenizers.processors import TemplateProcessing

from ..errors import ModelFileError, NpllmError
from ..storage.json_file import LARGEST_JSON, parse_json, read_json
from ..text.library_errors import library_errors
from ..tokenizer import Tokenizer
from .chat_template import ChatRenderer
from .tokenizer_check import check_tokenizer

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_from_folder(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder; its ids are those of transformers.

    Raises
    ------
    ModelFileError : a file is missing or broken
    """
    path = Path(folder)
    files = read_files(path)
    check_tokenizer(path, files)
    with library_errors(str(path / "tokenizer.json")):
        backend, special, template = build(path, files)
    if (path / "chat_template.jinja").is_file():
        template = read_template(path / "chat_template.jinja")
    eos = special.get("eos_token")
    return Tokenizer(
        backend,
        end_ids=[i for i, token in backend.get_added_tokens_decoder().items() if token.content == eos],
        chat_template=template,
        render=None if template is None else ChatRenderer(template, special),
    )


def read_files(folder: Path) -> list[bytes]:
    """The contents of tokenizer.json, tokenizer_config.json and special_tokens_map.json; b"{}" for a missing one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, found none; copy the whole folder of the checkpoint")
    paths = [path, *(folder / name for name in SETTINGS)]
    return [checked_bytes(one) if one.exists() else b"{}" for one in paths]


def build(folder: Path, files: Sequence[bytes]) -> tuple[tokenizers.Tokenizer, dict[str, str], str | None]:
    """The library's tokenizer, the texts of the named special tokens, and the chat template in the settings."""
    path, config_path = folder / "tokenizer.json", folder / SETTINGS[0]
    try:
        backend = tokenizers.Tokenizer.from_buffer(without_padding(files[0], path))
    except (NpllmError, MemoryError):
        raise
    except Exception as error:  # the library has no exception class for it
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise ModelFileError(f"{path}: expected a tokenizer, got: {reason}; download the file again") from error

    config, older = (parse_json(text, folder / name) for text, name in zip(files[1:], SETTINGS, strict=True))
    named = config if "added_tokens_decoder" in config else config | older
    try:
        special, more = special_tokens(named)
        described = {int(i): added_token(token) for i, token in config.get("added_tokens_decoder", {}).items()}
        template = config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str | None):
            raise TypeError(f"a chat_template that is {type(template).__name__}")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        reason = f"{error!r:.200}"
        raise ModelFileError(f"{config_path}: expected the settings of a tokenizer, got: {reason}") from error

    if isinstance(backend.normalizer, BertNormalizer) and is_berts(folder, config):
        backend.normalizer = bert_normalizer(config, config_path)
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
    return backend, texts, template


def is_berts(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether transformers takes its class BertTokenizer: by its name, or without one by the model's type."""
    name = config.get("tokenizer_class")
    if name is None and (folder / "config.json").is_file():
        return read_json(folder / "config.json").get("model_type") == "bert"
    return name in ("BertTokenizer", "BertTokenizerFast")


def bert_normalizer(config: Mapping[str, Any], where: Path) -> BertNormalizer:
    """BERT's normalizer. As in transformers, the one in tokenizer.json has no say."""
    flags = {
        "do_lower_case": (True, bool),
        "tokenize_chinese_chars": (True, bool),
        "strip_accents": (None, bool | None),
    }
    found = {name: config.get(name, default) for name, (default, _) in flags.items()}
    for name, (_, kind) in flags.items():
        if not isinstance(found[name], kind):
            raise ModelFileError(f"{where}: {name}: expected true or false, got {found[name]!r:.80}")
    return BertNormalizer(
        lowercase=found["do_lower_case"],
        handle_chinese_chars=found["tokenize_chinese_chars"],
        strip_accents=found["strip_accents"],
    )


def without_padding(data: bytes, path: Path) -> bytes:
    """The tokenizer.json without settings for padding and truncation: npllm does neither, and 2**40 of them crash."""
    keys = (b'"padding"', b'"truncation"')
    found = [data[i + len(key) : i + len(key) + 100] for key in keys for i in positions(data, key)]
    if not any(re.match(rb"\s*:\s*\{", after) for after in found):  # null, or pieces of the vocabulary
        return data
    return json.dumps(parse_json(data, path) | {"padding": None, "truncation": None}).encode()


def positions(data: bytes, key: bytes) -> Iterator[int]:
    """Where a key occurs."""
    i = data.find(key)
    while i >= 0:
        yield i
        i = data.find(key, i + 1)


def special_tokens(named: Mapping[str, Any]) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The special tokens that have names, and the others.

    As in transformers: any key that ends in _token names one, and extra_special_tokens holds names or only tokens. It
    was called additional_special_tokens before version 5.
    """
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or ()
    if not isinstance(extra, Mapping | list | tuple):
        raise TypeError(f"extra_special_tokens that are {type(extra).__name__}")
    by_name = dict(extra) if isinstance(extra, Mapping) else {}
    custom = {name: value for name, value in named.items() if name.endswith("_token") and is_token(value)}
    names = {name: named.get(name) for name in SPECIAL_TOKENS} | custom | by_name
    special = {name: added_token(value, special=True) for name, value in names.items() if value}
    # A text is special; an object says whether it is.
    flags = [{} if isinstance(token, Mapping) else {"special": True} for token in extra]
    more = [] if by_name else [added_token(token, **flag) for token, flag in zip(extra, flags, strict=True)]
    return {name: token for name, token in special.items() if token.content}, [t for t in more if t.content]


def is_token(value: Any) -> bool:
    """Whether a value is a token under a name that is not one of the usual."""
    return isinstance(value, str) or (isinstance(value, Mapping) and value.get("__type") == "AddedToken")


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
    if not isinstance(fields["content"], str):
        raise TypeError(f"a token that is {type(fields['content']).__name__}")
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(fields["content"], **{flag: fields[flag] for flag in known if flag in fields} | flags)


def checked_bytes(path: Path) -> bytes:
    """The content of a file that is not too large."""
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ModelFileError(f"{path}: expected at most {LARGEST_JSON} bytes, got {size}; download the file again")
    return path.read_bytes()


def read_template(path: Path) -> str:
    """The text of a chat template file."""
    try:
        return path.read_text(encoding="utf-8-sig")  # which drops a byte order mark
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: expected UTF-8, got {error}; download the file again") from error
