"""Attention weights as characters of a terminal.

The first token takes most of the weight in nearly every head, so the scale is logarithmic: one step darker is several
times as much, and what is below a thousandth is a dot.

Source: "The attention layer at a glance" (Figures 3-14, 3-24).
"""

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import Float

LEAST = 1e-3  # a weight below it is not told from 0
SHADES = "·░▒▓█"
ASCII = ".:+#@"  # for an output that has no such characters


def darkness(weights: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Where each weight stands between LEAST (0) and 1 (1) on a logarithmic scale; negative below, NaN stays.

    >>> darkness(np.array([1e-3, 1.0])).round(6)
    array([0., 1.])
    """
    with np.errstate(divide="ignore"):
        return 1.0 - np.log(weights) / math.log(LEAST)


def characters(weights: Float[np.ndarray, "T S"], shades: str = SHADES) -> list[str]:
    """A row of the map for each query, one character for each key: blank where the weight is 0, as all that the mask
    hides is, and "?" where it is NaN.

    >>> characters(np.array([[1.0, 0.0], [0.0005, 0.9995]]), ASCII)
    ['@ ', '.@']
    """
    steps = len(shades) - 1

    def character(weight: float, dark: float) -> str:
        if math.isnan(weight):
            return "?"
        return " " if weight == 0 else shades[0] if dark < 0 else shades[1 + min(int(dark * steps), steps - 1)]

    return [
        "".join(character(weight, dark) for weight, dark in zip(row, row_darkness, strict=True))
        for row, row_darkness in zip(weights.tolist(), darkness(weights).tolist(), strict=True)
    ]


def bounds(shades: str = SHADES) -> list[float]:
    """The least weight that each character stands for: 0, and then LEAST and upwards in equal ratios."""
    steps = len(shades) - 1
    return [0.0, *(LEAST ** (1 - step / steps) for step in range(steps))]


def window(tokens: int, last: int, room: int) -> Sequence[int]:
    """Which tokens to show where there is room for fewer than all: those up to `last`, and always the first one.

    >>> list(window(100, 50, 4)), list(window(3, 2, 4))
    ([0, 48, 49, 50], [0, 1, 2])
    """
    if tokens <= room:
        return range(tokens)
    last = max(last, room - 1)
    return [0, *range(last - room + 2, last + 1)]
