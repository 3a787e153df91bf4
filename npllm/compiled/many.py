"""The product of a stored matrix with many vectors: BLAS multiplies some rows at a time, which a loop has widened.

With many vectors the limit is arithmetic, and there BLAS is faster than any loop. It computes in the threads of the
team, each with rows of its own, and uses no threads itself: they would compete with the team's for the cores, and all
of them would wait for one that another process holds up.

The definition is `linear(x, weight)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from ..arrays import Float
from ..devices.threads import blas, threads
from ..storage.columns import Columns
from ..storage.groups import ROWS
from ..storage.packed import Groups, Half
from .jit import bfloat16, float16, jit, view
from .products import F32, I8, U8, U16, lower, number, scales_of, upper
from .records import BFLOAT16, BYTES
from .team import count

PIECES = 2  # of the rows, for each thread
LEAST = 64  # rows of a piece: with fewer BLAS is slow
TILE = 2**20  # elements that a thread widens at a time
FEW, SMALL_TILE = 128, 2**18  # with fewer vectors widening takes more of the time; such a tile stays in the cache

libraries = cache(blas)
LOCK, INSIDE = Lock(), [0]  # how many are inside `one_thread`


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which BLAS computes in the thread that calls it, in the whole process."""
    with LOCK:
        INSIDE[0] += 1
        libraries().limit(limits=1)
    try:
        yield
    finally:
        with LOCK:
            INSIDE[0] -= 1
            if not INSIDE[0]:
                libraries().limit(limits=threads())


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
def widen_block(w, block, out):
    """out [D, ROWS] = the columns of a block of rows, for a matrix in groups."""
    group, groups, half = w["group"], w["width"] // w["group"], w["group"] // 2
    scale, shift = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    for i in range(groups):
        g = block * groups + i
        codes = view(w["codes"], (g + 1, group, ROWS), I8)[g]
        nibbles = view(w["codes"], (g + 1, half, ROWS), U8)[g]
        tile = out[i * group : (i + 1) * group]
        scales_of(w, g, scale, shift)
        if w["form"] == BYTES:
            for n in range(group):
                for r in range(ROWS):
                    tile[n, r] = number(codes[n, r]) * scale[r] + shift[r]
        elif w["values"]:
            values = view(w["values"], (16,), F32)
            for n in range(half):
                for r in range(ROWS):
                    code = np.int32(nibbles[n, r])
                    tile[n, r], tile[half + n, r] = values[code & 15] * scale[r], values[code >> 4] * scale[r]
        else:
            for n in range(half):
                for r in range(ROWS):
                    code = np.int32(nibbles[n, r])
                    tile[n, r] = lower(code) * scale[r] + shift[r]
                    tile[half + n, r] = upper(code) * scale[r] + shift[r]


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
    blocks = range(first // ROWS, -(-last // ROWS))
    out = buffer[: width * ROWS * len(blocks)].reshape(width, -1)
    for place, block in enumerate(blocks):
        widen_block(w, block, out[:, place * ROWS : (place + 1) * ROWS])
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
    narrow, unit = isinstance(weight, (Half, Groups)), ROWS if isinstance(weight, Groups) else 1
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
