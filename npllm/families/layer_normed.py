"""The pass of modern models that kept LayerNorm, with its bias, in place of RMSNorm: Phi-3.5-MoE and Phi-3-small.

Their LongRoPE has two factors on cos and sin, one for short texts and one for long ones, given in the file.

Source: Abdin et al. 2024, "Phi-3 technical report"; Ding et al. 2024, "LongRoPE".
"""

from collections.abc import Callable, Mapping
from typing import Any

from .. import model
from ..arrays import Array, Bool, Float, Int
from ..attention import attention
from ..block import self_attention
from ..cache import Cache
from ..config import Config, RopeScaling
from ..norm import layer_norm
from ..shapes import BlockLike, Weights
from ..tap import Tap, under, untapped
from . import llama
from .fixed_norm import layer_norm_of_parts
from .keys import POSITIVE, Keys, is_positive
from .work import layer_norm_flops


def block(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: Any,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    self_attention: Callable[..., Float[Array, "... T D"]] = self_attention,
    feedforward: Callable[..., Float[Array, "... T D"]],
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The chapter's pre-norm block with LayerNorm. Parameters as in `npllm.block.block`.

    self_attention, feedforward : the two layers; the second gets (x, weights, config)
    """
    eps, bias = config.layer_norm_epsilon, weights.input_layernorm_bias
    normed = tap("input_layernorm", layer_norm(x, weights.input_layernorm, bias, eps))
    x = x + self_attention(
        normed, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=under(tap, "attention")
    )
    x, bias = tap("residual_after_attention", x), weights.post_attention_layernorm_bias
    normed = tap("post_attention_layernorm", layer_norm(x, weights.post_attention_layernorm, bias, eps))
    x = x + feedforward(normed, weights, config, tap=under(tap, "feedforward"))
    return tap("residual_after_feedforward", x)


def transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    *,
    block: Callable[..., Float[Array, "... T D"]],
    **options: Any,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The chapter's pass with LayerNorm after the last block. Parameters as in `npllm.model.transform`."""

    def norm(x: Float[Array, "... T D"], *_: Any) -> Float[Array, "... T D"]:
        return final_norm(x, weights, config)

    return model.transform(ids, weights, config, cache, block=block, norm=norm, **options)


def final_norm(x: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T D"]:
    """The norm between the last block and the head."""
    return layer_norm(x, weights.norm, weights.norm_bias, config.layer_norm_epsilon)


def final_norm_of_parts(
    parts: Float[Array, "P D"], x: Float[Array, " D"], weights: Weights, config: Config
) -> Float[Array, "P D"]:
    """The share of each part of x in the final norm of x, without its bias."""
    return layer_norm_of_parts(parts, x, weights.norm, config.layer_norm_epsilon)


def with_mscales(keys: Keys, rope: dict[str, Any]) -> dict[str, Any]:
    """The fields of RoPE with `short_mscale` and `long_mscale` of the file in place of a computed attention factor."""
    scaling: RopeScaling | None = rope["rope_scaling"]
    if scaling is None:
        return rope
    where = "rope_scaling" if keys.object("rope_scaling") else "rope_parameters"
    inside: Mapping[str, Any] = keys.object(where)
    for name in ("short_mscale", "long_mscale"):
        if not is_positive(inside.get(name)):
            raise keys.refusal(f"{where}.{name}", POSITIVE, got=inside.get(name))
    short, long = float(inside["short_mscale"]), float(inside["long_mscale"])
    return rope | {"rope_scaling": scaling._replace(attention_factor=short, long_attention_factor=long)}


NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
PARTS = {
    **{name: llama.PARTS[name]._replace(function=layer_norm, figures="3-29") for name in NORMS},
    **llama.moved(block, "residual_after_attention", "residual_after_feedforward"),
}


def norm_text(config: Config) -> str:
    """A norm, for `npllm show`."""
    return f"LayerNorm({config.hidden_size}, eps={config.layer_norm_epsilon:g})"


def norm_flops(config: Config, T: int) -> int:
    """The FLOPs of the final norm."""
    return layer_norm_flops(T, config.hidden_size)
