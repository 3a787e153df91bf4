"""Reading a weight onto a GPU, a few rows at a time: it is never in the host's memory as a whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..arrays import Array, Float
from ..devices.transfer import FLOAT16_OVERFLOW, Staging
from ..storage.stored import Stored, not_finite, read_rows
from .narrow import destination, row_order
from .plan import Part


def read_to_device(
    shape: tuple[int, ...],
    parts: Sequence[Part],
    tensors: Mapping[str, Stored],
    staging: Staging,
    dtype: str,
    bar: "tqdm[Any]",
) -> Array:
    """One weight on the GPU: a matrix as dtype, "float16" or "float32"; norms and biases always in float32.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or an element too large for float16
    """
    dtype = dtype if len(shape) == 2 else "float32"
    pieces = (piece for part in parts for piece in checked_rows(part, tensors[part.name], dtype, bar))
    return staging.send(pieces, shape, dtype)


def checked_rows(part: Part, stored: Stored, dtype: str, bar: "tqdm[Any]") -> Iterator[Float[np.ndarray, "rows D"]]:
    """The part's rows in order, a few at a time; all at once if the part is transposed or its rows are reordered."""
    count, order, row = part.shape[0], row_order(part), 0
    whole = np.empty(part.shape, dtype=np.float32) if part.transposed or order is not None else None
    for piece in read_rows(stored):
        largest = max(piece.max(), -piece.min())
        if not largest < (FLOAT16_OVERFLOW if dtype == "float16" else np.inf):  # comparisons with NaN are false
            raise not_finite(stored, dtype if np.isfinite(largest) else "")
        rows = destination(part, order, row, len(piece))
        row += len(piece)
        bar.update(stored.nbytes * len(piece) // count)
        if whole is None:
            yield piece
        else:
            whole[rows] = piece.reshape(-1, *part.shape[1:])
    if whole is not None:
        yield whole.T if part.transposed else whole
