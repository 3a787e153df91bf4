"""A tensor in a file, and reading it: unchanged, or in pieces of a few rows, widened to float32.

Files are read, not mapped into memory. A tensor is copied once, straight into its place if the file has it in the same
dtype and row order. For the 7.6 GB of Phi-3-mini in bfloat16, on 2 cores, from a warm file cache, with the check for
NaN:

    mapped                                    0.4 s
    two threads into fresh memory             0.9 to 5 s
    one thread                                3.4 to 6 s
    two threads, memory in pages of 4 KB      5.8 s (NumPy asks for pages of 2 MB)

Mapping saves seconds, once. After that each pass over the weights takes 1.2 times as long (15.4 GB/s, 18.7 from a
copy), for every token. The pages of a mapped file are the first to be dropped when memory is short: after a model had
been idle, some were gone and came back from disk at an eighth of the speed. And if a mapped file is truncated
meanwhile, the process dies (SIGBUS) without a message.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ..arrays import Float
from ..errors import ModelFileError
from .blocks import BlockFormat
from .gguf_blocks import BLOCK_FORMATS
from .mxfp4 import E8M0, PAIRED
from .own_format import OWN_FORMATS

PIECE = 2**17  # elements widened at a time: they fit in the CPU's cache


class Stored(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    dtype: str  # as the file calls it: "BF16", "Q8_0"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    # Of a matrix in several tensors: offset is that of its codes, shape the matrix's.
    scale: "Stored | None" = None
    minimum: "Stored | None" = None

    @property
    def nbytes(self) -> int:
        """Its bytes in the file, with scales and minima; the dtype must be one of FORMATS."""
        kind = FORMATS[self.dtype]
        others = sum(stored.nbytes for stored in (self.scale, self.minimum) if stored is not None)
        return prod(self.shape) // kind.numbers * kind.bytes + others

    @property
    def columns(self) -> int:
        """The length of a row: that of the last axis, and 1 for a vector."""
        return self.shape[-1] if len(self.shape) > 1 else 1


def one_of(stored: Stored, index: int) -> Stored:
    """One of the matrices in a tensor that holds several, [E, F, D]: the same file from a later byte on."""
    shape, name = stored.shape[1:], f"{stored.name}[{index}]"
    kind = FORMATS.get(stored.dtype)  # None: it will be refused
    size = prod(shape) // kind.numbers * kind.bytes if kind else 0
    scale, minimum = (None if part is None else one_of(part, index) for part in (stored.scale, stored.minimum))
    return Stored(stored.path, name, stored.dtype, shape, stored.offset + index * size, scale, minimum)


class PlainFormat(NamedTuple):
    """Elements of a plain dtype, one after the other."""

    dtype: Any
    numbers: int = 1
    added: float = 0.0  # what the file adds to each element

    @property
    def bytes(self) -> int:
        """The bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def widen(self, raw: np.ndarray) -> np.ndarray:
        """The elements in float32, [elements, 1], from uint8 [elements, bytes]."""
        values = raw.view(self.dtype).astype(np.float32)
        return values - np.float32(self.added) if self.added else values


FORMATS: dict[str, PlainFormat | BlockFormat] = {
    "F32": PlainFormat(np.float32),
    "F16": PlainFormat(np.float16),
    "BF16": PlainFormat(ml_dtypes.bfloat16),
    **BLOCK_FORMATS,
    **OWN_FORMATS,
    "mxfp4": PAIRED,  # in two tensors
    "E8M0": PlainFormat(E8M0),  # its scales
    "F32 + 1": PlainFormat(np.float32, added=1.0),  # Gemma's norms in .gguf files
}


def read_blocks(stored: Stored) -> Iterator[tuple[int, Any]]:
    """The raw data of a tensor, a few rows at a time: the number of rows, and the argument for its format's `widen`.

    That is uint8 [blocks, bytes of a block]; a list of such arrays if scales and minima are tensors of their own.

    Raises
    ------
    ModelFileError : the file ends too early
    """
    at_once = max(1, PIECE // stored.columns)
    if stored.scale is None:
        yield from read_pieces(stored, at_once)
        return
    tensors = [one for one in (stored, stored.scale, stored.minimum) if one is not None]
    for pieces in zip(*(read_pieces(one, at_once) for one in tensors), strict=True):
        yield pieces[0][0], [raw for _, raw in pieces]


def read_pieces(stored: Stored, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
    """The bytes of one tensor, at most `at_once` rows at a time: the number of rows, and uint8 [blocks, bytes]."""
    kind, columns = FORMATS[stored.dtype], stored.columns
    rows = prod(stored.shape) // columns
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            raw = np.empty((count * columns // kind.numbers, kind.bytes), dtype=np.uint8)
            read_exactly(file, raw, stored)
            yield count, raw


def read_exactly(file: BinaryIO, out: np.ndarray, stored: Stored) -> None:
    """Fill an array with the next bytes of a file."""
    got = file.readinto(out.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
    if got != out.nbytes:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {out.nbytes} more bytes, got {got}: the file was cut short while"
            " it was read; download it again"
        )


def read_unchanged(out: np.ndarray, stored: Stored) -> None:
    """Fill an array of the tensor's own dtype. Each piece is checked for NaN while it is in the processor's cache.

    Raises
    ------
    ModelFileError : the file ends too early; the tensor has a NaN or an infinity
    """
    flat = out.reshape(-1)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for first in range(0, len(flat), 4 * PIECE):
            piece = flat[first : first + 4 * PIECE]
            read_exactly(file, piece, stored)
            if not is_finite(piece):
                raise not_finite(stored)


def read_rows(stored: Stored) -> Iterator[Float[np.ndarray, "rows D"]]:
    """The rows of a tensor in float32, about PIECE elements at a time; errors as in `read_blocks`."""
    for count, raw in read_blocks(stored):
        with np.errstate(invalid="ignore"):  # a scale that is NaN or infinite; callers check the result
            yield FORMATS[stored.dtype].widen(raw).reshape(count, -1)


def is_finite(values: np.ndarray) -> bool:
    """Whether an array of float16, bfloat16 or float32 has neither NaN nor infinities.

    The bits, read as integers, have the order of the values, with infinity above all numbers and NaN above infinity.
    The largest signed integer answers for the positive values, the largest unsigned one for the negative.
    """
    bits = 8 * values.itemsize
    infinity = int(np.array(np.inf, values.dtype).view(f"u{values.itemsize}"))
    largest, largest_negative = values.view(f"i{values.itemsize}").max(), values.view(f"u{values.itemsize}").max()
    return bool(largest < infinity and largest_negative < infinity + (1 << bits - 1))


def not_finite(stored: Stored, rounded_to: str = "") -> ModelFileError:
    """The error for a tensor with a NaN or an infinity, or with an element too large for the dtype `rounded_to`."""
    fault, remedy = "a NaN or an infinity", "download the file again"
    if rounded_to:
        fault, remedy = f"one too large for {rounded_to}", "take another dtype"
    return ModelFileError(f"{stored.path}: {stored.name}: expected finite numbers, got {fault}; {remedy}")
