"""What may be asked of a model: checked while it is still Python numbers, before any array is made."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..cache import Cache, kv_cache_bytes
from ..config import Config
from ..errors import UsageError
from ..flash import TILE
from .devices import free_bytes
from .dtypes import BYTES
from .memory import attention_bytes, check_memory

if TYPE_CHECKING:
    from ..model import LM


def check_options(**options: Any) -> None:
    """Refuse options of `steps` that mean nothing. `not 0 <= x` also refuses NaN."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_new_tokens": (lambda n: n >= 1, "at least 1"),
        "temperature": (lambda t: 0 <= t < math.inf, "0 (greedy) or more"),
        "top_k": (lambda k: k >= 0, "0 (off) or more"),
        "top_p": (lambda p: 1e-6 <= p <= 1, "from 1e-6 to 1 (off)"),
        "min_p": (lambda p: 0 <= p <= 1, "from 0 (off) to 1"),
        "repetition_penalty": (lambda r: 1e-6 <= r <= 1e6, "from 1e-6 to 1e6 (1: off)"),
        "stop": (all, "strings that are not empty"),
        "seed": (lambda s: s is None or s >= 0, "a whole number from 0 on, or None"),
        "cache_dtype": (lambda d: d in BYTES, " or ".join(BYTES)),
    }
    for name, value in options.items():
        valid, expected = rules[name]
        if name in ("max_new_tokens", "top_k", "seed") and not isinstance(value, Integral | None):
            raise UsageError(f"{name}: expected a whole number, got {value!r}")
        try:
            fits = valid(value)
        except TypeError as error:
            raise UsageError(f"{name}: expected {expected}, got {value!r}") from error
        if not fits:
            raise UsageError(f"{name}: expected {expected}, got {value}")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that have no row in the embeddings matrix: while they are Python integers this costs nothing."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token {position}: expected an id from 0 to {vocab_size - 1}, got {token}")


def check_prompt(ids: Sequence[int], config: Config) -> None:
    """Refuse a prompt that is empty, leaves no room for a new token, or has ids that the model does not."""
    context = config.max_position_embeddings
    if len(ids) == 0:
        raise UsageError("the prompt is empty: expected at least one token")
    if len(ids) >= context:
        raise UsageError(
            f"the prompt is too long: {len(ids)} tokens leave no room for a new one in the model's context of {context}"
        )
    check_ids(ids, config.vocab_size)


def check_together(lm: "LM", prompt: int, stop: Sequence[str], cache: Cache | None, allowed: bool) -> None:
    """Refuse options of `steps` that do not go with the model, the prompt's length, or each other."""
    if stop and lm.tokenizer is None:
        raise UsageError("stop: expected a model with a tokenizer, which turns ids into the text to stop at")
    if cache is not None and cache["keys"][0].shape[-2] < prompt:
        raise UsageError(f"cache: expected room for {prompt} tokens, got {cache['keys'][0].shape[-2]}; use cache.grow")
    if not allowed:
        raise UsageError("use_cache: expected True where tokens are drafted: they are checked against what is cached")


def check_fits(lm: "LM", capacity: int, rows: int, cache: Cache | None, cache_dtype: str) -> None:
    """Refuse what does not fit into the memory: `rows` at once, for a text of `capacity` tokens, and a cache for it."""
    config = lm.config
    needed = {"attention": attention_bytes(config, rows, capacity, TILE)}
    if cache is None:
        needed["KV cache"] = kv_cache_bytes(config, capacity, BYTES[cache_dtype])
        if BYTES[cache_dtype] < 4:
            needed["a layer of it in float32"] = kv_cache_bytes(config, capacity) // config.num_hidden_layers
    check_memory(needed, free_bytes(lm.weights.norm))


def capacity_for(config: Config, prompt: int, max_new_tokens: int) -> int:
    """How many tokens the text may have in all: fewer than asked for where the context ends, with a warning."""
    left = config.max_position_embeddings - prompt
    if max_new_tokens > left:
        warnings.warn(
            f"only {left} new tokens instead of {max_new_tokens}: the prompt has {prompt}, and the model's context is"
            f" {left + prompt} tokens",
            stacklevel=3,
        )
    return prompt + min(max_new_tokens, left)
