"""Patches: change values on their way, and see what the model makes of it.

To leave out a head or a neuron, to put in what was there in another run ("activation patching"), to move attention to
another token: each is a change of a tapped value, after which the pass goes on with the new one. What then becomes of
the logits tells what the value was for.

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
from .record import matches
from .trace import check_patterns

Change = Callable[[Array], Array] | Array


def patch(changes: Mapping[str, Change], tap: Tap = untapped) -> Tap:
    """A tap that changes the values of these names.

    Parameters
    ----------
    changes : name, or pattern as in `record` -> what to put in its place: an array, or a function that makes it from a
        copy of the value. Where several match a name, they follow each other
    tap : sees every value after its change, such as `record(seen)`

    Raises
    ------
    UsageError : during the pass, at the value, if the new one is no array of the same shape; at the end of the pass
        ("norm", or "logits") if there is no value of a name. Attention without "scores" and "weights", as
        `flash_attention` is, has none to patch

    >>> import numpy as np, npllm
    >>> lm = npllm.load()
    >>> ids = np.array(lm.tokenizer.encode("The capital of France is"))
    >>> tap = npllm.patch({"layers.1.feedforward.output": lambda value: 0 * value})
    >>> logits, _ = npllm.forward(ids, lm, tap=tap)
    >>> lm.tokenizer.decode([logits[-1].argmax()])
    ' the'
    """
    seen: dict[str, None] = {}

    def patcher(name: str, value: Array) -> Array:
        seen[name] = None
        for pattern, change in changes.items():
            if matches(name, pattern):
                value = changed(name, value, change)
        if name in ("norm", "logits"):  # where transform and forward end, all the others have been seen
            for pattern in changes:
                check_patterns(pattern, [*seen, "logits"], "patch")
        return tap(name, value)

    return patcher


def changed(name: str, value: Array, change: Change) -> Array:
    """The new value in place of the old one, in its dtype and on its device."""
    xp = array_namespace(value)
    new = change(xp.asarray(value, copy=True)) if callable(change) else change
    shape = getattr(new, "shape", None)
    if shape is None or tuple(shape) != tuple(value.shape):
        got = type(new).__name__ if shape is None else f"one of shape {tuple(shape)}"
        raise UsageError(f"patch: {name}: expected an array of shape {tuple(value.shape)}, got {got}")
    if type(new) is not type(value):  # from another library: a trace, on the host
        new = to_host(new)
    return xp.asarray(new, dtype=value.dtype, device=device(value))


def zero_head(head: int) -> Callable[[Array], Array]:
    """A change of a value with heads, such as "mixed" [..., N, T, H]: this head says nothing.

    >>> import numpy as np
    >>> zero_head(1)(np.ones((2, 1, 3)))
    array([[[1., 1., 1.]],
    <BLANKLINE>
           [[0., 0., 0.]]])
    """
    return lambda value: zeroed(value, -3, head, "head")


def zero_neuron(neuron: int) -> Callable[[Array], Array]:
    """A change of "activation" [..., T, F], or of any vectors: this number is 0 at every token."""
    return lambda value: zeroed(value, -1, neuron, "neuron")


def zeroed(value: Array, axis: int, index: int, what: str) -> Array:
    """The value with zeros at one index of an axis, counted from the right."""
    if value.ndim < -axis:
        raise UsageError(f"{what}: expected a value with {-axis} axes, got one of shape {tuple(value.shape)}")
    count = value.shape[axis]
    if not 0 <= index < count:
        raise UsageError(f"{what}: expected 0 to {count - 1}, got {index}")
    xp = array_namespace(value)
    kept = xp.arange(count, device=device(value)) != index
    return xp.where(xp.reshape(kept, (-1, *[1] * (-axis - 1))), value, 0.0)
