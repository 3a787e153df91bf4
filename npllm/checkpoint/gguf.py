"""The .gguf file format: a whole model in one file, as llama.cpp stores it.

    "GGUF", version, number of tensors, number of keys
    the keys: name, type, value            (the configuration, the tokenizer, the chat template)
    for each tensor: name, shape, dtype, offset
    the data, aligned

Every length and count is compared with the rest of the file before anything of that size is allocated. The metadata
take at most 4 times their size in the file plus 200 MB of memory.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ModelFileError
from ..storage.file_kind import file_kind
from ..storage.json_file import SPARE
from ..storage.stored import FORMATS, Stored

# The struct letters of the value types, by type number. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST = 2**16  # keys, and tensors: files have a few dozen, and a few thousand
# Upper bounds of the memory for a value, in bytes: a number in a list, with its bytes; a string beside its characters,
# of up to 4 bytes each.
NUMBER, STRING_OBJECT = 40, 100
# The dtypes of tensors, by number. Those not in FORMATS are listed so that a refusal can name them.
DTYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}


class Reader:
    """Reads values from an open .gguf file, never beyond its end."""

    def __init__(self, file: BinaryIO, path: Path, size: int):
        self.file, self.path, self.left = file, path, size
        self.spare = SPARE  # memory left for values, beyond 4 times their bytes

    def take(self, length: int, what: str) -> bytes:
        """The next bytes of the file."""
        raw = self.file.read(length) if length <= self.left else b""
        if len(raw) != length:
            raise self.cut_short(length, what)
        self.left -= length
        return raw

    def cut_short(self, expected: int, what: str) -> ModelFileError:
        """The error for a file that ends too early."""
        return ModelFileError(
            f"{self.path}: {what}: expected {expected} more bytes, got {self.left}; the file is cut short or damaged:"
            " download it again"
        )

    def scalar(self, letter: str, what: str) -> Any:
        """One number or boolean."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))[0]

    def string(self, what: str) -> str:
        """A string: its length, then that many bytes of UTF-8."""
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """Consecutive strings. One loop without calls, because a vocabulary has 100,000 of them."""
        read, words = self.file.read, []
        self.count_memory(count * (STRING_OBJECT - 4 * 8), what)
        try:
            for _ in range(count):
                length = int.from_bytes(read(8), "little")
                if 8 + length > self.left:
                    raise self.cut_short(8 + length, what)
                self.left -= 8 + length
                self.spare -= length
                if self.spare < 0:
                    raise self.too_much(what)
                words.append(read(length).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{self.path}: {what}: expected UTF-8, got {error.object[:40]!r}") from error
        return words

    def value(self, kind: int, what: str) -> Any:
        """A value of any type: a string, a list, a number or a boolean."""
        if kind == STRING:
            return self.string(what)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind != ARRAY:
            raise ModelFileError(
                f"{self.path}: {what}: expected a type from 0 to 12, got {kind}; download the file again"
            )
        element, count = self.scalar("I", what), self.scalar("Q", what)
        if element == STRING:
            self.check_count(count, 8, what)
            return self.strings(count, what)
        if element not in SCALARS:
            raise ModelFileError(f"{self.path}: {what}: expected a list of strings or numbers, got type {element}")
        each = struct.calcsize("<" + SCALARS[element])
        self.check_count(count, each, what)
        self.count_memory(count * (NUMBER - 3 * each), what)
        return np.frombuffer(self.take(count * each, what), dtype="<" + SCALARS[element]).tolist()

    def count_memory(self, more: int, what: str) -> None:
        """Count the memory of values beyond 4 times their bytes in the file; refuse more than SPARE."""
        self.spare -= more
        if self.spare < 0:
            raise self.too_much(what)

    def too_much(self, what: str) -> ModelFileError:
        """The error for metadata that would take too much memory."""
        return ModelFileError(
            f"{self.path}: {what}: expected metadata that take at most 4 times their bytes and {SPARE} bytes of memory,"
            " got more; no model's file is like this: download it again"
        )

    def check_count(self, count: int, least: int, what: str, most: int = 2**63) -> None:
        """Refuse items of at least `least` bytes that cannot fit in the rest of the file, and more than `most`."""
        if count * least > self.left:
            raise ModelFileError(
                f"{self.path}: {what}: expected room for {count} of them, got {self.left} bytes to the end of the file;"
                " it is cut short or damaged: download it again"
            )
        if count > most:
            raise ModelFileError(f"{self.path}: {what}: expected at most {most}, got {count}; download the file again")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata of a .gguf file, and the locations of its tensors. No tensor is read.

    Shapes are in NumPy's order, [out, in]; the file has them reversed.

    Raises
    ------
    ModelFileError : it is not a .gguf file, is truncated, or is inconsistent
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = Reader(file, path, size)
        magic, version = reader.take(4, "magic"), reader.scalar("I", "version")
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelFileError(
                f"{path}: expected a little-endian GGUF file of version 2 or 3, got {file_kind(path)}, {magic!r}"
                f" {version}"
            )
        tensor_count, key_count = reader.scalar("Q", "number of tensors"), reader.scalar("Q", "number of keys")
        reader.check_count(key_count, 8 + 4 + 1, "number of keys", MOST)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = reader.string("a key's name")
            if key in metadata:
                raise ModelFileError(f"{path}: expected each key once, got {key} twice; download the file again")
            metadata[key] = reader.value(reader.scalar("I", key), key)
        reader.check_count(tensor_count, 8 + 4 + 4 + 8, "number of tensors", MOST)
        entries = [read_entry(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise ModelFileError(f"{path}: general.alignment: expected a number of bytes, got {alignment!r}")
    start = -(-(size - reader.left) // alignment) * alignment  # the tensors begin at the next multiple
    stored: dict[str, Stored] = {}
    for name, dtype, shape, offset in entries:
        if name in stored:
            raise ModelFileError(f"{path}: expected each tensor once, got {name} twice; download the file again")
        stored[name] = Stored(path, name, dtype, shape, start + offset)
        check_extent(stored[name], size)
    check_overlap(stored)
    return metadata, stored


def read_entry(reader: Reader) -> tuple[str, str, tuple[int, ...], int]:
    """Name, dtype, shape and offset of one tensor."""
    name = reader.string("a tensor's name")
    dimensions = reader.scalar("I", name)
    if not 1 <= dimensions <= 4:
        raise ModelFileError(f"{reader.path}: {name}: expected 1 to 4 dimensions, got {dimensions}")
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions, name))[::-1]
    number = reader.scalar("I", name)
    return name, DTYPES.get(number, f"type {number}"), shape, reader.scalar("Q", name)


def check_extent(stored: Stored, size: int) -> None:
    """Refuse a tensor that extends beyond the file. With an unknown dtype, only its start is checked."""
    numbers = FORMATS[stored.dtype].numbers if stored.dtype in FORMATS else 1
    if stored.shape[-1] % numbers or prod(stored.shape) == 0:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected rows of a multiple of {numbers} elements for {stored.dtype},"
            f" got shape {list(stored.shape)}"
        )
    end = stored.offset + (stored.nbytes if stored.dtype in FORMATS else 0)
    if end > size:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {end} bytes, got a file of {size}; it is cut short:"
            " download it again"
        )


def check_overlap(stored: Mapping[str, Stored]) -> None:
    """Refuse tensors that have bytes in common. Those of an unknown dtype end where the next one begins."""
    in_order = sorted(stored.values(), key=lambda one: one.offset)
    for one, following in pairwise(in_order):
        if one.offset + (one.nbytes if one.dtype in FORMATS else 0) > following.offset:
            raise ModelFileError(
                f"{one.path}: {following.name}: expected it to begin after {one.name}, got an overlap;"
                " download the file again"
            )
