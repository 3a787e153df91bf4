"""Rotary positional embeddings (RoPE): a token's position as a rotation of its queries and keys.

Source: "Positional Embeddings (RoPE)" (Figures 3-32, 3-33); Su et al. 2021, "RoFormer".
"""

import math

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace
from .config import Config


def rope_frequencies(config: Config, like: Array) -> Float[Array, " R"]:
    """How far each pair of dimensions turns per position, in radians: theta^(-2i / 2R) for pair i.

    Pair 0 turns by 1 radian per token and tells neighbours apart; the last pair hardly turns, and tells far from near.
    A model whose context was extended after training has `rope_scaling`, which slows the pairs down:
    "linear" all of them by one factor; "llama3" those whose wavelength is long, with a smooth passage between;
    "factors" each by a factor of its own, as GGUF files keep it.
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
    # llama3: `turns` is how often a pair turns around within the context that the model was first trained on.
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = xp.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: many turns, as it was; 0: few, slowed down
    return kept * frequencies + (1.0 - kept) * frequencies / scaling["factor"]


def rope_tables(
    positions: Int[Array, "... T"], config: Config, total_length: int
) -> tuple[Float[Array, "... T R"], Float[Array, "... T R"]]:
    """cos and sin of every position's angles, in float32: built once for a pass, and used by every block.

    `total_length`, the number of past and new tokens, is for scalings that depend on it (LongRoPE); none here does yet.
    """
    xp = array_namespace(positions)
    angles = xp.astype(positions, xp.float32)[..., None] * rope_frequencies(config, positions)
    return xp.cos(angles), xp.sin(angles)


def apply_rope(
    x: Float[Array, "... N T H"], cos: Float[Array, "... T R"], sin: Float[Array, "... T R"]
) -> Float[Array, "... N T H"]:
    """Rotate each pair of dimensions of x by its position's angle; q·k then knows positions by their distance only.

    Pair i is made of dimensions i and i + R, the two halves, and not of neighbours 2i and 2i + 1 as in the paper.
    Weights trained for one pairing give nonsense with the other. Dimensions from 2R on pass unrotated (partial rotary).
    """
    xp = array_namespace(x)
    cos, sin = cos[..., None, :, :], sin[..., None, :, :]  # the same for all heads
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return xp.concat([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
