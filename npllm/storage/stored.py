"""A tensor as it lies in a file, and reading it: as it is, or a few rows at a time, widened to float32.

The files are read, not mapped into memory: what is loaded is the process's own, copied once, and straight into its
place where the file has it in the same dtype and order. For the 7.6 GB of Phi-3-mini in bfloat16, on 2 cores, from a
warm file cache, with the search for NaN:

    mapped                                    0.4 s
    two threads into fresh memory             0.9 to 5 s
    one thread                                3.4 to 6 s
    two threads, memory in pages of 4 KB      5.8 s (NumPy asks for pages of 2 MB)

Mapping saves seconds, once; then each pass over the weights takes 1.2 times as long (15.4 GB/s, and 18.7 from a copy),
for every token. A mapped file's pages are the first to go when memory is short: those of a model that had been idle
were seen to be gone, and to come back from disk at an eighth of the speed. And a mapped file that is cut short
meanwhile kills the process (SIGBUS), without a message.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from ..arrays import Float
from ..errors import ModelFileError
from .gguf_blocks import BLOCK_FORMATS, OWN_FORMATS, BlockFormat, Split

PIECE = 2**17  # numbers that are widened at once: small enough for the processor's cache
READERS = min(4, os.cpu_count() or 1)  # threads; copying into fresh memory keeps a core busy, and quantizing does
T = TypeVar("T")


class Stored(NamedTuple):
    """Where a tensor's numbers are."""

    path: Path
    name: str
    dtype: str  # as the file calls it: "BF16", "Q8_0"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    # Of a matrix that `npllm convert` quantized: its shape is the matrix's, and its bytes are those of the codes.
    scale: "Stored | None" = None
    minimum: "Stored | None" = None

    @property
    def nbytes(self) -> int:
        """Its bytes in the file; the dtype must be one of FORMATS."""
        storage = FORMATS[self.dtype]
        beside = sum(stored.nbytes for stored in (self.scale, self.minimum) if stored is not None)
        return prod(self.shape) // storage.numbers * storage.bytes + beside


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
    **OWN_FORMATS,
}


def read_blocks(stored: Stored) -> Iterator[tuple[int, Any]]:
    """The bytes of a tensor, a few rows at a time: how many rows, and what its format's `widen` and `split` take.

    That is uint8 [blocks, bytes of a block], or the `Split` of a matrix that has its scales in tensors of their own. A
    vector has rows of one number.

    Raises
    ------
    ModelFileError : the file ends too early
    """
    columns = stored.shape[1] if len(stored.shape) == 2 else 1
    at_once = max(1, PIECE // columns)
    if stored.scale is None:
        yield from read_pieces(stored, at_once)
        return
    minima = repeat((0, None)) if stored.minimum is None else read_pieces(stored.minimum, at_once)
    pieces = zip(read_pieces(stored, at_once), read_pieces(stored.scale, at_once), minima, strict=False)
    for (count, codes), (_, scale), (_, minimum) in pieces:
        codes = codes.view(np.int8 if OWN_FORMATS[stored.dtype].bits == 8 else np.uint8)[:, None]
        minimum = None if minimum is None else minimum.view(ml_dtypes.bfloat16)
        scale = scale.view(np.float32 if stored.scale.dtype == "F32" else ml_dtypes.bfloat16)
        yield count, Split(codes, scale, minimum)


def read_pieces(stored: Stored, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
    """The bytes of one tensor, so many rows at a time."""
    storage = FORMATS[stored.dtype]
    rows, columns = stored.shape if len(stored.shape) == 2 else (*stored.shape, 1)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            raw = np.empty((count * columns // storage.numbers, storage.bytes), dtype=np.uint8)
            read_exactly(file, raw, stored)
            yield count, raw


def read_exactly(file: BinaryIO, place: np.ndarray, stored: Stored) -> None:
    """The next bytes of a file, straight into an array."""
    got = file.readinto(place.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
    if got != place.nbytes:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {place.nbytes} more bytes, got {got}: the file was cut short while"
            " it was read; get it again"
        )


def read_as_it_is(place: np.ndarray, stored: Stored) -> None:
    """A tensor straight into an array of its own dtype, searched for NaN while the piece is in the processor's cache.

    Raises
    ------
    ModelFileError : the file ends too early; the tensor has a NaN or an infinity
    """
    numbers = place.reshape(-1)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for first in range(0, len(numbers), 4 * PIECE):
            some = numbers[first : first + 4 * PIECE]
            read_exactly(file, some, stored)
            if not is_finite(some):
                raise not_finite(stored)


def is_finite(numbers: np.ndarray) -> bool:
    """Whether there is no NaN and no infinity among some float16, bfloat16 or float32 numbers.

    Their bits, read as whole numbers, are in the same order as they: infinity is beyond all numbers, and NaN beyond it.
    The positive ones are told by the largest with a sign, the negative ones by the largest without.
    """
    bits = 8 * numbers.itemsize
    infinity = int(np.array(np.inf, numbers.dtype).view(f"u{numbers.itemsize}"))
    largest, largest_negative = numbers.view(f"i{numbers.itemsize}").max(), numbers.view(f"u{numbers.itemsize}").max()
    return bool(largest < infinity and largest_negative < infinity + (1 << bits - 1))


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


def read_ahead(read: Callable[[T], Any], items: Iterable[T], waiting: int) -> Generator[Any]:
    """map(read, items) with READERS threads that work ahead, by at most so many results; close it at the end.

    Closing it waits for what is being read, and begins nothing more.
    """
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="npllm-read")
    queue: deque[Future[Any]] = deque()
    try:
        for item in items:
            queue.append(pool.submit(read, item))
            if len(queue) > waiting:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
