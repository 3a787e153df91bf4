"""Matrices in 8 or 4 bits: integer codes, with a scale and perhaps a minimum for each group of a row, as in GGUF files.

As in half.py, the codes are widened to float32 a tile at a time, and all arithmetic is float32. The products are
`np.dot`: for a single vector `@` holds Python's lock, and the other threads would wait.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ..arrays import Float, Int
from ..devices.workers import TILE, Workers
from . import nibbles
from .blocks import BlockFormat, Split

FEW = 8  # with at most this many vectors `Groups` scales the products, with more the weights


class Groups:
    """A matrix of codes, W = scale · (codes + offset) + minimum; it implements `arrays.Packed`.

    The rows are divided into blocks, and within a block the row index runs fastest. One group of a vector times the
    same group of all rows of the block is then one product, [1, 32] @ [32, rows], and the scale is applied to its
    result: one multiplication instead of 32.

    Two 4-bit codes share a byte, 16 · upper + lower. With few vectors the whole byte is widened in place of the upper
    code. If x is the vector's element for the upper code and z the one for the lower code, this gives the same without
    a shift: x · upper + z · lower = x/16 · byte + (z - x/16) · lower.

    codes : [blocks, groups, elements, rows], int8 or uint8; 4 bits: [blocks, groups, elements / 2, rows], uint8, packed
        along the elements as in nibbles.py
    scale : [blocks, groups, rows], float32; bfloat16 where the codes were computed for it
    minimum : like scale, or None
    offset : the same for all elements
    height : F; the last block may have unused rows
    bits : 8 or 4
    values : gives the integers that 4-bit codes stand for, where not for themselves: W = scale · values(codes)
    """

    def __init__(
        self,
        codes: np.ndarray,
        scale: np.ndarray,
        minimum: np.ndarray | None,
        offset: int,
        height: int,
        bits: int,
        workers: Workers,
        values: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.codes, self.scale, self.minimum, self.offset = codes, scale, minimum, offset
        self.bits, self.workers, self.values = bits, workers, values
        _, groups, stored, _ = codes.shape
        self.group = stored * 8 // bits
        self.shape, self.dtype = (height, groups * self.group), f"int{bits}/{self.group}"
        self.nbytes = codes.nbytes + scale.nbytes + (0 if minimum is None else minimum.nbytes)

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        blocks, groups, _, rows = self.codes.shape
        vectors, width = x2d.shape
        few = vectors <= FEW
        whole_bytes = few and self.bits == 4 and self.values is None
        y = np.empty((blocks, vectors, rows), dtype=np.float32)
        grouped = x2d.reshape(vectors, groups, self.group).swapaxes(0, 1)  # [groups, T, elements]
        sums = grouped.sum(axis=-1).T  # [T, groups]
        ones = np.ones((1, groups), dtype=np.float32)
        if whole_bytes:
            lower, upper = np.split(grouped, 2, axis=-1)
            grouped = np.concatenate([lower - upper / 16, upper / 16], axis=-1)

        def work(first: int, last: int, scratch: np.ndarray) -> None:
            for block in range(first, last):
                tile = self.widen(block, scratch, whole_bytes)
                scale = self.scale[block].astype(np.float32, copy=False)
                if few:
                    partial = grouped @ tile  # [groups, T, rows]
                    partial *= scale[:, None, :]
                    np.dot(ones, partial.reshape(groups, -1), out=y[block].reshape(1, -1))  # the sum over groups
                else:
                    tile *= scale[:, None, :]
                    np.dot(x2d, tile.reshape(width, rows), out=y[block])
                if self.offset:
                    y[block] += self.offset * np.dot(sums, scale)
                if self.minimum is not None:
                    y[block] += np.dot(sums, self.minimum[block].astype(np.float32, copy=False))

        self.workers.share(blocks, blocks * rows * width, work)
        return y.swapaxes(0, 1).reshape(vectors, -1)[:, : self.shape[0]]

    def widen(self, block: int, scratch: np.ndarray, whole_bytes: bool) -> Float[np.ndarray, "groups elements rows"]:
        """The codes of a block as float32; with `whole_bytes`, 16 · upper + lower in place of the upper ones."""
        codes = self.codes[block]
        groups, stored, rows = codes.shape
        size = groups * self.group * rows
        tile = scratch[:size].reshape(groups, self.group, rows)
        if self.bits == 8:
            np.copyto(tile, codes)
            return tile
        unpacked = scratch[size:].view(np.uint8)[: codes.size].reshape(codes.shape)
        if self.values is not None:
            np.copyto(tile[:, :stored], self.values(nibbles.lower(codes, unpacked)))
            np.copyto(tile[:, stored:], self.values(nibbles.upper(codes, unpacked)))
            return tile
        np.copyto(tile[:, :stored], nibbles.lower(codes, unpacked))
        np.copyto(tile[:, stored:], codes if whole_bytes else nibbles.upper(codes, unpacked))
        return tile

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        block, row = np.divmod(ids, self.codes.shape[-1])
        codes = self.codes[block, :, :, row]  # [T, groups, elements]
        if self.bits == 4:
            codes = nibbles.unpack(codes)
        if self.values is not None:
            codes = self.values(codes)
        values = (codes.astype(np.float32) + self.offset) * self.scale[block, :, row].astype(np.float32)[..., None]
        if self.minimum is not None:
            values += self.minimum[block, :, row].astype(np.float32)[..., None]
        return values.reshape(len(ids), self.shape[1])


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
        blocks, rows = blocks_for(*shape)
        elements = blocks * rows * shape[1]
        scales = elements // self.group * (2 if self.has_minimum else 1)
        return elements * self.bits // 8 + scales * np.dtype(self.scale_dtype).itemsize

    def empty(self, shape: tuple[int, int], workers: Workers) -> Groups:
        """A matrix for `fill_groups` to fill; unused rows are zeros."""
        (height, width), bits = shape, self.bits
        blocks, rows = blocks_for(height, width)
        groups = width // self.group
        dtype = np.uint8 if bits == 4 or self.offset else np.int8
        codes = np.zeros((blocks, groups, self.group * bits // 8, rows), dtype=dtype)
        scale: np.ndarray = np.zeros((blocks, groups, rows), dtype=self.scale_dtype)
        minimum = scale.copy() if self.has_minimum else None
        return Groups(codes, scale, minimum, self.offset, height, bits, workers, self.values)


def blocks_for(height: int, width: int) -> tuple[int, int]:
    """The number of blocks of a matrix in `Groups`, and of rows in each: a block fills three quarters of a tile."""
    rows = math.ceil(height / math.ceil(height * width / (TILE * 3 // 4)))
    if rows > 16:  # whole vector registers
        rows = min(math.ceil(rows / 16) * 16, TILE // width)
    return math.ceil(height / rows), rows


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
