"""Phi-3.5-MoE: 16 experts with a router of its own (SparseMixer), LayerNorm, biases up to the LM head's, LongRoPE.

The router picks two experts, one after the other. An expert's share is 1, unless the score of another, not yet picked,
is very close: the second is not compared with the first. LongRoPE has its two attention factors in the file. A text
longer than the original context takes the long factors, as in the code published with Phi-3-small; transformers 5.24
multiplies by `long_mscale` there, but keeps the short factors of the angles.

A .gguf file holds the same weights, but neither the threshold of the router, which has its default here, nor these two
attention factors, only one computed from the contexts. llama.cpp itself computes something else: RMSNorm, and shares
from one softmax.

Source: Abdin et al. 2024, "Phi-3 technical report"; Liu et al. 2024, "GRIN: GRadient-INformed MoE" (SparseMixer-v2);
https://huggingface.co/docs/transformers/model_doc/phimoe
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from array_api_compat import device

from ..arrays import Array, Float, Int, Weight, array_namespace
from ..linear import linear
from ..sampling import softmax
from ..tap import Tap, untapped
from ..text.brief import brief
from . import common, experts, layer_normed, llama, metadata, mixtral
from .experts import ExpertsConfig, ExpertWeights, mixture_of_experts
from .family import Gguf, Work
from .keys import Keys
from .layer_normed import norm_text, with_mscales
from .llama import LLAMA, score_bias
from .metadata import Metadata
from .work import attention_work, layer_norm_flops


@dataclass(frozen=True, kw_only=True)
class PhimoeConfig(ExpertsConfig):
    """Phi-3.5-MoE's configuration: the common one, that of its experts, and the router's threshold."""

    # Half of the distance within which experts compete. (Noise, as the name says, only in Mixtral: experts.HARMLESS.)
    router_jitter_noise: float = 0.01
    lm_head_bias: bool = False


class PhimoeBlockWeights(NamedTuple):
    """The weights of one block: Mixtral's, and the biases of the norms."""

    input_layernorm: Float[Array, " D"]
    input_layernorm_bias: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    post_attention_layernorm_bias: Float[Array, " D"]
    router: Weight  # [E, D]
    experts: tuple[ExpertWeights, ...]  # E of them
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


def sparsemixer(
    logits: Float[Array, "... T E"], jitter: float
) -> tuple[Int[Array, "... T A"], Float[Array, "... T A"]]:
    """The two best experts of each token, and their shares.

    An expert competes with the best one unless its logit is lower by more than 2 · jitter, relative to the larger of
    its magnitude and the best logit. The share is the best one's probability among those that compete: 1 if none does,
    about 0.5 if one does. Then the same without the expert that was chosen. The two shares are not made to sum to 1.
    """
    xp = array_namespace(logits)
    numbers = xp.arange(logits.shape[-1], device=device(logits))
    left, chosen, shares = logits, [], []
    for _ in range(2):
        best, largest = xp.argmax(left, axis=-1, keepdims=True), xp.max(left, axis=-1, keepdims=True)
        far = (largest - logits) / xp.maximum(xp.abs(logits), largest) > 2 * jitter
        competing = softmax(xp.where(far, -math.inf, left))
        chosen.append(best)
        shares.append(xp.take_along_axis(competing, best, axis=-1))
        left = xp.where(numbers != best, left, -math.inf)
    return xp.concat(chosen, axis=-1), xp.concat(shares, axis=-1)


def route(
    x: Float[Array, "... T D"], weights: PhimoeBlockWeights, config: PhimoeConfig, *, tap: Tap = untapped
) -> tuple[Int[Array, "... T A"], Float[Array, "... T A"]]:
    """The experts of each token, and their shares."""
    logits = tap("router_logits", linear(x, weights.router))
    chosen, shares = sparsemixer(logits, config.router_jitter_noise)
    return tap("chosen", chosen), tap("shares", shares)


feedforward = partial(mixture_of_experts, route=route)
block = partial(layer_normed.block, feedforward=feedforward)
transform = partial(layer_normed.transform, block=block)


def read_config(keys: Keys) -> PhimoeConfig:
    """Phi-3.5-MoE's config.json. SparseMixer picks two experts, so another number is refused."""
    keys.allow_only(llama.ALLOWED | {"num_experts_per_tok": (2,)})
    sizes = common.sizes(keys, kv_heads=8)
    layers, window = sizes["num_hidden_layers"], keys.optional("sliding_window")
    keys.integer("num_local_experts", 16, least=2)
    rope = common.rope(keys, sizes["head_dim"], theta=1e6, kinds={"longrope": "longrope"})
    return PhimoeConfig(
        family="phimoe",
        **sizes,
        **with_mscales(keys, rope),
        **common.head(keys),
        **experts.read_experts(keys, layers, ["num_local_experts"], experts=16, chosen=2),
        layer_norm_epsilon=keys.number("rms_norm_eps", 1e-5),
        sliding_window=window,
        layer_types=common.same_window(keys, layers, window),
        attention_bias=keys.boolean("attention_bias"),
        lm_head_bias=keys.boolean("lm_head_bias"),
        router_jitter_noise=keys.number("router_jitter_noise", 0.01),
    )


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "phimoe"."""
    keys = metadata.common(m, m.tensors)
    metadata.whole_heads_rotate(m, keys["head_dim"])
    factor = m.number("rope.scaling.attn_factor", 1.0)
    if "rope_factors_long.weight" in m.tensors:  # the factors themselves are read with the tensors
        original = m.get("rope.scaling.original_context_length", m.get("context_length"))
        keys["original_max_position_embeddings"] = original
        keys["rope_scaling"] = {"rope_type": "longrope", "short_mscale": factor, "long_mscale": factor}
    elif factor != 1.0:
        raise m.refusal("rope.scaling.attn_factor", "1.0 without the tensors of LongRoPE's factors")
    return keys | {
        "model_type": "phimoe",
        **metadata.experts(m),
        "sliding_window": m.get("attention.sliding_window", 0) or None,
        "attention_bias": "blk.0.attn_q.bias" in m.tensors or "blk.0.attn_qkv.bias" in m.tensors,
        "lm_head_bias": "output.bias" in m.tensors,
    }


# Of training, and what a model returns.
HARMLESS = ("input_jitter_noise", "output_router_logits", "router_aux_loss_coef")


def biases(config: Any) -> set[str]:
    """The weights with a bias: all norms, and those in the config."""
    attention = {"qkv_proj", "o_proj"} if config.attention_bias else set()
    head = {"lm_head"} if config.lm_head_bias and not config.id2label else set()
    return {"input_layernorm", "post_attention_layernorm", "norm"} | attention | head | score_bias(config)


def structure(config: PhimoeConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    norm = norm_text(config)
    rows = mixtral.structure(config, layer)
    return [(f"({name}): {norm}" if text.startswith(f"({name})") else text, name) for text, name in rows]


def work(config: PhimoeConfig, layer: int, weights: PhimoeBlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    norm, E = layer_norm_flops(T, config.hidden_size), config.num_experts
    return [
        Work("input_layernorm", norm, ["input_layernorm", "input_layernorm_bias"]),
        *attention_work(config, weights, T, S),
        Work("post_attention_layernorm", norm, ["post_attention_layernorm", "post_attention_layernorm_bias"]),
        *(
            Work("shares", 2 * T * (6 * E - 1)) if one.part == "shares" else one
            for one in experts.expert_work(config, weights, T)
        ),
        Work("residual", 2 * T * config.hidden_size),
    ]


CHOSEN, SHARES = "feedforward.chosen", "feedforward.shares"
PARTS = experts.PARTS | layer_normed.PARTS
PARTS |= {name: PARTS[name]._replace(function=route, line="return tap") for name in (CHOSEN, SHARES)}
# transformers' router returns logits, shares, and the experts.
OUTPUTS = {"router_logits": 0, "shares": 1, "chosen": 2}

PHIMOE = LLAMA._replace(
    title="Phi-3.5-MoE",
    model_types=["phimoe"],
    lm_class="PhimoeForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias", "use_sliding_window", "max_window_layers", *HARMLESS],
    names=mixtral.NAMES,
    shapes=mixtral.shapes,
    biases=biases,
    block_weights=PhimoeBlockWeights,
    transform=transform,
    block=layer_normed.block,
    final_norm=layer_normed.final_norm,
    final_norm_of_parts=layer_normed.final_norm_of_parts,
    structure=structure,
    norm_text=norm_text,
    parts=PARTS,
    work=work,
    norm_flops=layer_normed.norm_flops,
    traced=experts.TRACED
    | {f"layers.*.feedforward.{name}": f"model.layers.*.mlp.router[{i}]" for name, i in OUTPUTS.items()},
    gguf=Gguf("phimoe", gguf_keys, mixtral.GGUF_NAMES),
    classifiers=["sequence"],
)
