"""Weights that multiply by themselves, mostly in fewer bits than float32: what implements `shapes.Packed`.

Decoding reads every weight once for each token, so its speed is that of the memory: half the bytes take half the time,
as long as widening them keeps up. All arithmetic is float32; a weight is widened a tile at a time, right before the
product that needs it, and never exists in float32 as a whole. The products of two matrices are `np.dot`: for a single
vector `@` keeps Python's lock, and the other threads would wait for it.

    Half     float16 or bfloat16, as most checkpoints have them
    Groups   8 or 4 bits, with a scale, and perhaps a minimum, for every few numbers of a row, as in GGUF files
    Columns  float32, column by column: what embeds and scores at once in a small model
"""

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from ..arrays import Float, Int
from ..devices.threads import TILE, Workers

SHORT_ROW = 1024
BEFORE, BEHIND = 2.0**80, 2.0**32  # see `widen_half`
FEW = 8  # vectors at once: up to here `Groups` scales the products, beyond it the weights


class Half:
    """A matrix of 16-bit floating-point numbers, as they are in the file.

    codes : [F, D], float16 or bfloat16, without infinities and NaN
    """

    def __init__(self, codes: np.ndarray, workers: Workers) -> None:
        self.codes, self.workers = codes, workers
        self.shape, self.dtype, self.nbytes = codes.shape, codes.dtype, codes.nbytes

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        return tile_by_tile(x2d, self.codes, self.workers)

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        return self.codes[ids].astype(np.float32)


class Groups:
    """A matrix of whole numbers, of which every few in a row share a scale: W = scale · (codes + offset) + minimum.

    It is kept in blocks of rows, and in a block with the rows running fastest. So a group of one vector times a group
    of all the block's rows is one product, [1, 32] @ [32, rows], and the scale is applied to what comes out: one
    multiplication where there were 32.

    Two codes of 4 bits share a byte, 16 · upper + lower. With few vectors the byte is widened as it is, in place of
    the upper code, and their numbers x for it and z for the lower one make up for that, without a shift:
    x · upper + z · lower = x/16 · byte + (z - x/16) · lower.

    codes : [blocks, groups, numbers, rows], int8 or uint8; of 4 bits: [blocks, groups, numbers / 2, rows], uint8, a
        group's first half in the lower four bits
    scale : [blocks, groups, rows], float32; bfloat16 where the codes were made for that
    minimum : of that shape and dtype too, or None
    offset : the same for all numbers
    height : F; the last block may have rows to spare
    bits : 8 or 4
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
    ) -> None:
        self.codes, self.scale, self.minimum, self.offset = codes, scale, minimum, offset
        self.bits, self.workers = bits, workers
        _, groups, stored, _ = codes.shape
        self.group = stored * 8 // bits
        self.shape, self.dtype = (height, groups * self.group), f"int{bits}/{self.group}"
        self.nbytes = codes.nbytes + scale.nbytes + (0 if minimum is None else minimum.nbytes)

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        blocks, groups, _, rows = self.codes.shape
        vectors, width = x2d.shape
        few = vectors <= FEW
        y = np.empty((blocks, vectors, rows), dtype=np.float32)
        grouped = x2d.reshape(vectors, groups, self.group).swapaxes(0, 1)  # [groups, T, numbers]
        sums = grouped.sum(axis=-1).T  # [T, groups]
        ones = np.ones((1, groups), dtype=np.float32)
        if few and self.bits == 4:
            lower, upper = np.split(grouped, 2, axis=-1)
            grouped = np.concatenate([lower - upper / 16, upper / 16], axis=-1)

        def work(first: int, last: int, scratch: np.ndarray) -> None:
            for block in range(first, last):
                tile = self.widen(block, scratch, whole_bytes=few)
                scale = self.scale[block].astype(np.float32, copy=False)
                if few:
                    partial = grouped @ tile  # [groups, T, rows]
                    partial *= scale[:, None, :]
                    np.dot(ones, partial.reshape(groups, -1), out=y[block].reshape(1, -1))  # their sum
                else:
                    tile *= scale[:, None, :]
                    np.dot(x2d, tile.reshape(width, rows), out=y[block])
                if self.offset:
                    y[block] += self.offset * np.dot(sums, scale)
                if self.minimum is not None:
                    y[block] += np.dot(sums, self.minimum[block].astype(np.float32, copy=False))

        self.workers.share(blocks, blocks * rows * width, work)
        return y.swapaxes(0, 1).reshape(vectors, -1)[:, : self.shape[0]]

    def widen(self, block: int, scratch: np.ndarray, whole_bytes: bool) -> Float[np.ndarray, "groups numbers rows"]:
        """The codes of a block as float32; with `whole_bytes`, 16 · upper + lower in place of the upper ones."""
        codes = self.codes[block]
        groups, stored, rows = codes.shape
        size = groups * self.group * rows
        tile = scratch[:size].reshape(groups, self.group, rows)
        if self.bits == 8:
            np.copyto(tile, codes)
            return tile
        one_by_one = scratch[size:].view(np.uint8)[: codes.size].reshape(codes.shape)
        np.copyto(tile[:, :stored], np.bitwise_and(codes, 15, out=one_by_one))
        np.copyto(tile[:, stored:], codes if whole_bytes else np.right_shift(codes, 4, out=one_by_one))
        return tile

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        block, row = np.divmod(ids, self.codes.shape[-1])
        codes = self.codes[block, :, :, row]  # [T, groups, numbers]
        if self.bits == 4:
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1)
        numbers = (codes.astype(np.float32) + self.offset) * self.scale[block, :, row].astype(np.float32)[..., None]
        if self.minimum is not None:
            numbers += self.minimum[block, :, row].astype(np.float32)[..., None]
        return numbers.reshape(len(ids), self.shape[1])


class Columns:
    """A float32 matrix of short rows, kept column by column; see `by_columns`.

    columns : [D, F]
    """

    def __init__(self, columns: np.ndarray) -> None:
        self.columns = columns
        self.shape, self.dtype, self.nbytes = columns.shape[::-1], columns.dtype, columns.nbytes

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        return x2d @ self.columns

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        return self.columns[:, ids].T


def has_short_rows(shape: tuple[int, ...]) -> bool:
    """Whether `by_columns` turns a weight of this shape."""
    return len(shape) == 2 and shape[1] <= SHORT_ROW and math.prod(shape) >= 2**18


def by_columns(weight: np.ndarray, embeds: bool, room: np.ndarray | None = None) -> np.ndarray | Columns:
    """The same weight; a matrix [F, D] in another order of its numbers if a product with a vector is faster so.

    With short rows it is, by a fifth of a small model's time: along a row BLAS starts a new sum every few hundred
    numbers, along a column it adds to thousands of sums at once. It stays an array like any other, but for the
    embeddings of a tied model (`embeds`): NumPy's `take`, which looks rows up, would copy all of them first.

    room : where to put what is turned: as many numbers, in any shape; see `rooms`
    """
    if not has_short_rows(weight.shape):
        return weight
    columns = np.empty(weight.shape[::-1], dtype=weight.dtype) if room is None else room.reshape(weight.shape[::-1])
    np.copyto(columns, weight.T)
    return Columns(columns) if embeds else columns.T


def rooms(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """An empty float32 array of each shape, C order, all in one piece of memory.

    Linux gives memory in pages of 4 KB, and a processor does not read ahead beyond the end of one. For an array of
    4 MB or more NumPy asks for pages of 2 MB, from which a product with a vector takes up to a sixth less time. So
    smaller matrices, of which a small model is made, share one.
    """
    starts = np.cumsum([0, *(-(-math.prod(shape) // 16) * 16 for shape in shapes.values())])  # each in a cache line
    piece = np.empty(starts[-1] + 16, dtype=np.float32)
    first = -piece.ctypes.data // 4 % 16
    return {
        name: piece[start : start + math.prod(shape)].reshape(shape)
        for (name, shape), start in zip(shapes.items(), starts[:-1] + first, strict=True)
    }


def tile_by_tile(x2d: np.ndarray, codes: np.ndarray, workers: Workers) -> np.ndarray:
    """x2d @ codes.T, the codes widened a few rows at a time."""
    height, width = codes.shape
    if codes.dtype == np.float16:
        x2d = x2d * BEFORE
    y = np.empty((len(x2d), height), dtype=np.float32)
    at_once = TILE // width

    def work(first: int, last: int, scratch: np.ndarray) -> None:
        for start in range(first, last, at_once):
            some = codes[start : min(start + at_once, last)]
            tile = scratch[: some.size].reshape(some.shape)
            widen_half(some, tile)
            out = y[:, start : start + len(some)]
            if len(x2d) == 1:
                np.dot(x2d, tile.T, out=out)
            else:  # for a few vectors the product the other way round is twice as fast
                out[...] = np.dot(tile, x2d.T).T

    workers.share(height, height * width, work)
    if codes.dtype == np.float16:
        y *= BEHIND
    return y


def widen_half(codes: np.ndarray, out: np.ndarray) -> None:
    """The same numbers as float32; but float16's come out 2¹¹² times too small.

    NumPy widens bfloat16 and int8 fast, but float16 one number at a time. So float16's bits are put where float32 has
    them: the sign stays, exponent and fraction move by 13. The exponents count from 15 and not from 127, so it is
    exactly 2¹¹² that is missing, also of the numbers too small to have an exponent. A product makes up for it, in part
    with its vectors, which may have numbers up to 2⁴⁸, in part with what comes out: all at once could overflow.
    """
    if codes.dtype != np.float16:
        np.copyto(out, codes)
        return
    bits = out.view(np.int32)
    np.copyto(bits, codes.view(np.int16))  # the sign fills the upper half
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8fffe000: the sign, and what moved


def blocks_for(height: int, width: int) -> tuple[int, int]:
    """How many blocks `Groups` makes of a matrix, and of how many rows: they fill three quarters of a tile."""
    rows = math.ceil(height / math.ceil(height * width / (TILE * 3 // 4)))
    if rows > 16:  # whole vectors of the processor
        rows = min(math.ceil(rows / 16) * 16, TILE // width)
    return math.ceil(height / rows), rows


def quantize_groups(
    weight: Float[np.ndarray, "F D"], bits: int, group: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """codes [F, groups, numbers], scale and minimum [F, groups] for `Groups`.

    8 bits: -127 to 127, float32 scales, no minimum. 4 bits: 0 to 15, from the group's smallest number to its largest;
    scale and minimum are rounded to bfloat16 first, and the codes made for these. (Of 8 bits it would cost the last.)
    """
    grouped = weight.reshape(len(weight), -1, group)
    if bits == 8:
        scale = np.abs(grouped).max(axis=-1) / 127
        return np.rint(grouped / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale, None
    minimum = grouped.min(axis=-1).astype(ml_dtypes.bfloat16)
    above = grouped - minimum.astype(np.float32)[..., None]
    scale = (above.max(axis=-1).clip(0) / 15).astype(ml_dtypes.bfloat16)
    steps = np.rint(above / np.maximum(scale.astype(np.float32), 1e-30)[..., None])
    return steps.clip(0, 15).astype(np.uint8), scale, minimum


def fill_groups(packed: Groups, first: int, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None) -> None:
    """Put the rows from `first` on into their places: codes [F, groups, numbers], scale and minimum [F, groups].

    Of 4 bits the codes may also be two in a byte already, [F, groups, numbers / 2].
    """
    rows = packed.codes.shape[-1]
    if packed.bits == 4 and codes.shape[-1] == packed.group:
        half = packed.group // 2
        codes = codes[..., :half] | (codes[..., half:] << 4)
    done = 0
    while done < len(codes):
        block, row = divmod(first + done, rows)
        count = min(rows - row, len(codes) - done)
        some = slice(done, done + count)
        packed.codes[block, :, :, row : row + count] = codes[some].transpose(1, 2, 0)
        packed.scale[block, :, row : row + count] = scale[some].T
        if packed.minimum is not None and minimum is not None:
            packed.minimum[block, :, row : row + count] = minimum[some].T
        done += count


def empty_groups(
    height: int,
    width: int,
    bits: int,
    group: int,
    offset: int,
    has_minimum: bool,
    workers: Workers,
    scale_dtype: type = np.float32,
) -> Groups:
    """A `Groups` to be filled by `fill_groups`; the rows to spare are zeros."""
    blocks, rows = blocks_for(height, width)
    groups = width // group
    codes = np.zeros((blocks, groups, group * bits // 8, rows), dtype=np.uint8 if bits == 4 or offset else np.int8)
    scale: np.ndarray = np.zeros((blocks, groups, rows), dtype=scale_dtype)
    return Groups(codes, scale, scale.copy() if has_minimum else None, offset, height, bits, workers)
