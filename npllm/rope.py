"""Rotary positional embeddings (RoPE): a token's position as a rotation of its queries and keys.

Source: "Positional Embeddings (RoPE)" (Figures 3-32, 3-33); Su et al. 2021, "RoFormer".
"""

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace
from .config import Config


def rope_frequencies(config: Config, like: Array, total_length: int = 0) -> Float[Array, " R"]:
    """The angle per position of each pair of dimensions, in radians: theta^(-i/R) for pair i (in the paper -2i/d).

    Pair 0 turns by 1 radian per token and separates neighbours; the last pair hardly turns and separates near from far.
    If the context was extended after training, each pair is slowed down by a factor of its own (families/scaling.py).
    """
    xp, scaling = array_namespace(like), config.rope_scaling
    pairs = config.rotary_dim // 2
    exponents = xp.arange(pairs, dtype=xp.float32, device=device(like)) / pairs
    if scaling is None:
        return 1.0 / config.rope_theta**exponents
    factors = scaling.long_factors if needs_long_factors(config, total_length) else scaling.factors
    return 1.0 / (xp.asarray(factors, dtype=xp.float32, device=device(like)) * config.rope_theta**exponents)


def needs_long_factors(config: Config, total_length: int) -> bool:
    """Whether a text of this length takes LongRoPE's long factors. Keys cached with the short ones do not fit then."""
    scaling = config.rope_scaling
    return scaling is not None and bool(scaling.long_factors) and total_length > scaling.original


def rope_tables(
    positions: Int[Array, "... T"], config: Config, total_length: int
) -> tuple[Float[Array, "... T R"], Float[Array, "... T R"]]:
    """The cosine and sine of every position's angles, in float32: computed once per pass, used by every block.

    `total_length` is the number of past and new tokens; LongRoPE depends on it. The attention factor of some scalings
    multiplies cosine and sine, and thus every score by its square.
    """
    xp = array_namespace(positions)
    angles = xp.astype(positions, xp.float32)[..., None] * rope_frequencies(config, positions, total_length)
    scaling, factor = config.rope_scaling, 1.0
    if scaling is not None:
        long = needs_long_factors(config, total_length)
        factor = scaling.long_attention_factor if long else scaling.attention_factor
    return xp.cos(angles) * factor, xp.sin(angles) * factor


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
