"""The Transformer block: attention, then the feedforward network, each added to its input.

Source: "Inside the Transformer Block" (Figures 3-11, 3-12), "The Transformer Block" (Figures 3-29, 3-30); Xiong et al.
2020, "On layer normalization in the Transformer architecture".
"""

from collections.abc import Callable

from .arrays import Array, Bool, Float
from .attention import attention, merge_heads, queries_keys_values
from .cache import Cache, append
from .config import Config
from .feedforward import feedforward, plain_feedforward, relu
from .linear import linear
from .norm import layer_norm, rms_norm
from .rope import apply_rope
from .shapes import BlockLike, GPT2BlockWeights
from .tap import Tap, under, untapped


def self_attention(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: Config,
    cos: Float[Array, "... T R"] | None,
    sin: Float[Array, "... T R"] | None,
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The output of the attention layer: project, rotate by position, cache, attend, project back.

    Only queries and keys are rotated; keys are cached after rotation, so a cached key never changes. Without cos and
    sin nothing is rotated: the positions are already in x.
    """
    q, k, v = queries_keys_values(x, weights, config)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    if cos is not None:
        q, k = tap("q_rotated", apply_rope(q, cos, sin)), tap("k_rotated", apply_rope(k, cos, sin))
    if cache is not None:
        k, v = append(cache, layer, k, v)
    mixed = attention(q, k, v, visible, tap=tap)
    return tap("output", linear(merge_heads(mixed), weights.o_proj, weights.o_proj_bias))


def block(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: Config,
    cos: Float[Array, "... T R"] | None,
    sin: Float[Array, "... T R"] | None,
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    self_attention: Callable[..., Float[Array, "... T D"]] = self_attention,
    feedforward: Callable[..., Float[Array, "... T D"]] = feedforward,
    norm: Callable[..., Float[Array, "... T D"]] = rms_norm,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The modern, pre-norm block: x + attention(norm(x)), then x + feedforward(norm(x)).

    The norms come before each layer, not after it, so the residual stream x itself is never normalized: it runs from
    the embedding to the final norm, and every layer only adds to it.

    Parameters
    ----------
    cos, sin : from `rope_tables`, for the positions of the T new tokens; None rotates nothing
    visible : which of the S cached and new tokens each new token sees; None for all
    cache, layer : the KV cache, and the index of this block's layer in it
    self_attention, feedforward, norm : other layers
    attention : another implementation, such as tile by tile
    """
    inside = under(tap, "attention")
    normed = tap("input_layernorm", norm(x, weights.input_layernorm, config.rms_norm_eps))
    y = self_attention(normed, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=inside)
    x = tap("residual_after_attention", x + y)
    normed = tap("post_attention_layernorm", norm(x, weights.post_attention_layernorm, config.rms_norm_eps))
    y = feedforward(normed, weights, tap=under(tap, "feedforward"))
    return tap("residual_after_feedforward", x + y)


def original_block(
    x: Float[Array, "... T D"],
    weights: GPT2BlockWeights,
    config: Config,
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    activation: Callable[[Array], Array] = relu,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The original, post-norm block: norm(x + attention(x)), then norm(x + feedforward(x)), with LayerNorm and ReLU.

    Every layer adds, then normalizes ("Add & Norm"), so nothing passes through a block unchanged.
    """
    eps, inside = config.layer_norm_epsilon, under(tap, "attention")
    y = self_attention(x, weights, config, None, None, visible, cache, layer, attention=attention, tap=inside)
    x = tap("residual_after_attention", x + y)
    x = tap("post_attention_layernorm", layer_norm(x, weights.ln_1, weights.ln_1_bias, eps))
    y = plain_feedforward(x, weights, activation, tap=under(tap, "feedforward"))
    x = tap("residual_after_feedforward", x + y)
    return tap("post_feedforward_layernorm", layer_norm(x, weights.ln_2, weights.ln_2_bias, eps))
