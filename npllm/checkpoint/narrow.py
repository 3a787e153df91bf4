"""Matrices in 16, 8 or 4 bits: which layout each gets in memory, and reading it.

A matrix is read a few rows at a time, directly into this layout, and is never in float32 as a whole. GPT-2's matrices
are the exception: they are transposed in the file, so each is first assembled in float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from ..devices.workers import TILE, Workers
from ..storage.blocks import BlockFormat, Split
from ..storage.groups import GroupLayout, Groups, fill_groups, quantize_groups, regroup
from ..storage.own_format import GROUP, OWN_FORMATS, own_format
from ..storage.packed import Half, HalfLayout
from ..storage.stored import FORMATS, Stored, is_finite, not_finite, read_blocks, read_unchanged
from .plan import Part, halves_order

Layout: TypeAlias = HalfLayout | GroupLayout
# The values of --dtype: the 16-bit ones with their dtypes, the quantized ones with their bits.
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
QUANTIZED = {"int8": 8, "int4": 4}
IN_FILES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}  # the 16-bit dtypes by their names in files


def layout_for(shape: tuple[int, ...], formats: Sequence[str], dtype: str, name: str = "") -> Layout | None:
    """The layout of a matrix of this shape in memory; None for float32.

    formats : the formats of its parts in the file
    dtype : "auto" for the file's own width, "float32", "float16", "bfloat16", "int8", "int4"
    name : of the weight; a router is not quantized: it is small, and rounding would change the choice of experts
    """
    if name.endswith(".router") and dtype in QUANTIZED:
        return None
    if len(shape) != 2 or dtype == "float32" or shape[1] > TILE // 16:  # a tile holds at least 16 rows
        return None
    if dtype in HALVES:
        return HalfLayout(HALVES[dtype])
    if dtype in QUANTIZED:
        bits = QUANTIZED[dtype]
        return own_layout(bits, set(formats) == {own_format(bits)}) if shape[1] % GROUP == 0 else None
    return layout_of_file(formats)


def layout_of_file(formats: Sequence[str]) -> Layout | None:
    """The layout that has the file's own width, and holds parts in all of these formats; None for float32."""
    first, same = formats[0], len(set(formats)) == 1
    if same and first in OWN_FORMATS:
        return own_layout(OWN_FORMATS[first].bits, from_file=True)
    if same and first in IN_FILES:
        return HalfLayout(IN_FILES[first])
    kinds = [kind for kind in map(FORMATS.get, formats) if isinstance(kind, BlockFormat)]
    if len(kinds) < len(formats):
        return None
    alike = {(kind.smallest, kind.values, kind.scale_dtype) for kind in kinds}
    four = all(kind.bits == 4 for kind in kinds) and len(alike) == 1
    smallest, values, scale_dtype = alike.pop()
    return GroupLayout(
        bits=4 if four else 8,
        group=min(kind.group for kind in kinds),
        offset=smallest if four and not values else 0,
        has_minimum=any(kind.has_minimum for kind in kinds),
        scale_dtype=scale_dtype if four else np.float32,
        from_file=True,
        values=values if four else None,
    )


def own_layout(bits: int, from_file: bool) -> GroupLayout:
    """The layout of what `quantize_groups` returns, now or when `npllm convert` wrote the file."""
    four = bits == 4
    scale_dtype = ml_dtypes.bfloat16 if four else np.float32
    return GroupLayout(bits, GROUP, has_minimum=four, scale_dtype=scale_dtype, from_file=from_file)


def read_narrow(
    shape: tuple[int, ...],
    parts: Sequence[Part],
    tensors: Mapping[str, Stored],
    layout: Layout,
    workers: Workers,
) -> Half | Groups:
    """One matrix, each part read into its rows.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    height, width = shape
    if isinstance(layout, HalfLayout):
        codes: np.ndarray = np.empty((height, width), dtype=layout.dtype)
        for part in parts:
            read_half(codes[part.first : part.first + part.shape[0]], part, tensors[part.name])
        return Half(codes, workers)
    groups = layout.empty((height, width), workers)
    for part in parts:
        read_groups(groups, part, tensors[part.name], layout)
    return groups


def narrowed(weight: np.ndarray, layout: Layout, workers: Workers) -> Half | Groups:
    """A float32 matrix in this layout."""
    if isinstance(layout, HalfLayout):
        return Half(weight.astype(layout.dtype), workers)
    groups = layout.empty((weight.shape[0], weight.shape[1]), workers)
    fill_groups(groups, 0, *quantize_groups(weight, layout.bits))
    return groups


def read_half(out: np.ndarray, part: Part, stored: Stored) -> None:
    """Fill the rows of a 16-bit matrix from one part, unchanged or rounded."""
    order, row = row_order(part), 0
    unchanged = IN_FILES.get(stored.dtype) == out.dtype
    if unchanged and order is None:
        read_unchanged(out, stored)
        return
    for count, raw in read_blocks(stored):
        if unchanged:
            codes = values = raw.view(out.dtype).reshape(count, -1)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are detected below
                values = FORMATS[stored.dtype].widen(raw).reshape(count, -1)
                codes = values.astype(out.dtype)
        if not is_finite(codes):
            raise not_finite(stored, str(out.dtype) if is_finite(values) else "")
        out[destination(part, order, row, count)] = codes
        row += count


def read_groups(groups: Groups, part: Part, stored: Stored, layout: GroupLayout) -> None:
    """Fill the rows of a matrix in groups from one part."""
    order, row = row_order(part), part.first
    if order is None:
        for split in read_splits(stored, layout):
            fill_groups(groups, row, *split)
            row += len(split.codes)
    else:
        fill_groups(groups, row, *in_order(list(read_splits(stored, layout)), order))


def read_splits(stored: Stored, layout: GroupLayout) -> Iterator[Split]:
    """A tensor as rows of groups [rows, groups, elements], a few rows at a time, with the file's codes or new ones.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity
    """
    kind: Any = FORMATS[stored.dtype]
    for count, raw in read_blocks(stored):
        if layout.from_file:
            split = regroup(kind.split(raw), kind, count, layout)
            finite = is_finite(split.scale) and (split.minimum is None or is_finite(split.minimum))
        else:
            with np.errstate(invalid="ignore"):
                values = kind.widen(raw).reshape(count, -1)
            finite = is_finite(values)
        if not finite:
            raise not_finite(stored)
        yield split if layout.from_file else quantize_groups(values, layout.bits)


def in_order(pieces: Sequence[Split], order: np.ndarray | None) -> Split:
    """The rows of several pieces together, moved to their places if there is an order."""
    back = slice(None) if order is None else np.argsort(order)
    codes, scale, minimum = zip(*pieces, strict=True)
    minima = None if minimum[0] is None else np.concatenate(minimum)[back]
    return Split(np.concatenate(codes)[back], np.concatenate(scale)[back], minima)


def row_order(part: Part) -> np.ndarray | None:
    """The place of each row of the part, if it has interleaved heads; None if the rows stay where they are."""
    rows = part.shape[-1 if part.transposed else 0]
    return halves_order(part.interleaved_heads, part.head_dim, rows) if part.interleaved_heads else None


def destination(part: Part, order: np.ndarray | None, first: int, count: int) -> Any:
    """The destination of `count` rows of the file, from row `first` on: an index of the part as it is in the file."""
    rows = slice(first, first + count)
    if order is None:
        return rows
    return (rows, order) if part.transposed else order[rows]
