"""JSON objects in files, read with a size limit and with errors that name the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError

LARGEST_JSON = 100_000_000  # bytes; also the safetensors library's limit for a header


def parse_json(text: bytes, where: Path) -> dict[str, Any]:
    """The object in a JSON text.

    Raises
    ------
    ModelFileError : it is not JSON, or not an object
    """
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError includes bytes that are not UTF-8
        raise ModelFileError(f"{where}: expected JSON, got {error}; download the file again") from error
    if not isinstance(keys, dict):
        raise ModelFileError(f"{where}: expected a JSON object, got {type(keys).__name__}; download the file again")
    return keys


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
    """The text of a JSON file, indented and with a newline at the end."""
    return json.dumps(keys, indent=2, ensure_ascii=False) + "\n"
