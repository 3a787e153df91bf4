"""Patches: replace values during a pass, and see the effect on the logits.

Ablating a head or a neuron, inserting the value from another run ("activation patching"), moving attention to another
token: each replaces a tapped value, and the pass continues with the new one. The change in the logits shows what the
value was for.

Source: "The attention layer at a glance", "The feedforward neural network at a glance" (Figures 3-13, 3-14); Meng et
al. 2022, "Locating and editing factual associations in GPT" (causal tracing); Wang et al. 2022, "Interpretability in
the wild" (activation patching).
"""

from collections.abc import Callable, Mapping

from array_api_compat import device

from ..arrays import Array, array_namespace
from ..devices.device import to_host
from ..errors import UsageError
from ..tap import Tap, untapped
from ..text.arguments import checked
from .record import matches
from .trace import check_patterns

Change = Callable[[Array], Array] | Array


def patch(changes: Mapping[str, Change], tap: Tap = untapped) -> Tap:
    """A tap that replaces the values of these names.

    Parameters
    ----------
    changes : name, or pattern as in `record` -> the new value: an array, or a function that computes it from a copy of
        the old value. If several match a name, they are applied in order
    tap : receives every value after the change, such as `record(seen)`

    Raises
    ------
    UsageError : an argument is invalid; during the pass, if a new value is not an array of the same shape; at the end
        ("norm", or "logits"), if a name matched no value. `flash_attention` has no "scores" and "weights" to patch

    >>> import numpy as np, npllm
    >>> lm = npllm.load()
    >>> ids = np.array(lm.tokenizer.encode("The capital of France is"))
    >>> tap = npllm.patch({"layers.1.feedforward.output": lambda value: 0 * value})
    >>> logits, _ = npllm.forward(ids, lm, tap=tap)
    >>> lm.tokenizer.decode([logits[-1].argmax()])
    ' the'
    """
    expected = "a dict of names and their new values"
    checked("changes", changes, Mapping, lambda names: all(isinstance(name, str) for name in names), expected)
    checked("tap", tap, Callable, lambda _: True, "a function")
    seen: dict[str, None] = {}

    def patcher(name: str, value: Array) -> Array:
        seen[name] = None
        for pattern, change in changes.items():
            if matches(name, pattern):
                value = changed(name, value, change)
        if name in ("norm", "logits"):  # the ends of transform and forward: all other names have been seen
            for pattern in changes:
                check_patterns(pattern, [*seen, "logits"], "patch")
        return tap(name, value)

    return patcher


def changed(name: str, value: Array, change: Change) -> Array:
    """The new value, in the dtype and on the device of the old one."""
    xp = array_namespace(value)
    new = change(xp.asarray(value, copy=True)) if callable(change) else change
    shape = getattr(new, "shape", None)
    if shape is None or tuple(shape) != tuple(value.shape):
        got = type(new).__name__ if shape is None else f"one of shape {tuple(shape)}"
        raise UsageError(f"patch: {name}: expected an array of shape {tuple(value.shape)}, got {got}")
    if type(new) is not type(value):  # from another library, such as a trace on the host
        new = to_host(new)
    return xp.asarray(new, dtype=value.dtype, device=device(value))


def zero_head(head: int) -> Callable[[Array], Array]:
    """A change for values with heads, such as "mixed" [..., N, T, H], that zeroes one head.

    >>> import numpy as np
    >>> zero_head(1)(np.ones((2, 1, 3)))
    array([[[1., 1., 1.]],
    <BLANKLINE>
           [[0., 0., 0.]]])
    """
    return lambda value: zeroed(value, -3, head, "head")


def zero_neuron(neuron: int) -> Callable[[Array], Array]:
    """A change for "activation" [..., T, F], or other vectors, that zeroes one element at every token."""
    return lambda value: zeroed(value, -1, neuron, "neuron")


def zeroed(value: Array, axis: int, index: int, what: str) -> Array:
    """The value with zeros at one index of an axis, given from the right."""
    if value.ndim < -axis:
        raise UsageError(f"{what}: expected a value with {-axis} axes, got one of shape {tuple(value.shape)}")
    count = value.shape[axis]
    if not 0 <= index < count:
        raise UsageError(f"{what}: expected 0 to {count - 1}, got {index}")
    xp = array_namespace(value)
    kept = xp.arange(count, device=device(value)) != index
    return xp.where(xp.reshape(kept, (-1, *[1] * (-axis - 1))), value, 0.0)
