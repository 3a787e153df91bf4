"""Matrices in 16, 8 or 4 bits: a half to an eighth of the bytes of float32.

Decoding reads every weight once per token, so the memory sets its speed. A matrix is widened to float32 a tile at a
time, right before the product that needs it, and never exists in float32 as a whole. All arithmetic is float32.

The products are `np.dot`: for a single vector `@` holds Python's lock, and the other threads would wait.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np

from ..arrays import Float, Int
from ..devices.workers import TILE, Workers
from . import nibbles

FEW = 8  # with at most this many vectors `Groups` scales the products, with more the weights
SCALE_IN, SCALE_OUT = 2.0**80, 2.0**32  # together 2**112: see `widen_half`


class HalfLayout(NamedTuple):
    """A matrix in 16 bits: which dtype."""

    dtype: type  # numpy.float16 or ml_dtypes.bfloat16

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """The memory that a matrix of this shape takes."""
        return 2 * prod(shape)


class Half:
    """A matrix of 16-bit floating-point numbers, which implements `arrays.Packed`.

    codes : [F, D], float16 or bfloat16, without infinities and NaN
    """

    def __init__(self, codes: np.ndarray, workers: Workers) -> None:
        self.codes, self.workers = codes, workers
        self.shape, self.dtype, self.nbytes = codes.shape, codes.dtype, codes.nbytes

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T, with W widened a few rows at a time."""
        height, width = self.shape
        scaled = self.dtype == np.float16
        x2d = x2d * SCALE_IN if scaled else x2d
        y = np.empty((len(x2d), height), dtype=np.float32)
        at_once = TILE // width

        def work(first: int, last: int) -> None:
            tiles = np.empty((at_once, width), dtype=np.float32)
            for start in range(first, last, at_once):
                rows = slice(start, min(start + at_once, last))
                tile = widen_half(self.codes[rows], tiles)
                # For a few vectors the transposed product is twice as fast.
                y[:, rows] = np.dot(x2d, tile.T) if len(x2d) == 1 else np.dot(tile, x2d.T).T

        self.workers.share(height, height * width, work)
        if scaled:
            y *= SCALE_OUT
        return y

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        return self.codes[ids].astype(np.float32)


def widen_half(codes: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The numbers as float32, in the first rows of `out`; those of float16 divided by 2¹¹².

    NumPy widens bfloat16 and int8 fast, but float16 one number at a time. Here the bits of float16 are moved to where
    float32 has them: the sign stays, exponent and fraction move by 13. The exponent of float16 has a bias of 15, that
    of float32 one of 127, so the result is too small by exactly 2¹¹², for subnormal numbers too. A product makes up for
    it in two steps, SCALE_IN on the vectors (which may reach 2⁴⁸) and SCALE_OUT on the result: one step could overflow.
    """
    out = out[: len(codes)]
    if codes.dtype != np.float16:
        np.copyto(out, codes)
        return out
    bits = out.view(np.int32)
    np.copyto(bits, codes.view(np.int16))  # the sign fills the upper half
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8fffe000: the sign, and the bits that moved
    return out


class Groups:
    """A matrix of codes, W = scale · (codes + offset) + minimum; it implements `arrays.Packed`.

    The rows are divided into blocks, and within a block the row index runs fastest. One group of a vector times the
    same group of all rows of the block is then one product, [1, 32] @ [32, rows], and the scale is applied to its
    result: one multiplication instead of 32.

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
        """x2d @ W.T, with W widened a few blocks at a time."""
        blocks, groups, _, rows = self.codes.shape
        vectors, width = x2d.shape
        y = np.empty((blocks, vectors, rows), dtype=np.float32)
        grouped = x2d.reshape(vectors, groups, self.group).swapaxes(0, 1)  # [groups, T, elements]
        sums = grouped.sum(axis=-1).T  # [T, groups]
        at_once = max(1, TILE // (rows * width))

        def work(first: int, last: int) -> None:
            buffer = np.empty((at_once, groups, self.group, rows), dtype=np.float32)
            for start in range(first, last, at_once):
                some = slice(start, min(start + at_once, last))
                tiles = self.widen(some, buffer)
                scale = self.scale[some].astype(np.float32, copy=False)
                if vectors <= FEW:
                    products = grouped @ tiles  # [blocks, groups, T, rows]
                    products *= scale[:, :, None, :]
                    y[some] = products.sum(axis=1)
                else:
                    tiles *= scale[:, :, None, :]
                    for block, tile in enumerate(tiles, start):
                        np.dot(x2d, tile.reshape(width, rows), out=y[block])
                for block in range(len(scale)):
                    if self.offset:
                        y[start + block] += self.offset * np.dot(sums, scale[block])
                    if self.minimum is not None:
                        y[start + block] += np.dot(sums, self.minimum[start + block].astype(np.float32, copy=False))

        self.workers.share(blocks, blocks * rows * width, work)
        return y.swapaxes(0, 1).reshape(vectors, -1)[:, : self.shape[0]]

    def widen(self, blocks: slice, out: np.ndarray) -> Float[np.ndarray, "blocks groups elements rows"]:
        """The codes of some blocks, or the integers that they stand for, as float32, in the first blocks of `out`."""
        codes = self.codes[blocks]
        out = out[: len(codes)]
        if self.bits == 8:
            np.copyto(out, codes)
            return out
        numbers = self.values or (lambda part: part)
        lower, upper = np.split(out, 2, axis=2)
        part = codes & 15
        np.copyto(lower, numbers(part))
        np.copyto(upper, numbers(np.right_shift(codes, 4, out=part)))  # a new array would leave the cache
        return out

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
