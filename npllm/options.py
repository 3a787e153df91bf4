"""Checks of the loop's options, on Python values before any array is allocated."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from .cache import CACHE_DTYPES
from .config import Config
from .errors import UsageError


def check_options(**options: Any) -> None:
    """Raise UsageError if an option of `steps` is out of range. The rules are written so that NaN fails them."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_new_tokens": (lambda n: n >= 1, "at least 1"),
        "temperature": (lambda t: 0 <= t < math.inf, "0 (greedy) or more"),
        "top_k": (lambda k: k >= 0, "0 (off) or more"),
        "top_p": (lambda p: 1e-6 <= p <= 1, "from 1e-6 to 1 (off)"),
        "min_p": (lambda p: 0 <= p <= 1, "from 0 (off) to 1"),
        "repetition_penalty": (lambda r: 1e-6 <= r <= 1e6, "from 1e-6 to 1e6 (1: off)"),
        "stop": (lambda s: all(isinstance(one, str) and one for one in s), "strings that are not empty"),
        "seed": (lambda s: s is None or s >= 0, "a whole number, 0 or more, or None"),
        "cache_dtype": (lambda d: d in CACHE_DTYPES, " or ".join(CACHE_DTYPES)),
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
    """Raise UsageError if an id has no row in the embedding matrix. With Python integers the check costs nothing."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token {position}: expected an id from 0 to {vocab_size - 1}, got {token}")


def check_prompt(
    ids: Sequence[int], config: Config, new: int = 1, what: str = "prompt", remedy: str = "shorten it"
) -> None:
    """Raise UsageError if a prompt is empty, leaves no room for `new` more tokens, or has invalid ids.

    what, remedy : the message's name for the prompt, and its advice if the prompt is too long
    """
    context = config.max_position_embeddings
    if len(ids) == 0:
        raise UsageError(f"the {what} is empty: expected at least one token")
    if len(ids) + new > context:
        raise UsageError(
            f"the {what} is too long: {len(ids)} tokens, where the model's context of {context} has room for"
            f" {context - new}; {remedy}"
        )
    check_ids(ids, config.vocab_size)


def capacity_for(config: Config, prompt: int, max_new_tokens: int) -> int:
    """The maximum length of prompt and continuation in tokens. Warns if the context cuts the continuation short."""
    left = config.max_position_embeddings - prompt
    if max_new_tokens > left:
        warnings.warn(
            f"only {left} new tokens instead of {max_new_tokens}: the prompt has {prompt}, the context {left + prompt}",
            stacklevel=3,
        )
    return prompt + min(max_new_tokens, left)
