"""Rotary positional embeddings (RoPE): a token's position as a rotation of its queries and keys.

Source: "Positional Embeddings (RoPE)" (Figures 3-32, 3-33); Su et al. 2021, "RoFormer".
"""

import math

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace
from .config import Config


def rope_frequencies(config: Config, like: Array) -> Float[Array, " R"]:
    """The angle per position of each pair of dimensions, in radians: theta^(-2i / 2R) for pair i.

    Pair 0 turns by 1 radian per token and separates neighbours; the last pair hardly turns and separates near from far.
    If the context was extended after training, `rope_scaling` slows pairs down: "linear" all of them by one factor;
    "llama3" those with long wavelengths, with a smooth transition; "factors" (GGUF files) each by its own factor.
    """
    xp = array_namespace(like)
    pairs = config.rotary_dim // 2
    exponents = xp.arange(pairs, dtype=xp.float32, device=device(like)) / pairs
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["rope_type"] == "factors":
        return frequencies / xp.asarray(scaling["factors"], dtype=xp.float32, device=device(like))
    # llama3: `turns` is the number of full turns that a pair makes within the context of the original training.
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = xp.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: many turns, unchanged; 0: few, slowed down
    return kept * frequencies + (1.0 - kept) * frequencies / scaling["factor"]


def rope_tables(
    positions: Int[Array, "... T"], config: Config, total_length: int
) -> tuple[Float[Array, "... T R"], Float[Array, "... T R"]]:
    """The cosine and sine of every position's angles, in float32: computed once per pass, used by every block.

    `total_length`, the number of past and new tokens, is for scalings that depend on it (LongRoPE); none here does yet.
    """
    xp = array_namespace(positions)
    angles = xp.astype(positions, xp.float32)[..., None] * rope_frequencies(config, positions)
    return xp.cos(angles), xp.sin(angles)


def apply_rope(
    x: Float[Array, "... N T H"], cos: Float[Array, "... T R"], sin: Float[Array, "... T R"]
) -> Float[Array, "... N T H"]:
    """x with each pair of dimensions rotated by its position's angle. q·k then depends only on relative positions.

    Pair i is dimensions i and i + R, one from each half, not neighbours 2i and 2i + 1 as in the paper. Weights trained
    for one pairing give nonsense with the other. Dimensions from 2R on are not rotated (partial rotary).
    """
    xp = array_namespace(x)
    cos, sin = cos[..., None, :, :], sin[..., None, :, :]  # the same for all heads
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return xp.concat([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
