"""Matrices that stay as narrow as the file has them, or are made so: reading them into storage/packed.py's storage.

No matrix is in memory in float32 as a whole: it is read a few rows at a time, straight into its place. (But for those
of GPT-2, which are transposed in the file and put together first, one at a time.)
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..devices.threads import TILE, Workers
from ..storage.gguf_blocks import BLOCK_FORMATS, OWN_FORMATS, BlockFormat, Split
from ..storage.packed import Groups, Half, blocks_for, empty_groups, fill_groups, quantize_groups
from ..storage.stored import FORMATS, Stored, is_finite, not_finite, read_as_it_is, read_blocks
from .plan import Part, halves_order

# The values of --dtype: for 16 bits their dtypes, for fewer their bits. And the 16-bit dtypes by their names in files.
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
QUANTIZED = {"int8": 8, "int4": 4}
IN_FILES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
# With --dtype auto, a model of fewer numbers becomes float32 (1 GB at most): BLAS needs 5 µs to share a small matrix
# out to the cores, `Workers` 50.
NARROW_FROM = 2**28


class Storage(NamedTuple):
    """How a matrix is kept."""

    half: type | None = None  # numpy.float16 or ml_dtypes.bfloat16
    bits: int = 0  # 8 or 4: in groups
    group: int = 32
    offset: int = 0
    has_minimum: bool = False
    scale_dtype: type = np.float32  # of the minima too: bfloat16 for the 4 bits that we make ourselves
    from_blocks: bool = False  # the file's own codes and scales; else they are computed from its numbers

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """What a matrix of this shape takes."""
        if self.half is not None:
            return 2 * prod(shape)
        blocks, rows = blocks_for(*shape)
        groups = blocks * rows * shape[1] // self.group
        of_group = np.dtype(self.scale_dtype).itemsize * (2 if self.has_minimum else 1)  # its scale and minimum
        return blocks * rows * shape[1] * self.bits // 8 + groups * of_group

    def empty(self, shape: tuple[int, int], workers: Workers) -> Groups:
        """Room for a matrix in groups."""
        return empty_groups(*shape, self.bits, self.group, self.offset, self.has_minimum, workers, self.scale_dtype)


def storage_for(shape: tuple[int, ...], formats: Sequence[str], dtype: str) -> Storage | None:
    """How a matrix of this shape is kept; None for float32.

    formats : what the file has its parts in
    dtype : "auto" for the file's own width, "float32", "float16", "bfloat16", "int8", "int4"
    """
    if len(shape) != 2 or dtype == "float32" or shape[1] > TILE // 16:  # a tile holds at least 16 rows
        return None
    if dtype in HALVES:
        return Storage(half=HALVES[dtype])
    if dtype in QUANTIZED:
        return own_storage(QUANTIZED[dtype], set(formats) == {f"{dtype}/32"}) if shape[1] % 32 == 0 else None
    if len(set(formats)) == 1 and formats[0] in OWN_FORMATS:
        return own_storage(OWN_FORMATS[formats[0]].bits, from_blocks=True)
    if len(set(formats)) == 1 and formats[0] in IN_FILES:
        return Storage(half=IN_FILES[formats[0]])
    if not all(name in BLOCK_FORMATS for name in formats):
        return None
    kinds = [BLOCK_FORMATS[name] for name in formats]
    four = all(kind.bits == 4 and kind.smallest == kinds[0].smallest for kind in kinds)
    return Storage(
        bits=4 if four else 8,
        group=min(kind.group for kind in kinds),
        offset=kinds[0].smallest if four else 0,
        has_minimum=any(kind.has_minimum for kind in kinds),
        from_blocks=True,
    )


def own_storage(bits: int, from_blocks: bool) -> Storage:
    """How `quantize_groups` makes it: now, or when `npllm convert` wrote the file."""
    four = bits == 4
    scale_dtype = ml_dtypes.bfloat16 if four else np.float32
    return Storage(bits=bits, has_minimum=four, scale_dtype=scale_dtype, from_blocks=from_blocks)


def read_narrow(
    shape: tuple[int, ...],
    parts: Sequence[Part],
    tensors: Mapping[str, Stored],
    storage: Storage,
    workers: Workers,
) -> Half | Groups:
    """One matrix: each of its parts is read into its rows.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    height, width = shape
    if storage.half is not None:
        codes: np.ndarray = np.empty((height, width), dtype=storage.half)
        for part in parts:
            read_half(codes[part.first : part.first + part.shape[0]], part, tensors[part.name])
        return Half(codes, workers)
    packed = storage.empty((height, width), workers)
    for part in parts:
        read_groups(packed, part, tensors[part.name], storage)
    return packed


def narrowed(weight: np.ndarray, storage: Storage, workers: Workers) -> Half | Groups:
    """A matrix that had to be put together in float32 first."""
    if storage.half is not None:
        return Half(weight.astype(storage.half), workers)
    packed = storage.empty((weight.shape[0], weight.shape[1]), workers)
    fill_groups(packed, 0, *quantize_groups(weight, storage.bits))
    return packed


def read_half(place: np.ndarray, part: Part, stored: Stored) -> None:
    """A part of a 16-bit matrix into its rows: as it is in the file, or rounded."""
    order, row = row_order(part), 0
    as_it_is = IN_FILES.get(stored.dtype) == place.dtype
    if as_it_is and order is None:
        read_as_it_is(place, stored)
        return
    for count, raw in read_blocks(stored):
        if as_it_is:
            codes = numbers = raw.view(place.dtype).reshape(count, -1)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # an infinity is found below
                numbers = FORMATS[stored.dtype].widen(raw).reshape(count, -1)
                codes = numbers.astype(place.dtype)
        if not is_finite(codes):
            raise not_finite(stored, str(place.dtype) if is_finite(numbers) else "")
        rows = slice(row, row + count)
        place[rows if order is None else order[rows]] = codes
        row += count


def read_groups(packed: Groups, part: Part, stored: Stored, storage: Storage) -> None:
    """A part of a matrix in groups into its rows."""
    order, row = row_order(part), part.first
    if order is None:
        for split in read_splits(stored, storage):
            fill_groups(packed, row, *split)
            row += len(split.codes)
    else:
        fill_groups(packed, row, *in_order(list(read_splits(stored, storage)), order))


def read_splits(stored: Stored, storage: Storage) -> Iterator[Split]:
    """A tensor as rows of groups [rows, groups, numbers]: the file's own codes and scales, or new ones.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity
    """
    for count, raw in read_blocks(stored):
        if storage.from_blocks:
            kind: Any = FORMATS[stored.dtype]
            split = regroup(raw, kind, count, storage)
            finite = is_finite(split.scale) and (split.minimum is None or is_finite(split.minimum))
        else:
            with np.errstate(invalid="ignore"):
                numbers = FORMATS[stored.dtype].widen(raw).reshape(count, -1)
            finite = is_finite(numbers)
        if not finite:
            raise not_finite(stored)
        yield split if storage.from_blocks else Split(*quantize_groups(numbers, storage.bits))


def in_order(pieces: Sequence[Split], order: np.ndarray | None) -> Split:
    """The rows of some pieces, together; with an order, in their places."""
    back = slice(None) if order is None else np.argsort(order)
    codes, scale, minimum = zip(*pieces, strict=True)
    minima = None if minimum[0] is None else np.concatenate(minimum)[back]
    return Split(np.concatenate(codes)[back], np.concatenate(scale)[back], minima)


def regroup(raw: Any, kind: BlockFormat, rows: int, storage: Storage) -> Split:
    """A file's blocks as rows of groups of the storage's size, codes and minima."""
    split = kind.split(raw)
    if storage.bits == 4 and split.codes.shape[-1] < kind.group:  # two in a byte there, two in a byte here
        codes, times = split.codes, 1
    else:
        codes, times = kind.codes(split), kind.group // storage.group  # a group of 32: two of 16 of the same scale
        codes = codes.astype(np.uint8) if storage.bits == 4 else codes  # Q4_K's, which are 0 to 15
    scale = np.repeat(split.scale.reshape(rows, -1), times, axis=1)
    minimum = None if split.minimum is None else np.repeat(split.minimum.reshape(rows, -1), times, axis=1)
    if storage.has_minimum and minimum is None:
        minimum = np.zeros_like(scale)
    return Split(codes.reshape(rows, -1, codes.shape[-1] // times), scale, minimum)


def row_order(part: Part) -> np.ndarray | None:
    """Where the part's rows go, for those with interleaved heads."""
    return halves_order(part.interleaved_heads, part.head_dim, part.shape[0]) if part.interleaved_heads else None
