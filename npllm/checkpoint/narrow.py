"""Matrices that stay as narrow as the file has them, or are made so: reading them into backend/packed.py's storage.

No matrix is in memory in float32 as a whole: it is read a few rows at a time, straight into its place. (But for those
of GPT-2, which are transposed in the file and put together first, one at a time.)
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from ..backend.packed import Groups, Half, blocks_for, empty_groups, fill_groups, quantize_groups
from ..backend.workers import TILE, Workers
from .blocks import BLOCK_FORMATS, Split
from .names import Part, halves_order
from .stored import FORMATS, Stored, not_finite, read_blocks

# The values of --dtype: for 16 bits their dtypes, for fewer their bits. And the 16-bit dtypes by their names in files.
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
QUANTIZED = {"int8": 8, "int4": 4}
IN_FILES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
# With --dtype auto: a smaller matrix is faster in float32, because sharing its rows out to the cores costs 50 µs.
NARROW_FROM = 2**22


class Storage(NamedTuple):
    """How a matrix is kept."""

    half: type | None = None  # numpy.float16 or ml_dtypes.bfloat16
    bits: int = 0  # 8 or 4: in groups
    group: int = 32
    offset: int = 0
    has_minimum: bool = False
    from_blocks: bool = False  # the file's own codes and scales; else they are computed from its numbers

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """What a matrix of this shape takes."""
        if self.half is not None:
            return 2 * prod(shape)
        blocks, rows = blocks_for(*shape)
        return blocks * rows * shape[1] * self.bits // 8 + blocks * rows * shape[1] // self.group * (
            8 if self.has_minimum else 4
        )


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
        bits = QUANTIZED[dtype]
        return Storage(bits=bits, has_minimum=bits == 4) if shape[1] % 32 == 0 else None
    if prod(shape) < NARROW_FROM:
        return None
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


def read_narrow(
    shape: tuple[int, ...],
    parts: Sequence[Part],
    tensors: Mapping[str, Stored],
    storage: Storage,
    workers: Workers,
    bar: "tqdm[Any]",
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
            read_half(codes[part.first : part.first + part.shape[0]], part, tensors[part.name], bar)
        return Half(codes, workers)
    packed = empty_groups(height, width, storage.bits, storage.group, storage.offset, storage.has_minimum, workers)
    for part in parts:
        read_groups(packed, part, tensors[part.name], storage, bar)
    return packed


def narrowed(weight: np.ndarray, storage: Storage, workers: Workers) -> Half | Groups:
    """A matrix that had to be put together in float32 first."""
    if storage.half is not None:
        return Half(weight.astype(storage.half), workers)
    height, width = weight.shape
    packed = empty_groups(height, width, storage.bits, storage.group, storage.offset, storage.has_minimum, workers)
    fill_groups(packed, 0, *quantize_groups(weight, storage.bits))
    return packed


def read_half(place: np.ndarray, part: Part, stored: Stored, bar: "tqdm[Any]") -> None:
    """A part of a 16-bit matrix into its rows: as it is in the file, or rounded."""
    order, row = row_order(part), 0
    infinity = np.int16(0x7C00 if place.dtype == np.float16 else 0x7F80)
    for count, raw in read_blocks(stored):
        if IN_FILES.get(stored.dtype) == place.dtype:
            codes = raw.view(place.dtype).reshape(count, -1)
            rounded_to = ""
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # an infinity is found below
                numbers = FORMATS[stored.dtype].widen(raw).reshape(count, -1)
                codes = numbers.astype(place.dtype)
            rounded_to = str(place.dtype) if np.isfinite(numbers).all() else ""
        if np.max(codes.view(np.int16) & np.int16(0x7FFF)) >= infinity:
            raise not_finite(stored, rounded_to)
        rows = slice(row, row + count)
        place[rows if order is None else order[rows]] = codes
        row += count
        bar.update(len(raw) * raw.shape[1])


def read_groups(packed: Groups, part: Part, stored: Stored, storage: Storage, bar: "tqdm[Any]") -> None:
    """A part of a matrix in groups into its rows: the file's own codes and scales, or new ones for its numbers."""
    order = row_order(part)
    whole: list[Split] = []  # of a part whose rows change places
    row = part.first
    for count, raw in read_blocks(stored):
        if storage.from_blocks:
            split = regroup(BLOCK_FORMATS[stored.dtype].split(raw), count, storage)
            finite = np.isfinite(split.scale).all() and (split.minimum is None or np.isfinite(split.minimum).all())
        else:
            with np.errstate(invalid="ignore"):
                numbers = FORMATS[stored.dtype].widen(raw).reshape(count, -1)
            finite = np.isfinite(numbers.min()) and np.isfinite(numbers.max())
        if not finite:
            raise not_finite(stored)
        if not storage.from_blocks:
            split = Split(*quantize_groups(numbers, storage.bits))
        if order is None:
            fill_groups(packed, row, *split)
        else:
            whole.append(split)
        row += count
        bar.update(len(raw) * raw.shape[1])
    if order is not None:
        back = np.argsort(order)
        codes, scale, minimum = zip(*whole, strict=True)
        has_minimum = minimum[0] is not None
        fill_groups(
            packed,
            part.first,
            np.concatenate(codes)[back],
            np.concatenate(scale)[back],
            np.concatenate(minimum)[back] if has_minimum else None,
        )


def regroup(split: Split, rows: int, storage: Storage) -> Split:
    """A file's blocks as rows of groups [rows, groups, numbers] of the storage's size, codes and minima."""
    codes, scale, minimum = split
    times = codes.shape[-1] // storage.group  # a group of 32 is two groups of 16 that have the same scale
    scale = np.repeat(scale.reshape(rows, -1), times, axis=1)
    minimum = None if minimum is None else np.repeat(minimum.reshape(rows, -1), times, axis=1)
    if storage.has_minimum and minimum is None:
        minimum = np.zeros_like(scale)
    codes = codes.reshape(rows, -1, storage.group)
    return Split((codes - storage.offset).astype(np.uint8) if storage.bits == 4 else codes, scale, minimum)


def row_order(part: Part) -> np.ndarray | None:
    """Where the part's rows go, for those with interleaved heads."""
    return halves_order(part.interleaved_heads, part.head_dim, part.shape[0]) if part.interleaved_heads else None
