"""Attention weights as characters for a terminal.

The first token gets most of the weight in nearly every head, so the scale is logarithmic: one shade darker means
several times the weight, and a weight below 0.001 is a dot.

Source: "The attention layer at a glance" (Figures 3-14, 3-24).
"""

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import Float

LEAST = 1e-3  # the start of the scale; all smaller weights look alike
SHADES = "·░▒▓█"
ASCII = ".:+#@"  # for an encoding without those characters


def darkness(weights: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Each weight on a logarithmic scale from LEAST (0) to 1 (1); negative below LEAST, and NaN for NaN.

    >>> darkness(np.array([1e-3, 1.0])).round(6)
    array([0., 1.])
    """
    with np.errstate(all="ignore"):
        return 1.0 - np.log(weights) / math.log(LEAST)


def characters(weights: Float[np.ndarray, "T S"], shades: str = SHADES) -> list[str]:
    """A row of the map for each query, with one character per key: blank for a weight of 0, such as a masked one, and
    "?" for NaN.

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
    """The smallest weight of each character: 0, then LEAST and upwards in equal ratios."""
    steps = len(shades) - 1
    return [0.0, *(LEAST ** (1 - step / steps) for step in range(steps))]


def window(tokens: int, last: int, room: int) -> Sequence[int]:
    """The tokens to show if only `room` of them fit: those up to `last`, and always the first one.

    >>> list(window(100, 50, 4)), list(window(3, 2, 4))
    ([0, 48, 49, 50], [0, 1, 2])
    """
    if tokens <= room:
        return range(tokens)
    last = max(last, room - 1)
    return [0, *range(last - room + 2, last + 1)]
