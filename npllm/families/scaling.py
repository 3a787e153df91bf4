"""RoPE scaling: how models read texts longer than those that they were trained on.

Each kind of scaling divides the frequency of each pair of dimensions by a factor of its own, so that the pairs turn
more slowly. `rope.rope_tables` applies the factors. The functions here compute them from the checked keys of
config.json, in float64.

linear    all pairs by the same factor: the positions of a longer text fall between those of the training
llama3    only pairs with long wavelengths, with a smooth transition
yarn      the same idea with other bounds; the scores are sharpened in return
longrope  factors found by a search: one set for short texts, another for long ones
dynamic   nothing within the context, and npllm ends a text there
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..config import RopeScaling

NEEDED = {  # the keys that a file must have, numbers or lists of numbers
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
}
OPTIONAL = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("attention_factor", "factor"),
}


def linear(values: Mapping[str, Any], theta: float, pairs: int) -> RopeScaling:
    """Position interpolation: position p of the longer text is p / factor. Source: Chen et al. 2023."""
    return RopeScaling("linear", (float(values["factor"]),) * pairs)


def llama3(values: Mapping[str, Any], theta: float, pairs: int) -> RopeScaling:
    """Llama 3.1's scaling: pairs with many turns within the original context are kept, those with few divided.

    Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py
    """
    low, high, original = (values[key] for key in NEEDED["llama3"][1:])
    turns = [original * frequency / (2 * math.pi) for frequency in frequencies(theta, pairs)]
    kept = [ramp(turn, low, high) for turn in turns]
    return RopeScaling("llama3", blended(kept, values["factor"]))


def yarn(values: Mapping[str, Any], theta: float, pairs: int) -> RopeScaling:
    """YaRN: pairs that make more than beta_fast turns are kept, those with fewer than beta_slow divided by the factor.

    Longer texts flatten the softmax; a factor on cos and sin, and thereby on all scores, makes up for it.
    Source: Peng et al. 2023, "YaRN: Efficient context window extension of large language models".
    """
    factor, original = values["factor"], values["original_max_position_embeddings"]

    def pair_with(turns: float) -> float:
        """The index of the pair that makes this many turns within the original context, as a fraction."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair_with(values.get("beta_fast") or 32.0), pair_with(values.get("beta_slow") or 1.0)
    if values.get("truncate", True):
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, 2.0 * pairs - 1)
    kept = [1 - ramp(float(i), first, last if first != last else last + 0.001) for i in range(pairs)]
    attention_factor = values.get("attention_factor")
    if attention_factor is None:
        attention_factor = sharpening(factor, 1.0)
        if values.get("mscale") and values.get("mscale_all_dim"):
            attention_factor = sharpening(factor, values["mscale"]) / sharpening(factor, values["mscale_all_dim"])
    return RopeScaling("yarn", blended(kept, factor), attention_factor=float(attention_factor))


def longrope(values: Mapping[str, Any], theta: float, pairs: int) -> RopeScaling:
    """LongRoPE: factors for texts up to the original context, and others for longer ones.

    The factor on cos and sin is the same for both, except in files with factors of their own (layer_normed.py).
    Source: Ding et al. 2024, "LongRoPE: Extending LLM context window beyond 2 million tokens".
    """
    original, attention_factor = values["original_max_position_embeddings"], values.get("attention_factor")
    if attention_factor is None:
        longer = values.get("factor") or values["max_position_embeddings"] / original
        attention_factor = math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0
    short, long = (tuple(float(factor) for factor in values[key]) for key in ("short_factor", "long_factor"))
    return RopeScaling("longrope", short, long, int(original), float(attention_factor), float(attention_factor))


def dynamic(values: Mapping[str, Any], theta: float, pairs: int) -> RopeScaling:
    """Dynamic NTK scaling: it begins where the context, max_position_embeddings, ends."""
    return RopeScaling("dynamic", (1.0,) * pairs)


SCALINGS: dict[str, Callable[[Mapping[str, Any], float, int], RopeScaling]] = {
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
    "dynamic": dynamic,
}


def frequencies(theta: float, pairs: int) -> list[float]:
    """The unscaled frequency of each pair, as in `rope.rope_frequencies`."""
    return [theta ** (-i / pairs) for i in range(pairs)]


def ramp(x: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, a straight line in between."""
    return min(max((x - low) / (high - low), 0.0), 1.0)


def blended(kept: list[float], factor: float) -> tuple[float, ...]:
    """The divisor of each pair's frequency: 1 for pairs that are kept whole, `factor` for those not kept at all."""
    return tuple(1 / (share + (1 - share) / factor) for share in kept)


def sharpening(factor: float, scale: float) -> float:
    """YaRN's factor on cos and sin for a context extended by `factor`."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
