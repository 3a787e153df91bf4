"""Comparing two traces, value by value in the order of execution: the first that differs is where to look.

A value is within the tolerance t where |a - b| <= t |a| + t/5 max|a|, with the maximum over the whole value: A is what
B is measured by. The second term is for sums that nearly cancel: their error goes by what was summed, and not by what
is left of it.

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

# What two correct computations may differ by, by what the weights of one of them were rounded to. In float32 it is some
# hundred roundings. The other two are no bounds, but four times the most that rounding the weights of SmolLM2-135M was
# seen to do to any value in four texts (float16: 0.01, bfloat16: 0.05), which is still little beside what a bug does.
TOLERANCES = {"float32": 1e-4, "float16": 4e-2, "bfloat16": 2e-1}
OF_LARGEST = 0.2  # the second term's share of the tolerance
PIECE = 2**20  # numbers that are compared at once: what is held in float64


class Difference(NamedTuple):
    """How one value of B differs from that of A, where they are compared."""

    name: str
    shape: tuple[int, ...]
    max_abs: float  # largest |a - b| of finite numbers
    max_rel: float  # that, as a share of the largest |a|
    cosine: float  # of the two as vectors: 1 where they point the same way
    beyond: int  # how many numbers are beyond the tolerance; NaN always is, whatever the other one is
    first: tuple[int, ...] | None  # the index of the first of them
    first_a: float  # what is there
    first_b: float
    not_finite: tuple[int, int]  # how many numbers of A, and of B, are NaN or infinite


def allowed(a: Float[np.ndarray, "..."], tolerance: float, largest: float | None = None) -> Float[np.ndarray, "..."]:
    """How far b may be from each number of a. largest : max|a|, if a is only a part of what is compared.

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
    """Compare two arrays of one shape; `where` (broadcast to it) says at which places.

    >>> row = difference("x", np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]]))
    >>> row.max_abs, row.max_rel, row.beyond, row.first
    (0.5, 0.25, 1, (0, 1))
    """
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    chosen = None if where is None else np.broadcast_to(where, a.shape).reshape(-1)
    spans = [slice(start, start + PIECE) for start in range(0, a.size, PIECE)]

    def piece(values: np.ndarray, span: slice) -> np.ndarray:
        """In float64; what is not compared as 0, which is equal."""
        wide = values[span].astype(np.float64)
        return wide if chosen is None else np.where(chosen[span], wide, 0.0)

    largest = 0.0
    for span in spans:
        x = piece(flat_a, span)
        largest = max(largest, float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0)))

    max_abs, beyond, first = 0.0, 0, None
    products, not_finite = np.zeros(3), np.zeros(2, dtype=np.int64)
    for span in spans:
        x, y = piece(flat_a, span), piece(flat_b, span)
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        not_finite += [np.count_nonzero(~finite_x), np.count_nonzero(~finite_y)]
        both = finite_x & finite_y
        with np.errstate(invalid="ignore", over="ignore"):
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


def compare(
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCES["float32"],
    only: str = "*",
) -> list[Difference]:
    """All values that both traces have and `only` names, in the order of A.

    The "scores" are those before the mask, and what they are where it hides them is of no consequence: they are
    compared where the query may see the key. Where a trace has "visible" [T, S] beside them, as tools/hf_trace.py
    writes it, it says so (if both have it, both must); otherwise a query sees itself and all before it.

    Raises
    ------
    UsageError : they have no name in common, or values of other shapes: they are of other models, or other texts
    """
    names = [name for name in a if name in b and matches(name, only)]
    if not names:
        raise UsageError(
            f"A and B have no name in common: A has {some(a)}, B has {some(b)}; expected traces of one model"
        )
    for name in names:
        if a[name].shape != b[name].shape:
            raise UsageError(
                f"{name}: expected the same shape on both sides, got {list(a[name].shape)} in A and"
                f" {list(b[name].shape)} in B; expected traces of one model and one text"
            )
    return [
        difference(name, a[name], b[name], tolerance, seen_scores(name, a, b) if name.endswith(".scores") else None)
        for name in names
    ]


def seen_scores(name: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "T S"]:
    """Which scores are compared; see `compare`."""
    *_, new, length = a[name].shape
    visible = name.removesuffix("scores") + "visible"
    known = [trace[visible] != 0 for trace in (a, b) if visible in trace]
    for mask in known:
        if mask.shape != (new, length):
            raise UsageError(f"{visible}: expected the shape {[new, length]}, got {list(mask.shape)}")
    if not known:
        return np.tri(new, length, length - new, dtype=np.bool_)
    return known[0] if len(known) == 1 else known[0] & known[1]


def first_beyond(rows: Sequence[Difference]) -> Difference | None:
    """The first value that differs beyond the tolerance: the step to look at. None: all are within it."""
    return next((row for row in rows if row.beyond), None)


def some(names: Collection[str]) -> str:
    """The first few names."""
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
