"""Observing values inside the forward pass.

The pass names a value where it is computed: `weights = tap("weights", softmax(scores))`. The default tap, `untapped`,
returns the value and costs one function call. A recorder also stores it (inspect/record.py). A tap may return a
different value, and the pass continues with that one (inspect/patch.py).
"""

from collections.abc import Callable

from .arrays import Array

Tap = Callable[[str, Array], Array]


def untapped(name: str, value: Array) -> Array:
    """The value, unchanged."""
    return value


def under(tap: Tap, prefix: str) -> Tap:
    """The tap for an inner part: its value "q" is called "layers.7.attention.q" outside."""
    if tap is untapped:
        return untapped
    return lambda name, value: tap(f"{prefix}.{name}", value)
