"""The product of a stored matrix with many vectors: BLAS multiplies some rows at a time, which a loop has widened.

With many vectors the limit is arithmetic, and there BLAS is faster than any loop. It computes in the threads of the
team, each with rows of its own, and uses no threads itself: they would compete with the team's for the cores, and all
of them would wait for one that another process holds up.

The definition is `linear(x, weight)`.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np

from ..arrays import Float
from ..devices.threads import blas
from ..storage.columns import Columns
from ..storage.packed import Groups, Half
from .jit import bfloat16, float16, jit, view
from .records import BFLOAT16, BYTES
from .team import count

F32, U16, I8, U8 = np.float32(0), np.uint16(0), np.int8(0), np.uint8(0)  # for `view`
PIECES = 2  # of the rows, for each thread
LEAST = 64  # rows of a piece: with fewer BLAS is slow
TILE = 2**20  # elements that a thread widens at a time
FEW, SMALL_TILE = 128, 2**18  # with fewer vectors widening takes more of the time; such a tile stays in the cache

libraries = cache(blas)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS computes in the thread that calls it."""
    limit: AbstractContextManager[Any] = libraries().limit(limits=1)
    return limit


@jit
def widen_rows(w, first, last, out):
    """out = W[first:last], for a matrix of 16 bits."""
    codes = view(w["codes"], (w["height"], w["width"]), U16)
    for f in range(first, last):
        row, of_row = out[f - first], codes[f]
        if w["form"] == BFLOAT16:
            for i in range(len(row)):
                row[i] = bfloat16(of_row[i])
        else:
            for i in range(len(row)):
                row[i] = float16(of_row[i])


@jit
def widen_vector(address, place, narrow, out):
    """The scales, or the minima, of a group of all rows of a block, which begin at element `place`."""
    codes, numbers = view(address, (place + len(out),), U16), view(address, (place + len(out),), F32)
    for r in range(len(out)):
        out[r] = bfloat16(codes[place + r]) if narrow else numbers[place + r]


@jit
def widen_block(w, block, out):
    """out [D, rows] = the columns of a block of rows, for a matrix in groups."""
    group, rows, offset = w["group"], w["rows"], w["offset"]
    groups, half = w["width"] // group, group // 2
    scale, minimum = np.empty(rows, np.float32), np.zeros(rows, np.float32)
    codes = view(w["codes"], (block + 1, groups, group, rows), I8)[block]
    nibbles = view(w["codes"], (block + 1, groups, half, rows), U8)[block]
    for g in range(groups):
        place = (block * groups + g) * rows
        widen_vector(w["scale"], place, w["narrow"], scale)
        if w["minimum"]:
            widen_vector(w["minimum"], place, w["narrow"], minimum)
        tile = out[g * group : (g + 1) * group]
        if w["form"] == BYTES:
            for n in range(group):
                for r in range(rows):
                    tile[n, r] = (np.float32(codes[g, n, r]) + offset) * scale[r] + minimum[r]
        elif w["values"]:
            values = view(w["values"], (16,), F32)
            for n in range(half):
                for r in range(rows):
                    code = np.int32(nibbles[g, n, r])
                    tile[n, r], tile[half + n, r] = values[code & 15] * scale[r], values[code >> 4] * scale[r]
        else:
            for n in range(half):
                for r in range(rows):
                    code = np.int32(nibbles[g, n, r])
                    tile[n, r] = (np.float32(code & 15) + offset) * scale[r] + minimum[r]
                    tile[half + n, r] = (np.float32(code >> 4) + offset) * scale[r] + minimum[r]


def columns(weight: Any, w: Any, first: int, last: int, buffer: np.ndarray) -> Float[np.ndarray, "D F"]:
    """W[first:last].T in float32; of a matrix in groups, the rows must be whole blocks.

    w : its record
    buffer : for widened elements
    """
    width = weight.shape[1]
    if isinstance(weight, Columns):
        return weight.columns[:, first:last]
    if isinstance(weight, np.ndarray):
        return weight[first:last].T
    if isinstance(weight, Half):
        rows = buffer[: (last - first) * width].reshape(-1, width)
        widen_rows(w, first, last, rows)
        return rows.T
    at_once = int(w["rows"])
    blocks = range(first // at_once, -(-last // at_once))
    out = buffer[: width * at_once * len(blocks)].reshape(width, -1)
    for place, block in enumerate(blocks):
        widen_block(w, block, out[:, place * at_once : (place + 1) * at_once])
    return out[:, : last - first]


def multiply(
    thread: int,
    threads: int,
    x: Float[np.ndarray, "T D"],
    weight: Any,
    w: Any,
    bias: Float[np.ndarray, " F"] | None,
    y: Float[np.ndarray, "T F"],
    counters: np.ndarray,
) -> None:
    """y = x Wᵀ + bias, by all threads of a team, with BLAS on `one_thread`; w : the record of the weight."""
    weight = getattr(weight, "weight", weight)  # a plain matrix
    height, width = weight.shape
    narrow, unit = isinstance(weight, (Half, Groups)), int(w["rows"]) if isinstance(weight, Groups) else 1
    at_once = max(LEAST, -(-height // (PIECES * threads)))
    few = len(x) < FEW
    if narrow:
        at_once = min(at_once, max(LEAST, (SMALL_TILE if few else TILE) // width))
    at_once = -(-at_once // unit) * unit
    x_columns = np.ascontiguousarray(x.T) if few else x.T
    buffer = np.empty(at_once * width if narrow else 0, np.float32)
    while True:
        first = count(counters, 0) * at_once
        if first >= height:
            return
        last = min(first + at_once, height)
        part, tile = y[:, first:last], columns(weight, w, first, last, buffer)
        if few:  # OpenBLAS is faster with the vectors as columns
            part[:] = (tile.T @ x_columns).T
        else:
            np.matmul(x, tile, out=part)
        if bias is not None:
            part += bias[first:last]
