"""Matrices in 16 bits: half the bytes of float32, and thus half the time of a decode step.

Decoding reads every weight once per token, so the memory sets its speed. A matrix is widened to float32 a tile at a
time, right before the product that needs it, and never exists in float32 as a whole.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from ..arrays import Float, Int
from ..devices.workers import TILE, Workers

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
        """x2d @ W.T, with W widened a few rows at a time.

        The products are `np.dot`: for a single vector `@` holds Python's lock, and the other threads would wait.
        """
        height, width = self.shape
        scaled = self.dtype == np.float16
        x2d = x2d * SCALE_IN if scaled else x2d
        y = np.empty((len(x2d), height), dtype=np.float32)
        at_once = TILE // width

        def work(first: int, last: int, scratch: np.ndarray) -> None:
            for start in range(first, last, at_once):
                rows = self.codes[start : min(start + at_once, last)]
                tile = scratch[: rows.size].reshape(rows.shape)
                widen_half(rows, tile)
                out = y[:, start : start + len(rows)]
                if len(x2d) == 1:
                    np.dot(x2d, tile.T, out=out)
                else:  # for a few vectors the transposed product is twice as fast
                    out[...] = np.dot(tile, x2d.T).T

        self.workers.share(height, height * width, work)
        if scaled:
            y *= SCALE_OUT
        return y

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        return self.codes[ids].astype(np.float32)


def widen_half(codes: np.ndarray, out: np.ndarray) -> None:
    """Write the numbers to `out` as float32, those of float16 divided by 2¹¹².

    NumPy widens bfloat16 and int8 fast, but float16 one number at a time. Here the bits of float16 are moved to where
    float32 has them: the sign stays, exponent and fraction move by 13. The exponent of float16 has a bias of 15, that
    of float32 one of 127, so the result is too small by exactly 2¹¹², for subnormal numbers too. A product makes up for
    it in two steps, SCALE_IN on the vectors (which may reach 2⁴⁸) and SCALE_OUT on the result: one step could overflow.
    """
    if codes.dtype != np.float16:
        np.copyto(out, codes)
        return
    bits = out.view(np.int32)
    np.copyto(bits, codes.view(np.int16))  # the sign fills the upper half
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8fffe000: the sign, and the bits that moved
