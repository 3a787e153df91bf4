"""JSON objects in files, read with limits on size, memory and nesting, and with errors that name the file."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError

LARGEST_JSON = 100_000_000  # bytes; also the safetensors library's limit for a header
DEEPEST = 50  # objects and lists nested in each other
SPARE = 200_000_000  # bytes of memory that reading a file may take, in addition to 4 times its size
# Upper bounds on the memory for a value, in bytes, by the character that marks it in the text: an object, a key with
# its value (tables grow threefold), a list, an element, and half a string. They hold for CPython on 64 bits.
COSTS = {b"{": 128, b":": 100, b"[": 120, b",": 64, b'"': 40}

Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


def parse_json(text: bytes, where: Path, pairs: Pairs | None = None) -> dict[str, Any]:
    """The object in a JSON text.

    pairs : makes an object from its keys and values. Without it, the last value of a repeated key counts, as in
        transformers

    Raises
    ------
    ModelFileError : it is not an object; and those of `parse_value`
    """
    keys = parse_value(text, where, pairs)
    if not isinstance(keys, dict):
        raise ModelFileError(f"{where}: expected a JSON object, got {type(keys).__name__}; download the file again")
    return keys


def parse_value(text: bytes, where: Path, pairs: Pairs | None = None) -> Any:
    """The value in a JSON text, of any type.

    Raises
    ------
    ModelFileError : it is not JSON in UTF-8, is nested too deeply, or takes too much memory
    """
    check_cost(text, where)
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=pairs)
    except ModelFileError:  # by `pairs`
        raise
    except (ValueError, RecursionError) as error:  # ValueError includes bytes that are not UTF-8
        got = str(error).partition(";")[0]
        raise ModelFileError(f"{where}: expected JSON, got {got}; download the file again") from error
    check_depth(value, where)
    if re.search(rb"\\u[dD][89a-fA-F]", text):
        check_surrogates(value, where)
    return value


def check_cost(text: bytes, where: Path) -> None:
    """Raise ModelFileError for a text whose values might take more memory than 4 times its size plus SPARE.

    A string in memory takes 1 byte for each character, or up to 4 if any of its characters needs them. It is there up
    to three times at once: in the whole text, in pieces, and joined.
    """
    width = 1 if text.isascii() and b"\\u" not in text else 4
    cost = (1 + 3 * width) * len(text) + sum(each * text.count(mark) for mark, each in COSTS.items())
    if cost > 4 * len(text) + SPARE:
        raise ModelFileError(
            f"{where}: expected JSON that takes at most {4 * len(text) + SPARE} bytes of memory, got up to {cost} bytes"
            f" for {len(text)} bytes of text; no model's file is like this: download it again"
        )


def check_depth(value: Any, where: Path) -> None:
    """Raise ModelFileError for values nested more than DEEPEST times: printing or writing them might fail."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
    if level:
        raise ModelFileError(f"{where}: expected at most {DEEPEST} levels of JSON, got more; download the file again")


def check_surrogates(value: Any, where: Path) -> None:
    """Raise ModelFileError for an unpaired surrogate, such as "\\ud800": UTF-8 cannot encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ModelFileError(f"{where}: expected text, got {half}, which is no character") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; errors as in `parse_json`, and for a file that is missing or too large."""
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, there is none; take the whole folder of the checkpoint")
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ModelFileError(
            f"{path}: expected at most {LARGEST_JSON} bytes of JSON, got {size}; download the file again"
        )
    return parse_json(path.read_bytes(), path)


def json_text(keys: Mapping[str, Any]) -> str:
    """The text of a JSON file, indented and with a newline at the end.

    Raises
    ------
    ModelFileError : the objects and lists are nested too deeply
    """
    try:
        text = json.dumps(keys, indent=2, ensure_ascii=False) + "\n"
    except RecursionError as error:  # indenting takes more of the stack than reading
        raise ModelFileError(
            "JSON to write: expected fewer objects or lists within each other, got hundreds"
        ) from error
    return text.encode(errors="backslashreplace").decode()  # an unpaired surrogate becomes its JSON escape, \udc80
