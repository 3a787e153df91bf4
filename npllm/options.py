"""Checks of the loop's options, on Python values before any array is allocated."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from .cache import CACHE_DTYPES
from .config import Config
from .errors import UsageError
from .text.arguments import check_ids, checked, token_ids
from .text.processors import FUNCTIONS, are_functions


def check_options(**options: Any) -> dict[str, Any]:
    """The options of `steps` as Python's own values. Raises UsageError if one is invalid; NaN fails every rule."""
    rules: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
        "max_new_tokens": (Integral, lambda n: n >= 1, "at least 1"),
        "temperature": (Real, lambda t: 0 <= t < math.inf, "0 (greedy) or more"),
        "top_k": (Integral, lambda k: k >= 0, "0 (off) or more"),
        "top_p": (Real, lambda p: 1e-6 <= p <= 1, "from 1e-6 to 1 (off)"),
        "min_p": (Real, lambda p: 0 <= p <= 1, "from 0 (off) to 1"),
        "repetition_penalty": (Real, lambda r: 1e-6 <= r <= 1e6, "from 1e-6 to 1e6 (1: off)"),
        "stop": (list, lambda s: all(isinstance(one, str) and one for one in s), "strings that are not empty"),
        "seed": (Integral | None, lambda s: s is None or s >= 0, "a whole number, 0 or more, or None"),
        "cache_dtype": (str, lambda d: d in CACHE_DTYPES, " or ".join(CACHE_DTYPES)),
        "use_cache": (bool, lambda _: True, "True or False"),
        "logits_processors": (list, are_functions, FUNCTIONS),
        "top_logprobs": (Integral | None, lambda k: k is None or k >= 0, "0 or more, or None"),
        "tokens": (Callable, lambda _: True, "a function, such as npllm.apps.speculation.prompt_lookup(8)"),
    }
    return {name: checked(name, value, *rules[name]) for name, value in options.items()}


def check_prompt(
    ids: Sequence[int], config: Config, new: int = 1, what: str = "prompt", remedy: str = "shorten it"
) -> list[int]:
    """The ids of a prompt. Raises UsageError if there are none, no room for `new` more tokens, or one is invalid.

    what, remedy : the message's name for the prompt, and its advice if the prompt is too long
    """
    context, ids = config.max_position_embeddings, token_ids(ids)
    if not ids:
        raise UsageError(f"the {what} is empty: expected at least one token")
    if len(ids) + new > context:
        raise UsageError(
            f"the {what} is too long: {len(ids)} tokens, but the model's context of {context} has room for"
            f" {context - new}; {remedy}"
        )
    return check_ids(ids, config.vocab_size)


def capacity_for(config: Config, prompt: int, max_new_tokens: int) -> int:
    """The maximum length of prompt and continuation in tokens. Warns if the context cuts the continuation short."""
    left = config.max_position_embeddings - prompt
    if max_new_tokens > left:
        warnings.warn(
            f"only {left} new tokens instead of {max_new_tokens}: the prompt has {prompt}, the context {left + prompt}",
            stacklevel=3,
        )
    return prompt + min(max_new_tokens, left)
