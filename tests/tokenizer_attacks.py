"""Hostile tokenizer.json files: what makes the `tokenizers` library panic, raise, abort, hang or take all memory."""

import json
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
LETTERS = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz <>[]|")}


def file(model: Any = None, **parts: Any) -> bytes:
    """A tokenizer.json: by default of one piece for each letter."""
    bpe = {"type": "BPE", "vocab": LETTERS, "merges": []}
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "model": bpe if model is None else model, **parts}
    ).encode()


def bpe(**keys: Any) -> dict[str, Any]:
    """A BPE model of letters with other settings."""
    return {"type": "BPE", "vocab": LETTERS, "merges": []} | keys


def added(**keys: Any) -> list[dict[str, Any]]:
    """An added token."""
    return [{"id": 32, "content": "<end>"} | SPECIAL | keys]


def split(regex: str, behavior: str = "Isolated") -> dict[str, Any]:
    """A pre-tokenizer that splits at a regular expression."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A normalizer or decoder that replaces a pattern."""
    return {"type": "Replace", "pattern": pattern, "content": content}


PADDING = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
PADDING |= {"pad_type_id": 0, "pad_token": "a"}
PREFIX = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
UNIGRAM = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", -2.0]], "byte_fallback": False}

# Raise or panic. Each is refused in one line.
FAIL = {
    # raise at encoding
    "WordPiece without [UNK]": file({"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}}),
    "WordPiece of one letter": file(
        {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 1,
            "vocab": {"a": 0},
        }
    ),
    "WordLevel without its unk": file({"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}),
    "WordLevel of nothing": file({"type": "WordLevel", "unk_token": "[UNK]", "vocab": {}}),
    "Unigram without unk": file(UNIGRAM),
    "Unigram without unk, byte fallback": file(UNIGRAM | {"byte_fallback": True}),
    "BPE without its unk": file(bpe(unk_token="<unk>")),
    "BPE without its unk, byte fallback": file(bpe(unk_token="<unk>", byte_fallback=True)),
    "BPE without its unk, fused": file(bpe(unk_token="<unk>", fuse_unk=True)),
    # refused when it is read
    "Unigram with unk beyond": file(UNIGRAM | {"unk_id": 2}),
    "Unigram with a huge unk": file(UNIGRAM | {"unk_id": 2**63}),
    "Unigram of nothing": file(UNIGRAM | {"vocab": []}),
    "Unigram, unk in nothing": file(UNIGRAM | {"vocab": [], "unk_id": 0}),
    "a negative id": file(bpe(vocab={"a": -1})),
    "an id of 2**32": file(bpe(vocab={"a": 2**32})),
    "an id of 1.5": file(bpe(vocab={"a": 1.5})),
    "a merge of nothing": file(bpe(merges=[""])),
    "a merge of one": file(bpe(merges=["a"])),
    "a merge of three": file(bpe(merges=["a b c"])),
    "a merge without its result": file(bpe(merges=["a b"])),
    "a dropout of 2": file(bpe(dropout=2.0)),
    "no such model": file({"type": "Nothing", "vocab": {}}),
    "no such normalizer": file(normalizer={"type": "Nothing"}),
    "a list": b"[]",
    "a number": b"7",
    "nothing": b"",
    "an open object": b'{"version": "1.0"',
    "not UTF-8": b'{"version": "\xff"}',
    "a surrogate": file().replace(b'"a"', b'"\\ud800"'),
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep normalizers": b'{"model":{"type":"BPE","vocab":{},"merges":[]},"normalizer":'
    + b'{"type":"Sequence","normalizers":[' * 50_000
    + b"]}" * 50_000
    + b"}",
    "an unknown version": file().replace(b'"1.0"', b'"9.0"'),
    "a broken regular expression": file(pre_tokenizer=split("(")),
    "a charsmap of nothing": file(normalizer=PREFIX),
    "a template with an unknown token": file(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    # panic
    "a decoder strips more than there is": file(
        decoder={"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}
    ),
    "digits of many": file(pre_tokenizer={"type": "FixedLength", "length": 0}),
    # hang: backtracking
    "backtracking over a": file(pre_tokenizer=split("(a+a+)+$")),
    "backtracking over x": file(pre_tokenizer=split("(x+x+)+y")),
    "backtracking over any letter": file(pre_tokenizer=split(r"(\w+\s?)+$")),
    "backtracking over blanks": file(pre_tokenizer=split(r"(\s+\s+)+\S\d\S")),
    "backtracking over digits": file(pre_tokenizer=split(r"(\d|\d\d)+a")),
    "backtracking in a normalizer": file(normalizer=replace({"Regex": "(z|zz|zzz)*Q"}, "")),
    "backtracking in a decoder": file(
        decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, replace({"Regex": "(a|aa)+z"}, "")]}
    ),
    "backtracking over a pair": file(pre_tokenizer=split("(pq|pqpq)+X")),
}

# Abort the process, take all memory or hang. Each is refused in one line.
KILL = {
    "a normalizer doubles with the empty pattern": file(
        normalizer={"type": "Sequence", "normalizers": [replace({"String": ""}, "a")] * 30}
    ),
    "a normalizer grows with the empty pattern": file(normalizer=replace({"Regex": ""}, "x" * 1000)),
    "a decoder doubles with the empty pattern": file(
        decoder={"type": "Sequence", "decoders": [replace({"String": ""}, "a")] * 40}
    ),
    "a normalizer that grows": file(
        normalizer={"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 40}
    ),
    "a normalizer that grows with any letter": file(
        normalizer={"type": "Sequence", "normalizers": [replace({"Regex": "."}, "zzzzzzzzzz")] * 12}
    ),
    "a decoder that grows": file(decoder={"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * 40}),
    "a long prefix": file(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "a" * 10_000}, *[replace({"String": "a"}, "a" * 1000)] * 3],
        }
    ),
}


# Each loads, and encodes as it should: what is odd in it has no effect.
HARMLESS = {
    "a decoder replaces the empty pattern": file(decoder=replace({"String": ""}, "a")),
    "a split at the empty pattern": file(pre_tokenizer=split("")),
    "a huge repetition": file(pre_tokenizer=split("(((q{1000}){1000}){1000}){1000}")),
    "padding to 2**40": file(padding=PADDING),
    "padding to 100": file(padding=PADDING | {"strategy": {"Fixed": 100}}),
    "padding to multiples of 0": file(padding=PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 0}),
    "padding to multiples of 2**40": file(padding=PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 2**40}),
    "padding on the left": file(padding=PADDING | {"strategy": {"Fixed": 9}, "direction": "Left"}),
    "truncation to 1": file(
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    ),
    "truncation to 0": file(truncation={"direction": "Left", "max_length": 0, "strategy": "OnlyFirst", "stride": 0}),
    "truncation with a stride": file(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    ),
    "truncation of nothing known": file(truncation={"direction": "Up"}),
    "padding of nothing known": file(padding={"strategy": "Nothing"}),
    "padding and truncation": file(
        padding=PADDING, truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 1}
    ),
    "an added token twice": file(added_tokens=added() + added(id=33)),
    "an added token of nothing": file(added_tokens=added(content="")),
    "an id that two pieces share": file(bpe(vocab=LETTERS | {"A": 25})),
    "an id of 2**32 - 1": file(bpe(vocab=LETTERS | {"A": 2**32 - 1})),
    "a gap in the ids": file(bpe(vocab=LETTERS | {"A": 10**6})),
    "an added token of a million letters": file(added_tokens=added(content="q" * 1_000_000)),
}

TOKEN = "expected the settings of a tokenizer"
# tokenizer_config.json: its text, and the message, or None if it is taken.
SETTINGS = {
    "an empty token": (b'{"bos_token": {"content": ""}, "add_bos_token": true}', None),
    "an empty text": (b'{"bos_token": "", "add_bos_token": true}', None),
    "an empty object": (b'{"bos_token": {}, "add_bos_token": true}', None),
    "an empty list": (b'{"bos_token": []}', None),
    "null": (b'{"bos_token": null, "add_bos_token": true}', None),
    "nothing": (b"{}", None),
    "a flag that is a text": (b'{"add_bos_token": "yes"}', None),
    "extra tokens that are null": (b'{"extra_special_tokens": null}', None),
    "extra tokens by name": (b'{"extra_special_tokens": {"image_token": "<image>"}}', None),
    "an empty extra token": (b'{"extra_special_tokens": ["", {"content": ""}]}', None),
    "a number": (b'{"bos_token": 7}', TOKEN),
    "true": (b'{"bos_token": true}', TOKEN),
    "a list": (b'{"bos_token": ["<s>"]}', TOKEN),
    "an object without content": (b'{"bos_token": {"text": "<s>"}}', TOKEN),
    "content that is a number": (b'{"bos_token": {"content": 7}}', TOKEN),
    "content that is null": (b'{"bos_token": {"content": null}}', TOKEN),
    "content that is a list": (b'{"bos_token": {"content": ["a"]}}', TOKEN),
    "a surrogate": (b'{"bos_token": "\\ud800"}', "expected text, got .*, which is no character"),
    "a flag that is a number": (b'{"bos_token": {"content": "<s>", "lstrip": 1}}', TOKEN),
    "a flag that is null": (b'{"bos_token": {"content": "<s>", "rstrip": null}}', TOKEN),
    "extra tokens that are a number": (b'{"extra_special_tokens": 7}', TOKEN),
    "extra tokens that are a text": (b'{"extra_special_tokens": "<a>"}', TOKEN),
    "an extra token that is a number": (b'{"extra_special_tokens": [7]}', TOKEN),
    "an extra token that is null": (b'{"extra_special_tokens": [null]}', TOKEN),
    "a named extra token that is a number": (b'{"extra_special_tokens": {"a": 7}}', TOKEN),
    "a named extra token that is a list": (b'{"extra_special_tokens": {"a": ["b"]}}', TOKEN),
    "additional tokens that are a number": (b'{"additional_special_tokens": 7}', TOKEN),
    "added tokens that are a list": (b'{"added_tokens_decoder": []}', TOKEN),
    "added tokens that are null": (b'{"added_tokens_decoder": null}', TOKEN),
    "an added token that is a number": (b'{"added_tokens_decoder": {"1": 7}}', TOKEN),
    "an added token that is null": (b'{"added_tokens_decoder": {"1": null}}', TOKEN),
    "an added id that is no number": (b'{"added_tokens_decoder": {"one": {"content": "<s>"}}}', TOKEN),
    "an added id of 5,000 digits": (b'{"added_tokens_decoder": {"' + b"1" * 5000 + b'": {"content": "<s>"}}}', TOKEN),
    "a template that is a number": (b'{"chat_template": 7}', TOKEN),
    "templates that are numbers": (b'{"chat_template": [7]}', TOKEN),
    "a template without a text": (b'{"chat_template": [{"name": "default"}]}', TOKEN),
    "a template whose name is a list": (b'{"chat_template": [{"name": [], "template": ""}]}', TOKEN),
    "a token of a megabyte": (b'{"bos_token": [' + b"7," * 500_000 + b"7]}", TOKEN),
    "no JSON": (b"{", "expected JSON"),
    "not UTF-8": (b'{"bos_token": "\xff"}', "expected JSON"),
    "a list of settings": (b"[]", "expected a JSON object"),
    "deep": (b'{"bos_token":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected JSON"),
    "a number of 5,000 digits": (b'{"model_max_length": ' + b"1" * 5000 + b"}", "expected JSON"),
}
