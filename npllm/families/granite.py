"""Granite 3: Llama with four multipliers: of the embeddings, the scores, what each layer adds, and the logits.

They come from maximal update parametrization (µP), which keeps the best learning rate the same at every width: a small
model is tuned, and a large one trained with its values. Only `attention_multiplier` takes the place of something: it
replaces 1 / sqrt(H).

Source: Yang et al. 2022, "Tensor programs V: tuning large neural networks via zero-shot hyperparameter transfer";
Granite Team 2024, "Granite 3.0 language models"; https://huggingface.co/docs/transformers/model_doc/granite
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import block as chapter
from .. import heads, model
from ..arrays import Array, Bool, Float, Int, Weight
from ..attention import attention
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..feedforward import feedforward as swiglu_network
from ..shapes import BlockWeights, Weights
from ..tap import Tap, untapped
from . import common, llama, metadata
from .family import Gguf, Tapped, Work
from .keys import Keys
from .llama import LLAMA
from .metadata import Metadata


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(Config):
    """Granite's configuration: the common one and the multipliers."""

    embedding_multiplier: float
    attention_multiplier: float  # the scores are q · k times this
    residual_multiplier: float
    logits_scaling: float  # a divisor


def scaled_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "..."] | None = None,
    *,
    scale: float,
    attention: Callable[..., Float[Array, "... N T H"]],
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """Attention with q · k times `scale` as its scores: q is multiplied beforehand by what `attention` divides by."""
    return attention(q * (scale * math.sqrt(q.shape[-1])), k, v, visible, tap=tap)


def self_attention(
    x: Float[Array, "... T D"],
    weights: BlockWeights,
    config: GraniteConfig,
    *args: Any,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The chapter's attention layer with these scores, its output multiplied."""
    attention = partial(scaled_attention, scale=config.attention_multiplier, attention=attention)
    y = chapter.self_attention(x, weights, config, *args, attention=attention, tap=tap)
    return tap("scaled_output", y * config.residual_multiplier)


def feedforward(
    x: Float[Array, "... T D"], weights: BlockWeights, config: GraniteConfig, *, tap: Tap = untapped
) -> Float[Array, "... T D"]:
    """The chapter's network, its output multiplied."""
    return tap("scaled_output", swiglu_network(x, weights, tap=tap) * config.residual_multiplier)


def block(
    x: Float[Array, "... T D"], weights: BlockWeights, config: GraniteConfig, *args: Any, **options: Any
) -> Float[Array, "... T D"]:
    """The chapter's block with these layers."""
    network = partial(feedforward, config=config)
    return chapter.block(x, weights, config, *args, self_attention=self_attention, feedforward=network, **options)


def scaled_embed(ids: Int[Array, "... T"], embed_tokens: Weight, multiplier: float) -> Float[Array, "... T D"]:
    """The embedding vectors, times a number."""
    return embed(ids, embed_tokens) * multiplier


def transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: GraniteConfig,
    cache: Cache | None = None,
    *,
    block: Callable[..., Float[Array, "... T D"]] = block,
    **options: Any,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The chapter's pass with this block and multiplied embeddings. Parameters as in `npllm.model.transform`."""
    scaled = partial(scaled_embed, multiplier=config.embedding_multiplier)
    return model.transform(ids, weights, config, cache, block=block, embed=scaled, **options)


def lm_head(hidden: Float[Array, "... T D"], weights: Weights, config: GraniteConfig) -> Float[Array, "... T V"]:
    """The logits, divided by `logits_scaling`."""
    return heads.lm_head(hidden, weights, config) / config.logits_scaling


def read_config(keys: Keys) -> GraniteConfig:
    """Granite's config.json: Llama's, and the multipliers, each 1 where the file has none."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys)
    common.refuse_window(keys, sizes["max_position_embeddings"])
    return GraniteConfig(
        family="granite",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        layer_types=common.all_full(sizes["num_hidden_layers"]),
        attention_bias=keys.boolean("attention_bias"),
        mlp_bias=keys.boolean("mlp_bias"),
        embedding_multiplier=keys.number("embedding_multiplier", 1.0),
        attention_multiplier=keys.number("attention_multiplier", 1.0),
        residual_multiplier=keys.number("residual_multiplier", 1.0),
        logits_scaling=keys.number("logits_scaling", 1.0),
    )


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "granite". A multiplier that is missing or 0 means 1 (for the scores 1/√H)."""
    keys = metadata.common(m, m.tensors)
    metadata.whole_heads_rotate(m, keys["head_dim"])
    if m.get("rope.scaling.finetuned", True) is not True:  # llama.cpp's switch for RoPE
        raise m.refusal("rope.scaling.finetuned", "true: npllm rotates in all layers")
    return keys | {
        "model_type": "granite",
        "attention_bias": "blk.0.attn_q.bias" in m.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in m.tensors,
        "embedding_multiplier": m.number("embedding_scale", 0.0) or 1.0,
        "attention_multiplier": m.number("attention.scale", 0.0) or 1 / math.sqrt(keys["head_dim"]),
        "residual_multiplier": m.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": m.number("logit_scale", 0.0) or 1.0,
    }


def structure(config: GraniteConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = llama.structure(config, layer)
    attention = f"{llama.attention_text(config, layer)[:-1]}, multiplier={config.attention_multiplier:g})"
    rows[1] = (f"(self_attn): {attention}", "")
    return [*rows, (f"(residual_multiplier): {config.residual_multiplier:g}", "")]


def work(config: GraniteConfig, layer: int, weights: BlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    parts = llama.work(config, layer, weights, T, S)
    at = [part.part for part in parts].index("scores")
    scale = Work("attention_multiplier", T * config.num_attention_heads * config.head_dim)
    return [*parts[:at], scale, *parts[at:], Work("residual_multiplier", 2 * T * config.hidden_size)]


def outside_flops(config: GraniteConfig) -> tuple[int, int]:
    """What the multipliers of a token's embedding and of its logits cost."""
    return config.hidden_size, config.vocab_size


PARTS = llama.PARTS | {
    "embedding": Tapped("each id's row of the embedding matrix, times a number", "T D", scaled_embed, "", "3-5"),
    "attention.scaled_output": Tapped("multiplied", "T D", self_attention, 'tap("scaled_output"', "3-30"),
    "feedforward.scaled_output": Tapped("multiplied", "T D", feedforward, 'tap("scaled_output"', "3-30"),
    **llama.moved(lm_head, "logits"),
}
TRACED = llama.TRACED | {
    "embedding": "embedding_multiplier · model.embed_tokens",
    "layers.*.attention.scaled_output": "residual_multiplier · model.layers.*.self_attn.o_proj",
    "layers.*.feedforward.scaled_output": "residual_multiplier · model.layers.*.mlp",
}

GRANITE = LLAMA._replace(
    title="Granite 3",
    model_types=["granite"],
    lm_class="GraniteForCausalLM",
    read_config=read_config,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    outside_flops=outside_flops,
    traced=TRACED,
    lm_head=lm_head,
    added=("attention.scaled_output", "feedforward.scaled_output"),
    gguf=Gguf("granite", gguf_keys, llama.GGUF_NAMES, interleaved=["qkv_proj"], checked="llama.cpp"),
    classifiers=[],
)
