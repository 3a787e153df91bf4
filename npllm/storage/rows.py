"""Matrices in 8 or 4 bits on a GPU.

On the CPU, `Groups` lets the row index run fastest, which suits NumPy's products. Here each row is contiguous, as in a
plain matrix, because the warp that multiplies it reads neighbouring bytes. Codes and scales are the same.
"""

from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array, Float, Int, array_namespace
from . import nibbles
from .groups import Groups

WIDENED = 2**24  # elements that are widened at once: 64 MB


class RowGroups:
    """A matrix of codes, W = scale · (codes + offset) + minimum, with a scale for each group of a row.

    codes : [F, D], int8 or uint8; 4 bits: [F, D / 2], uint8, each group packed as in nibbles.py
    scale : [F, groups], float32, or the bits of bfloat16 as uint16, because CuPy has no bfloat16 arithmetic
    minimum : like scale, or None
    offset : the same for all elements
    bits : 8 or 4
    """

    def __init__(self, codes: Array, scale: Array, minimum: Array | None, offset: int, bits: int) -> None:
        self.codes, self.scale, self.minimum, self.offset, self.bits = codes, scale, minimum, offset, bits
        height, groups = scale.shape
        self.shape = (height, codes.shape[1] * 8 // bits)
        self.group = self.shape[1] // groups
        self.dtype = f"int{bits}/{self.group}"
        self.nbytes = codes.nbytes + scale.nbytes + (0 if minimum is None else minimum.nbytes)

    def matmul(self, x2d: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """x2d @ W.T, with W widened a few rows at a time."""
        xp = array_namespace(x2d)
        height, width = self.shape
        y = xp.empty((x2d.shape[0], height), dtype=xp.float32, device=x2d.device)
        at_once = max(1, WIDENED // width)
        for first in range(0, height, at_once):
            rows = slice(first, min(first + at_once, height))
            y[:, rows] = x2d @ self.widened(rows).T
        return y

    def rows(self, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
        """W[ids]"""
        return self.widened(ids)

    def widened(self, rows: Int[Array, " T"] | slice) -> Float[Array, "T D"]:
        """Some rows in float32."""
        codes, scale = self.codes[rows, :], widened_scale(self.scale[rows, :])[..., None]
        xp = array_namespace(codes)
        if self.bits == 4:
            codes = nibbles.unpack(xp.reshape(codes, (codes.shape[0], -1, self.group // 2)))
        grouped = xp.reshape(xp.astype(codes, xp.float32), (codes.shape[0], -1, self.group))
        values = (grouped + float(self.offset)) * scale
        if self.minimum is not None:
            values = values + widened_scale(self.minimum[rows, :])[..., None]
        return xp.reshape(values, (codes.shape[0], self.shape[1]))


def widened_scale(scale: Array) -> Float[Array, "F groups"]:
    """Scales in float32, of which bfloat16 is the upper half."""
    xp = array_namespace(scale)
    return scale if scale.dtype == xp.float32 else (xp.astype(scale, xp.uint32) << 16).view(xp.float32)


def row_groups(groups: Groups, xp: Any = np) -> RowGroups:
    """The same matrix row by row, in arrays of the library `xp`, which may be CuPy."""
    assert groups.values is None  # codes that stand for other integers are packed on the CPU only
    height = groups.shape[0]

    def by_rows(parts: np.ndarray) -> Array:  # [blocks, ..., rows] to [F, the rest]
        last = np.moveaxis(parts, -1, 1)
        whole = np.ascontiguousarray(last.reshape(last.shape[0] * last.shape[1], -1)[:height])
        return xp.asarray(whole.view(np.uint16) if whole.dtype == ml_dtypes.bfloat16 else whole)

    minimum = None if groups.minimum is None else by_rows(groups.minimum)
    return RowGroups(by_rows(groups.codes), by_rows(groups.scale), minimum, groups.offset, groups.bits)
