"""A tensor as it lies in a file, and reading it: a few rows at a time, widened to float32.

The files are read, not mapped into memory. A mapped file that is cut short meanwhile kills the process (SIGBUS), its
pages count as the process's memory, and they are taken away again when memory is short.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import ModelFileError
from ..shapes import Float
from .blocks import BLOCK_FORMATS, BlockFormat

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
        """Its bytes in the file; the dtype must be one of FORMATS."""
        storage = FORMATS[self.dtype]
        return prod(self.shape) // storage.numbers * storage.bytes


class PlainFormat(NamedTuple):
    """Numbers of a plain dtype, one after the other."""

    dtype: Any
    numbers: int = 1

    @property
    def bytes(self) -> int:
        """Of one number."""
        return np.dtype(self.dtype).itemsize

    def widen(self, raw: np.ndarray) -> np.ndarray:
        """The numbers in float32: uint8 [numbers, bytes] -> [numbers, 1]."""
        return raw.view(self.dtype).astype(np.float32)


FORMATS: dict[str, PlainFormat | BlockFormat] = {
    "F32": PlainFormat(np.float32),
    "F16": PlainFormat(np.float16),
    "BF16": PlainFormat(ml_dtypes.bfloat16),
    **BLOCK_FORMATS,
}


def read_blocks(stored: Stored) -> Iterator[tuple[int, np.ndarray]]:
    """The bytes of a tensor, a few rows at a time: how many rows, and uint8 [blocks, bytes of a block].

    A vector has rows of one number.

    Raises
    ------
    ModelFileError : the file ends too early
    """
    storage = FORMATS[stored.dtype]
    rows, columns = stored.shape if len(stored.shape) == 2 else (*stored.shape, 1)
    at_once = max(1, PIECE // columns)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            expected = count * columns // storage.numbers * storage.bytes
            raw = file.read(expected)
            if len(raw) != expected:
                raise ModelFileError(
                    f"{stored.path}: {stored.name}: expected {expected} more bytes, got {len(raw)}: the file was cut"
                    " short while it was read; get it again"
                )
            yield count, np.frombuffer(raw, dtype=np.uint8).reshape(-1, storage.bytes)


def read_rows(stored: Stored) -> Iterator[Float[np.ndarray, "rows D"]]:
    """The rows of a tensor in float32, as many at once as make about PIECE numbers; errors as in `read_blocks`."""
    for count, raw in read_blocks(stored):
        with np.errstate(invalid="ignore"):  # a scale that is no number makes numbers that are none
            yield FORMATS[stored.dtype].widen(raw).reshape(count, -1)


def not_finite(stored: Stored, rounded_to: str = "") -> ModelFileError:
    """The error for a tensor with a number that is none, or one that is too large to be rounded to a dtype."""
    fault, remedy = "a NaN or an infinity", "get the file again"
    if rounded_to:
        fault, remedy = f"one too large for {rounded_to}", "take another dtype"
    return ModelFileError(f"{stored.path}: {stored.name}: expected finite numbers, got {fault}; {remedy}")
