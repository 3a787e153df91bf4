"""A language model as one object, and the public calls that take it.

`npllm.load` returns an `LM`. The passes of model.py and families/ are plain functions of ids, weights and config; the
functions here call the pass and the head of the model's family.

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from . import heads, model
from .arrays import Array, Bool, Float, Int, array_namespace
from .cache import Cache
from .config import Config
from .errors import UsageError
from .shapes import WeightsLike
from .tap import Tap, untapped
from .text.arguments import check_hidden, check_lists, check_model, check_pass, checked_tap
from .tokenizer import Tokenizer

Ids = Int[Array, "... T"] | Sequence[Any]  # an array, or a list of integers (for a batch, of equally long lists)
NUMBERS = ("positions", "token_types")  # options that may be lists, too


class LM(NamedTuple):
    """A language model as `npllm.load` returns it: everything that generation needs."""

    config: Config
    weights: WeightsLike
    tokenizer: Tokenizer | None  # None if the checkpoint has none
    generation_config: Mapping[str, Any]  # generation_config.json, parsed
    transform: Callable[..., tuple[Float[Array, "... T D"], Cache | None]] = model.transform  # its family's pass
    lm_head: Callable[..., Float[Array, "... T V"]] = heads.lm_head  # its family's head

    def __repr__(self) -> str:
        """What `npllm show` prints, by inspect/structure.py."""
        return str(import_module(".inspect.structure", __package__).described(self))  # at run time: it imports this


@np.errstate(all="ignore")  # an exp may underflow; what overflows becomes NaN, which the callers detect
def transform(
    ids: Ids,
    lm: LM,
    cache: Cache | None = None,
    *,
    positions: Ids | None = None,
    token_types: Ids | None = None,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    total_length: int | None = None,
    attention: Callable[..., Array] | None = None,
    block: Callable[..., Array] | None = None,
    embed: Callable[..., Array] | None = None,
    norm: Callable[..., Array] | None = None,
    tap: Tap = untapped,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The hidden states, one for each token id, and the cache: the chapter's `model.model(input_ids)`.

    Parameters as in `npllm.model.transform`; positions and token types (BERT's) may be lists, too. Raises UsageError if
    an argument is invalid, such as an id (in a list, or on the CPU) without an embedding, the cache of another model,
    more tokens than position embeddings, or an option that the family's pass does not have.
    """
    given = {
        name: value for name, value in locals().items() if value is not None and name not in ("ids", "lm", "cache")
    }
    array, given["tap"] = as_array(ids, lm), checked_tap(tap)
    check_pass(array, lm, cache, given)
    given |= {name: on_device(value, lm) for name, value in given.items() if name in NUMBERS}
    return lm.transform(array, lm.weights, lm.config, cache, **given)


@np.errstate(all="ignore")
def lm_head(hidden: Float[Array, "... T D"], lm: LM) -> Float[Array, "... T V"]:
    """The logits of some hidden states: the chapter's `model.lm_head(hidden)`. Raises UsageError for a classifier."""
    check_hidden(hidden, lm)
    return lm.lm_head(hidden, lm.weights, lm.config)


def forward(
    ids: Ids,
    lm: LM,
    cache: Cache | None = None,
    *,
    positions: Ids | None = None,
    token_types: Ids | None = None,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    total_length: int | None = None,
    attention: Callable[..., Array] | None = None,
    block: Callable[..., Array] | None = None,
    embed: Callable[..., Array] | None = None,
    norm: Callable[..., Array] | None = None,
    tap: Tap = untapped,
) -> tuple[Float[Array, "... T V"], Cache | None]:
    """The logits at every position, and the cache: `transform`, then `lm_head`.

    logits[..., t, :] scores the token that follows token t; generation needs only the last position.
    """
    hidden, cache = transform(**locals())
    return tap("logits", lm_head(hidden, lm)), cache


def tapped(lm: LM, tap: Tap) -> LM:
    """The model with a tap in every pass, for the loop; "logits" are those of the last tokens.

    The pass then takes the array functions and the plain `attention`: kernels and FlashAttention have no scores to tap.
    Raises UsageError, in the pass, if the logits are not finite.
    """
    tap = checked_tap(tap)
    if tap is untapped:
        return lm

    def transform(*arguments: Any, attention: Any = None, **options: Any) -> tuple[Array, Cache | None]:
        return lm.transform(*arguments, tap=tap, **options)

    def lm_head(*arguments: Any) -> Array:
        logits = tap("logits", lm.lm_head(*arguments))
        if not math.isfinite(largest := float(array_namespace(logits).max(logits))):
            raise UsageError(
                f"tap: expected values with finite logits, got {largest}; check whether they are finite without the tap"
            )
        return logits

    return lm._replace(transform=transform, lm_head=lm_head)


def as_array(ids: Ids, lm: LM) -> Int[Array, "... T"]:
    """The ids as an array on the model's device. Lists are checked; an array is returned as is."""
    check_model(lm)
    return on_device(check_lists(ids, lm.config.vocab_size) if isinstance(ids, Sequence) else ids, lm)


def on_device(numbers: Ids, lm: LM) -> Int[Array, "... T"]:
    """Lists of whole numbers as an array on the model's device. An array is returned as is."""
    if not isinstance(numbers, Sequence):
        return numbers
    xp = array_namespace(lm.weights.norm)  # any weight, for its array library and device
    return xp.asarray(numbers, dtype=xp.int64, device=device(lm.weights.norm))
