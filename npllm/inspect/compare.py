"""Two traces compared, value by value in the order of execution: the first difference shows where to look for a bug.

An element is within the tolerance t if |a - b| <= t |a| + t/5 max|a|, with the maximum over the whole value; A is the
reference. The second term is for sums that nearly cancel: their error depends on the size of the terms, not on that of
the sum.

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6) for the order; Higham 2002, "Accuracy and stability of
numerical algorithms", chapter 3, for the error of sums and products.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..arrays import Bool, Float
from ..errors import UsageError
from .record import matches

# How far two correct computations may differ, by the dtype to which the weights of one of them were rounded. For
# float32 it is about a hundred roundings. The others are not bounds, but four times the largest error in any value that
# rounding the weights of SmolLM2-135M caused in four texts (float16: 0.01, bfloat16: 0.05). A bug causes far larger
# errors.
TOLERANCES = {"float32": 1e-4, "float16": 4e-2, "bfloat16": 2e-1}
OF_LARGEST = 0.2  # the second term's share of the tolerance
PIECE = 2**20  # elements compared at once, in float64


class Difference(NamedTuple):
    """How a value in B differs from the same value in A, over the compared elements."""

    name: str
    shape: tuple[int, ...]
    max_abs: float  # largest |a - b| over finite elements
    max_rel: float  # max_abs / largest |a|
    cosine: float  # cosine similarity of the two as vectors
    beyond: int  # how many elements are beyond the tolerance; NaN always is
    first: tuple[int, ...] | None  # the index of the first of them
    first_a: float  # the element at that index
    first_b: float
    not_finite: tuple[int, int]  # how many elements of A and of B are NaN or infinite


def allowed(a: Float[np.ndarray, "..."], tolerance: float, largest: float | None = None) -> Float[np.ndarray, "..."]:
    """The tolerated |a - b| for each element of a. largest : max|a|, if a is only a part of the value.

    >>> allowed(np.array([0.0, 1.0, -10.0]), 1e-4).round(6)
    array([0.0002, 0.0003, 0.0012])
    """
    if largest is None:
        largest = float(np.max(np.abs(a), initial=0.0))
    return tolerance * np.abs(a) + OF_LARGEST * tolerance * largest


def difference(
    name: str,
    a: Float[np.ndarray, "..."],
    b: Float[np.ndarray, "..."],
    tolerance: float = TOLERANCES["float32"],
    where: Bool[np.ndarray, "..."] | None = None,
) -> Difference:
    """The difference of two arrays of equal shape; `where`, broadcast to that shape, selects the compared elements.

    >>> row = difference("x", np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]]))
    >>> row.max_abs, row.max_rel, row.beyond, row.first
    (0.5, 0.25, 1, (0, 1))
    """
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    chosen = None if where is None else np.broadcast_to(where, a.shape).reshape(-1)
    spans = [slice(start, start + PIECE) for start in range(0, a.size, PIECE)]

    largest = 0.0
    for span in spans:
        x = piece(flat_a, span, chosen)
        largest = max(largest, float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0)))

    max_abs, beyond, first = 0.0, 0, None
    products, not_finite = np.zeros(3), np.zeros(2, dtype=np.int64)
    for span in spans:
        x, y = piece(flat_a, span, chosen), piece(flat_b, span, chosen)
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        not_finite += [np.count_nonzero(~finite_x), np.count_nonzero(~finite_y)]
        both = finite_x & finite_y
        with np.errstate(all="ignore"):
            error = np.abs(x - y)
            wrong = np.where(both, error > allowed(x, tolerance, largest), x != y)
        max_abs = max(max_abs, float(np.max(error, where=both, initial=0.0)))
        x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
        products += [np.sum(x * y), np.sum(x * x), np.sum(y * y)]
        if first is None and np.any(wrong):
            first = span.start + int(np.argmax(wrong))
        beyond += int(np.count_nonzero(wrong))

    xy, xx, yy = (float(product) for product in products)
    place = None if first is None else tuple(int(i) for i in np.unravel_index(first, a.shape))
    return Difference(
        name,
        a.shape,
        max_abs,
        max_abs / largest if largest else math.inf if max_abs else 0.0,
        xy / math.sqrt(xx) / math.sqrt(yy) if xx and yy else float(xx == yy),
        beyond,
        place,
        math.nan if first is None else float(flat_a[first]),
        math.nan if first is None else float(flat_b[first]),
        (int(not_finite[0]), int(not_finite[1])),
    )


def piece(values: np.ndarray, span: slice, chosen: np.ndarray | None) -> np.ndarray:
    """A piece in float64, with 0 for elements that are not compared."""
    wide = values[span].astype(np.float64)
    return wide if chosen is None else np.where(chosen[span], wide, 0.0)


def compare(
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCES["float32"],
    only: str = "*",
) -> list[Difference]:
    """The differences of all values that both traces have and `only` matches, in the order of A.

    The "scores" are recorded before the mask, so masked elements do not matter: only visible pairs are compared. If a
    trace has the mask, as "visible" [T, S] from tools/hf_trace.py, it is used (if both have one, a pair must be visible
    in both). Otherwise the mask is causal, unless the attention weights show that tokens see later ones.

    Raises
    ------
    UsageError : the traces have no name in common, or values of different shapes, so their models or texts differ
    """
    names = [name for name in a if name in b and matches(name, only)]
    if not names:
        raise UsageError(
            f"A and B have no name in common: A has {some(a)}, B has {some(b)}; expected traces of the same model"
        )
    for name in names:
        if a[name].shape != b[name].shape:
            raise UsageError(
                f"{name}: expected the same shape on both sides, got {list(a[name].shape)} in A and"
                f" {list(b[name].shape)} in B; expected traces of the same model and text"
            )
    return [
        difference(name, a[name], b[name], tolerance, seen_scores(name, a, b) if name.endswith(".scores") else None)
        for name in names
    ]


def seen_scores(name: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "T S"]:
    """The mask of the compared scores; see `compare`."""
    *_, new, length = a[name].shape
    visible = name.removesuffix("scores") + "visible"
    known = [trace[visible] != 0 for trace in (a, b) if visible in trace]
    for mask in known:
        if mask.shape != (new, length):
            raise UsageError(f"{visible}: expected the shape {[new, length]}, got {list(mask.shape)}")
    if not known:
        past = np.tri(new, length, length - new, dtype=np.bool_)
        weights = name.removesuffix("scores") + "weights"
        ahead = any(np.any(trace[weights][..., ~past]) for trace in (a, b) if weights in trace)
        return np.ones_like(past) if ahead else past
    return known[0] if len(known) == 1 else known[0] & known[1]


def first_beyond(rows: Sequence[Difference]) -> Difference | None:
    """The first value that is beyond the tolerance; None if all are within it."""
    return next((row for row in rows if row.beyond), None)


def some(names: Collection[str]) -> str:
    """The first few names."""
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
