"""The header of a safetensors file: which tensors the file has, and where.

A safetensors file is 8 bytes (the length of the header), the header (a JSON object with the dtype, shape and byte range
of each tensor), and the data. Nothing in it is ever executed, unlike in .bin files.

Source: https://github.com/huggingface/safetensors
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ..errors import ModelFileError
from .file_kind import file_kind
from .json_file import LARGEST_JSON, parse_json
from .stored import Stored

KEYS = ("dtype", "shape", "data_offsets")
BYTES_EACH = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}


class Entry(NamedTuple):
    """A tensor in a header."""

    name: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return BYTES_EACH[self.dtype] * prod(self.shape)


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file with these tensors, padded to a multiple of 8 bytes.

    metadata : text about the file; transformers refuses weights without {"format": "pt"}
    """
    keys: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for entry in entries:
        end = begin + entry.nbytes
        keys[entry.name] = dict(zip(KEYS, (entry.dtype, list(entry.shape), [begin, end]), strict=True))
        begin = end
    text = json.dumps(keys, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data are aligned
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. The header is checked against the file's size.

    Raises
    ------
    ModelFileError : the file is missing or cut short, or its header contradicts itself
    """
    return read_whole_header(path)[0]


def read_whole_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The same, and the metadata: text about the file; errors as in `read_header`."""
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, there is none; get the missing part of the checkpoint")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_JSON):
            raise ModelFileError(
                f"{path}: expected a header of {length} bytes, got a file of {size} bytes, {file_kind(path)}; it is cut"
                " short or not a safetensors file: download it again"
            )
        keys = parse_json(file.read(length), path, lambda pairs: unique(pairs, path))
    found = keys.pop("__metadata__", None)
    metadata = {} if found is None else found
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelFileError(f"{path}: __metadata__: expected an object of texts; download the file again")
    start = 8 + length
    stored, spans = {}, [(0, 0)]
    for name, value in keys.items():
        dtype, shape, begin, end = read_entry(value, name, path)
        stored[name] = Stored(path, name, dtype, shape, start + begin)
        check_size(stored[name], end - begin)
        spans.append((begin, end))
    spans.sort()
    for (_, end), (begin, _) in pairwise(spans):
        if begin != end:
            raise ModelFileError(
                f"{path}: expected a tensor to begin at byte {end}, got {begin}: there is an overlap or a gap;"
                " download the file again"
            )
    if start + spans[-1][1] != size:
        raise ModelFileError(f"{path}: expected {start + spans[-1][1]} bytes, got {size}; download the file again")
    return stored, metadata


def unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """An object of a header, in which no key may occur twice: which of two tensors is meant?"""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ModelFileError(f"{path}: expected each name once, got {twice!r:.80} twice; download the file again")
    return keys


def check_size(stored: Stored, nbytes: int) -> None:
    """Refuse a tensor whose byte range does not fit its dtype and shape; newer dtypes than these are not checked."""
    if stored.dtype not in BYTES_EACH:
        return
    expected = Entry(stored.name, stored.dtype, stored.shape).nbytes
    if nbytes != expected:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {expected} bytes for {stored.dtype} {list(stored.shape)}, got"
            f" {nbytes}; download the file again"
        )


def read_entry(value: Any, name: str, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """The dtype, shape, begin and end of one tensor in a header, each of them checked."""
    dtype, shape, span = (value.get(key) if isinstance(value, dict) else None for key in KEYS)
    if (
        not isinstance(dtype, str)
        or not dtype.isupper()  # lower-case names are npllm's own, of several tensors together
        or not is_counts(shape)
        or not is_counts(span)
        or len(span) != 2
        or len(shape) > 8
    ):
        raise ModelFileError(
            f"{path}: {name}: expected {', '.join(KEYS)}, got {str(value)[:80]!r}; download the file again"
        )
    if span[0] > span[1]:
        raise ModelFileError(f"{path}: {name}: expected data_offsets in order, got {span}; download the file again")
    return dtype, tuple(shape), span[0], span[1]


def is_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether a value of the header is a list of natural numbers."""
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)
