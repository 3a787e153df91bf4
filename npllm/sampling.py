"""Choosing a single token from the probability distribution: the decoding strategy.

Each filter takes logits and returns logits, with excluded tokens at -inf. `choose` applies them in transformers' order:
repetition penalty, the caller's functions, temperature, top-k, top-p, min-p. (inspect/funnel.py shows what each keeps.)

Source: "Choosing a Single Token from the Probability Distribution" (Figure 3-7); Holtzman et al. 2020 (top-p); Nguyen
et al. 2024 (min-p); Keskar et al. 2019 (repetition penalty).
"""

import math
from collections.abc import Callable

from .arrays import Array, Bool, Float, Int, array_namespace
from .tap import Tap, untapped


def softmax(logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """The probabilities: positive, with sum 1."""
    xp = array_namespace(logits)
    shares = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return shares / xp.sum(shares, axis=-1, keepdims=True)


def penalize_repetition(logits: Float[Array, " V"], seen: Bool[Array, " V"], penalty: float) -> Float[Array, " V"]:
    """Logits with seen tokens made less likely: positive ones divided by the penalty, negative ones multiplied."""
    xp = array_namespace(logits)
    return xp.where(seen, xp.where(logits > 0, logits / penalty, logits * penalty), logits)


def scale_by_temperature(logits: Float[Array, " V"], temperature: float) -> Float[Array, " V"]:
    """Logits / temperature: below 1 makes likely tokens more likely, above 1 makes unlikely ones more likely."""
    return logits / temperature


def keep_top_k(logits: Float[Array, " V"], k: int) -> Float[Array, " V"]:
    """Logits of only the k most likely tokens, and any that tie with the last of them."""
    xp = array_namespace(logits)
    least = xp.sort(logits, descending=True, stable=False)[min(k, logits.shape[-1]) - 1]
    return xp.where(logits < least, -math.inf, logits)


def keep_top_p(logits: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """Nucleus sampling: logits of only the smallest set of top tokens with a total probability of at least p.

    A token stays if those before it sum to less than p, so the most likely one always stays. Ties stay together.
    """
    xp = array_namespace(logits)
    ordered = xp.sort(logits, descending=True, stable=False)  # a stable sort takes three times as long
    probabilities = softmax(ordered)
    sum_before = xp.cumulative_sum(probabilities) - probabilities
    least = xp.min(xp.where(sum_before < p, ordered, math.inf))
    return xp.where(logits < least, -math.inf, logits)


def keep_min_p(logits: Float[Array, " V"], p: float) -> Float[Array, " V"]:
    """Logits of only the tokens that are at least p times as likely as the most likely one."""
    xp = array_namespace(logits)
    return xp.where(logits < xp.max(logits) + math.log(p), -math.inf, logits)


def draw(logits: Float[Array, " V"], uniform: float) -> Int[Array, ""]:
    """The token at which the cumulative probability passes `uniform`: a token of 40 % covers 40 % of [0, 1)."""
    xp = array_namespace(logits)
    cumulated = xp.cumulative_sum(softmax(logits))
    target = cumulated[-1] * min(uniform, 1 - 2**-23)  # closer to 1, float32 could round it up to the total
    return xp.sum(xp.astype(cumulated <= target, xp.int32))


def choose(
    logits: Float[Array, " V"],
    *,
    uniform: float = 0.0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen: Bool[Array, " V"] | None = None,
    process: Callable[[Float[Array, " V"]], Float[Array, " V"]] | None = None,
    tap: Tap = untapped,
) -> Int[Array, ""]:
    """The next token's id. Temperature 0 is greedy decoding: always the most likely token.

    Parameters
    ----------
    uniform : the random number of this draw, from [0, 1); unused in greedy decoding
    top_k, top_p, min_p, repetition_penalty : 0, 1, 0 and 1 turn them off
    seen : the tokens that occur in the text so far, for the repetition penalty
    process : the caller's own change, see text/processors.py
    tap : observes the result of each step, see inspect/funnel.py

    >>> import numpy as np
    >>> logits = np.log(np.array([0.4, 0.5, 0.1], dtype=np.float32))
    >>> int(choose(logits)), int(choose(logits, temperature=1.0, uniform=0.3))
    (1, 0)
    """
    xp, logits = array_namespace(logits), tap("logits", logits)
    if seen is not None and repetition_penalty != 1.0:
        logits = tap("repetition_penalty", penalize_repetition(logits, seen, repetition_penalty))
    if process is not None:
        logits = tap("process", process(logits))
    if temperature < 1e-30:  # closer to 0, the division overflows float32
        return tap("greedy", xp.argmax(logits))
    logits = tap("temperature", scale_by_temperature(logits, temperature))
    if top_k > 0:
        logits = tap("top_k", keep_top_k(logits, top_k))
    if top_p < 1.0:
        logits = tap("top_p", keep_top_p(logits, top_p))
    if min_p > 0.0:
        logits = tap("min_p", keep_min_p(logits, min_p))
    return tap("draw", draw(logits, uniform))
