"""Looking at a value as it passes.

Inside the pass a value is named where it arises: `weights = tap("weights", softmax(scores))`. The default tap,
`untapped`, returns its value and costs a function call. A recorder keeps the value (inspect/record.py); any function of
the same signature may also return another one, which the pass then goes on with (inspect/patch.py).
"""

from collections.abc import Callable

from .arrays import Array

Tap = Callable[[str, Array], Array]


def untapped(name: str, value: Array) -> Array:
    """Return the value: nobody is looking."""
    return value


def under(tap: Tap, prefix: str) -> Tap:
    """The same tap for an inner part: a value named "q" there is "layers.7.attention.q" here."""
    if tap is untapped:
        return untapped
    return lambda name, value: tap(f"{prefix}.{name}", value)
