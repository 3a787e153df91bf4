"""The caller's own functions of the logits, between the repetition penalty and the temperature.

That is where transformers has them (`logits_processor` of its `generate`), and they get what they get there: the text
so far, and the logits of the next token, each with a batch axis of one. Here both are arrays of the model's library, so
a class of transformers, which takes torch tensors, is wrapped:

    lambda ids, logits: processor(torch.asarray(ids), torch.asarray(logits)).numpy()

Source: transformers' class LogitsProcessor.
"""

import math
from collections.abc import Callable, Sequence

from array_api_compat import device, is_torch_array

from ..arrays import Array, Float, array_namespace
from ..errors import UsageError
from .arguments import shown

Processor = Callable[[Array, Array], Array]  # (ids [1, T], logits [1, V]) -> logits [1, V]
FUNCTIONS = "a list of functions (ids, logits) -> logits"


def are_functions(processors: Sequence[object]) -> bool:
    """Whether all of them can be called."""
    return all(callable(one) for one in processors)


def check_library(processors: Sequence[Processor], like: Array) -> None:
    """Raise UsageError for a class of transformers with a model whose arrays are not torch's."""
    for index, one in enumerate(processors):
        if not is_torch_array(like) and any(base.__module__.startswith("transformers.") for base in type(one).__mro__):
            raise UsageError(
                f"logits_processors[{index}]: expected a function of arrays, got transformers' {type(one).__name__};"
                " wrap it: lambda ids, logits: processor(torch.asarray(ids), torch.asarray(logits)).numpy()"
            )


def processed(processors: Sequence[Processor], ids: Sequence[int], logits: Float[Array, " V"]) -> Float[Array, " V"]:
    """The logits after all processors, in order. `ids` are the tokens so far.

    Raises
    ------
    UsageError : a processor returns anything but logits of the same shape, NaN, or no token that may come next
    """
    xp = array_namespace(logits)
    new = xp.asarray(logits, copy=True)[None, :]  # a processor may write into it
    finite = math.isfinite(float(xp.max(new)))  # otherwise the loop blames the model
    text = xp.asarray([list(ids)], dtype=xp.int64, device=device(logits))
    for index, processor in enumerate(processors):
        name = f"logits_processors[{index}] ({getattr(processor, '__name__', type(processor).__name__)})"
        found = processor(text, new)
        if type(found) is not type(new) or tuple(found.shape) != tuple(new.shape):
            got = shown(found) if type(found) is not type(new) else f"one of shape {tuple(found.shape)}"
            raise UsageError(f"{name}: expected a {type(new).__name__} of shape {tuple(new.shape)}, got {got}")
        new = xp.astype(found, logits.dtype, copy=False)
        largest = float(xp.max(new))
        if finite and not math.isfinite(largest):
            got = "-inf for every token" if largest == -math.inf else str(largest)
            raise UsageError(f"{name}: expected finite logits, or -inf for tokens that it rules out, got {got}")
    return new[0, :]
