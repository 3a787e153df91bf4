"""Float32 matrices of a small model: column by column if their rows are short, and together in one buffer.

Both only change where the numbers lie, and both make products with a vector faster.
"""

from collections.abc import Mapping
from math import prod

import numpy as np

from ..arrays import Float, Int

SHORT_ROW = 1024
CACHE_LINE = 16  # float32 elements


class Columns:
    """A float32 matrix stored column by column, which implements `arrays.Packed`; see `by_columns`.

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
    """Whether `by_columns` reorders a weight of this shape."""
    return len(shape) == 2 and shape[1] <= SHORT_ROW and prod(shape) >= 2**18


def by_columns(weight: np.ndarray, embeds: bool, out: np.ndarray | None = None) -> np.ndarray | Columns:
    """The same weight; a matrix [F, D] of short rows is copied column by column.

    That saves a fifth of a small model's time: along a row BLAS starts a new sum every few hundred elements, along a
    column it adds to thousands of sums at once.

    embeds : True for the embeddings of a tied model, which become `Columns`: NumPy's `take` would copy all of an array
        in this order before it looks up a row. Other matrices stay plain arrays
    out : a buffer for the copy with the same number of elements, in any shape; see `in_one_buffer`
    """
    if not has_short_rows(weight.shape):
        return weight
    columns = np.empty(weight.shape[::-1], dtype=weight.dtype) if out is None else out.reshape(weight.shape[::-1])
    np.copyto(columns, weight.T)
    return Columns(columns) if embeds else columns.T


def in_one_buffer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """An uninitialized float32 array of each shape, row-major, all of them in one buffer.

    Linux allocates pages of 4 KB, and a processor does not prefetch across the end of a page. For an array of 4 MB or
    more NumPy asks for pages of 2 MB, which cut the time of a product with a vector by up to a sixth. The matrices of
    a small model are smaller than that, so they share one buffer.
    """
    lines = [-(-prod(shape) // CACHE_LINE) for shape in shapes.values()]  # each array starts on a cache line
    starts = np.cumsum([0, *lines]) * CACHE_LINE
    buffer = np.empty(starts[-1] + CACHE_LINE, dtype=np.float32)
    first = -buffer.ctypes.data // 4 % CACHE_LINE
    return {
        name: buffer[start : start + prod(shape)].reshape(shape)
        for (name, shape), start in zip(shapes.items(), starts[:-1] + first, strict=True)
    }
