"""How matrices in 8 or 4 bits are laid out, quantized and filled: a scale for each group of a row, as in GGUF files."""

import math
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ..arrays import Float
from ..devices.workers import Workers
from . import nibbles
from .blocks import BlockFormat, Split
from .packed import Groups

ROWS = 96  # of a block: six vector registers of 16 float32 elements, and the heights of most models are multiples


class GroupLayout(NamedTuple):
    """A matrix in groups: how many bits, and what each group has."""

    bits: int  # 8 or 4
    group: int = 32
    offset: int = 0
    has_minimum: bool = False
    scale_dtype: type = np.float32  # also of the minima: bfloat16 for the 4 bits that `quantize_groups` makes
    from_file: bool = False  # the codes and scales are those of the file; otherwise `quantize_groups` computes them
    values: Callable[[np.ndarray], np.ndarray] | None = None  # see `Groups`

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """The memory that a matrix of this shape takes."""
        elements = blocks_for(shape[0]) * ROWS * shape[1]
        scales = elements // self.group * (2 if self.has_minimum else 1)
        return elements * self.bits // 8 + scales * np.dtype(self.scale_dtype).itemsize

    def empty(self, shape: tuple[int, int], workers: Workers) -> Groups:
        """A matrix for `fill_groups` to fill; unused rows are zeros."""
        (height, width), bits = shape, self.bits
        blocks, groups = blocks_for(height), width // self.group
        dtype = np.uint8 if bits == 4 or self.offset else np.int8
        codes = np.zeros((blocks, groups, self.group * bits // 8, ROWS), dtype=dtype)
        scale: np.ndarray = np.zeros((blocks, groups, ROWS), dtype=self.scale_dtype)
        minimum = scale.copy() if self.has_minimum else None
        return Groups(codes, scale, minimum, self.offset, height, bits, workers, self.values)


def blocks_for(height: int) -> int:
    """The number of blocks of a matrix in `Groups`."""
    return math.ceil(height / ROWS)


def quantize_groups(weight: Float[np.ndarray, "F D"], bits: int, group: int = 32) -> Split:
    """The codes [F, groups, elements], scales and minima [F, groups] of a matrix.

    8 bits: codes from -127 to 127, float32 scales, no minimum. 4 bits: codes from 0 for the smallest element of the
    group to 15 for the largest. Scale and minimum are rounded to bfloat16 before the codes are computed, so the codes
    fit the rounded ones. (With 8 bits, bfloat16 scales would cost the last bit.)
    """
    grouped = weight.reshape(len(weight), -1, group)
    if bits == 8:
        scale = np.abs(grouped).max(axis=-1) / 127
        return Split(np.rint(grouped / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale, None)
    minimum = grouped.min(axis=-1).astype(ml_dtypes.bfloat16)
    above = grouped - minimum.astype(np.float32)[..., None]
    scale = (above.max(axis=-1).clip(0) / 15).astype(ml_dtypes.bfloat16)
    steps = np.rint(above / np.maximum(scale.astype(np.float32), 1e-30)[..., None])
    return Split(steps.clip(0, 15).astype(np.uint8), scale, minimum)


def fill_groups(groups: Groups, first: int, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None) -> None:
    """Copy rows into the matrix, from row `first` on: codes [F, groups, elements], scale and minimum [F, groups].

    4-bit codes may be packed already, [F, groups, elements / 2].
    """
    rows = groups.codes.shape[-1]
    if groups.bits == 4 and codes.shape[-1] == groups.group:
        codes = nibbles.pack(codes)
    done = 0
    while done < len(codes):
        block, row = divmod(first + done, rows)
        count = min(rows - row, len(codes) - done)
        some = slice(done, done + count)
        groups.codes[block, :, :, row : row + count] = codes[some].transpose(1, 2, 0)
        groups.scale[block, :, row : row + count] = scale[some].T
        if groups.minimum is not None and minimum is not None:
            groups.minimum[block, :, row : row + count] = minimum[some].T
        done += count


def regroup(split: Split, kind: BlockFormat, rows: int, layout: GroupLayout) -> Split:
    """A file's blocks as the rows of a matrix in this layout, with its group size, codes and minima."""
    if layout.bits == 4 and split.codes.shape[-1] < kind.group == layout.group:  # packed here, packed in memory
        codes, times = split.codes, 1
    else:
        codes, times = kind.codes(split), kind.group // layout.group  # a group of 32 as two of 16 with the same scale
        codes = codes.astype(np.uint8) if layout.bits == 4 else codes  # those of Q4_K, 0 to 15
    scale = np.repeat(split.scale.reshape(rows, -1), times, axis=1)
    minimum = None if split.minimum is None else np.repeat(split.minimum.reshape(rows, -1), times, axis=1)
    if layout.has_minimum and minimum is None:
        minimum = np.zeros_like(scale)
    return Split(codes.reshape(rows, -1, codes.shape[-1] // times), scale, minimum)
