"""A tensor as it lies in a file, and reading it: a few rows at a time, widened to float32.

The files are read, not mapped into memory. A mapped file that is cut short meanwhile kills the process (SIGBUS), its
pages count as the process's memory, and they are taken away again when memory is short.
"""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import ModelFileError
from ..shapes import Float

PIECE = 2**17  # numbers that are widened at once: small enough for the processor's cache


class Stored(NamedTuple):
    """Where a tensor's numbers are."""

    path: Path
    name: str
    dtype: str  # as the file calls it: "BF16", "Q8_0"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def nbytes(self) -> int:
        """Its bytes in the file; the dtype must be one of STORAGES."""
        storage = STORAGES[self.dtype]
        return prod(self.shape) // storage.numbers * storage.bytes


class Storage(NamedTuple):
    """How numbers are written down: blocks of `numbers` numbers in `bytes` bytes."""

    numbers: int
    bytes: int
    widen: Callable[[np.ndarray], np.ndarray]  # bytes [blocks, bytes] -> float32 [blocks, numbers]


def widen_plain(dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    """Numbers that are only narrower than float32, or as wide."""
    return lambda raw: raw.view(dtype).astype(np.float32)


def widen_q8_0(raw: np.ndarray) -> np.ndarray:
    """Q8_0: 32 whole numbers of 8 bits, and one float16 scale for them, which comes first."""
    scale = raw[:, :2].view(np.float16).astype(np.float32)
    return raw[:, 2:].view(np.int8) * scale


def nibbles(packed: np.ndarray) -> np.ndarray:
    """16 bytes to the 32 numbers 0..15 in them: first all of the lower halves, then all of the upper ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def widen_q4_0(raw: np.ndarray) -> np.ndarray:
    """Q4_0: 32 whole numbers of 4 bits, meaning -8..7, and a float16 scale."""
    scale = raw[:, :2].view(np.float16).astype(np.float32)
    return (nibbles(raw[:, 2:]).view(np.int8) - np.int8(8)) * scale


def widen_q4_1(raw: np.ndarray) -> np.ndarray:
    """Q4_1: 32 whole numbers of 4 bits, meaning 0..15, a float16 scale, and a float16 minimum to be added."""
    scale, minimum = raw[:, :2].view(np.float16).astype(np.float32), raw[:, 2:4].view(np.float16).astype(np.float32)
    numbers = nibbles(raw[:, 4:]) * scale
    numbers += minimum
    return numbers


STORAGES = {
    "F32": Storage(1, 4, widen_plain(np.float32)),
    "F16": Storage(1, 2, widen_plain(np.float16)),
    "BF16": Storage(1, 2, widen_plain(ml_dtypes.bfloat16)),
    "Q8_0": Storage(32, 34, widen_q8_0),
    "Q4_0": Storage(32, 18, widen_q4_0),
    "Q4_1": Storage(32, 20, widen_q4_1),
}


def read_rows(file: BinaryIO, stored: Stored) -> Iterator[Float[np.ndarray, "rows D"]]:
    """The rows of a matrix in float32, as many at once as make about PIECE numbers; a vector as rows of one number.

    Raises
    ------
    ModelFileError : the file ends too early
    """
    storage = STORAGES[stored.dtype]
    rows, columns = stored.shape if len(stored.shape) == 2 else (*stored.shape, 1)
    at_once = max(1, PIECE // columns)
    file.seek(stored.offset)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        expected = count * columns // storage.numbers * storage.bytes
        raw = file.read(expected)
        if len(raw) != expected:
            raise ModelFileError(
                f"{stored.path}: {stored.name}: expected {expected} more bytes, got {len(raw)}: the file was cut short"
                " while it was read; get it again"
            )
        blocks = np.frombuffer(raw, dtype=np.uint8).reshape(-1, storage.bytes)
        with np.errstate(invalid="ignore"):  # a scale that is no number makes numbers that are none: read_weight looks
            widened = storage.widen(blocks)
        yield widened.reshape(count, columns)
