"""What the process of tokenizer_check.py runs: it loads a tokenizer as npllm does, and tries it on difficult texts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import ModelFileError
from .folder_tokenizer import build, read_files
from .tokenizer_check import digest_of

LONG = 10_000  # characters: makes quadratic time visible
RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
LETTERS = "aA1 \n\t.éß船🙂\u0301\u200d\x00\x1b\ufffd▁Ġ#@<>[]|'\"\\-_/"


def answer(request: Any) -> Any:
    """The digest of a folder's files, if its tokenizer works; or why not."""
    try:
        files = read_files(Path(request))
        probe(build(Path(request), files)[0], files[0])
    except ModelFileError as error:
        return {"refused": str(error)}
    except BaseException as error:  # a panic is no Exception
        if isinstance(error, MemoryError):
            raise
        return {"fails": " ".join(str(error).split())[:200]}
    return {"digest": digest_of(files)}


def probe(backend: tokenizers.Tokenizer, data: bytes) -> None:
    """Encode and decode texts on which bad tokenizers fail. Raises whatever the library raises."""
    for text in texts(data, [token.content for token in backend.get_added_tokens_decoder().values()]):
        backend.decode(backend.encode(text).ids)
    ids = sorted(backend.get_vocab().values())
    for start in range(0, len(ids), 1000):
        backend.decode(ids[start : start + 1000])
    for i in ids[:: len(ids) // 500 + 1]:
        backend.decode([i], skip_special_tokens=False)


def texts(data: bytes, added: list[str]) -> Iterator[str]:
    """Texts to try. Those meant for regular expressions repeat the characters and words in the expressions."""
    yield from ("", "The ship sails at 10:45, doesn't it? Ça va, naïve 北京 🙂\u200d🙂.\r\n\n\tx = [1, 2];  y--\n")
    yield "".join(map(chr, range(0x250)))
    yield "".join(added[:: len(added) // 100 + 1])
    yield "The ships. " * (LONG // 10)
    for letter in LETTERS:
        yield from (letter, letter * LONG)
    rules = {key: value for key, value in json.loads(data).items() if key in RULES}
    for rule in {LETTERS, *strings(rules)}:
        for part in sorted({*LETTERS, *rule[:1000], *re.findall(r"\w+", rule[:1000])}):
            yield part * 50 + "\x01" + rule  # a text in which a match nearly succeeds takes the longest


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)
