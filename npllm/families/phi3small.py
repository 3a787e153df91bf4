"""Phi-3-small: block-sparse attention in every second layer, GeGELU, LayerNorm, multipliers (µP).

With the multipliers, the best learning rates are the same at every width, so they can be found with a narrow model.

transformers has no such model: its files come with Python code, which npllm does not run. This module computes the same
from config.json and the tensors, and its tests compare it with loops of their own. The vocabulary is in tiktoken's
format, so there is no tokenizer: prompts are token ids.

Source: Abdin et al. 2024, "Phi-3 technical report", section 2; Yang et al. 2022, "Tensor programs V" (µP);
https://huggingface.co/microsoft/Phi-3-small-8k-instruct (configuration_phi3_small.py, modeling_phi3_small.py)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from array_api_compat import device

from .. import heads
from ..arrays import Array, Bool, Float, Int, Weight, array_namespace
from ..cache import Cache
from ..config import Config
from ..linear import linear
from ..masks import decoder_mask
from ..shapes import Weights
from ..tap import Tap, untapped
from ..text.brief import brief
from . import common, layer_normed, llama
from .activations import bounded_glu
from .block_sparse import BlockSparseConfig, queries_keys_values, self_attention, sparse_mask
from .family import Rows, Tapped, Work
from .granite import scaled_embed
from .keys import Keys
from .layer_normed import norm_text, with_mscales
from .llama import LLAMA, moved, score_bias
from .work import attention_work, layer_norm_flops, linear_work


@dataclass(frozen=True, kw_only=True)
class Phi3SmallConfig(BlockSparseConfig):
    """Phi-3-small's configuration: the common one, its sparse layers, and its multipliers."""

    gegelu_limit: float = 20.0
    mup_embedding_multiplier: float = 10.0
    mup_width_multiplier: float = 8.0


class Phi3SmallBlockWeights(NamedTuple):
    """The weights of one block, under the names of the chapter's where they have the same place."""

    input_layernorm: Float[Array, " D"]
    input_layernorm_bias: Float[Array, " D"]
    qkv_proj: Weight  # [K·(G + 2)·H, D]: the queries, key and value of the first key head, of the second, ...
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    post_attention_layernorm_bias: Float[Array, " D"]
    up_proj: Weight  # [2F, D]: alternating rows of gate and up
    down_proj: Weight  # [D, F]
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None
    up_proj_bias: Float[Array, " 2F"] | None = None
    down_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


def feedforward(
    x: Float[Array, "... T D"], weights: Phi3SmallBlockWeights, config: Phi3SmallConfig, *, tap: Tap = untapped
) -> Float[Array, "... T D"]:
    """The network with GeGELU. Row 2i of `up_proj` is the gate of element i, row 2i + 1 what it lets pass."""
    both = linear(x, weights.up_proj, weights.up_proj_bias)
    gate, up = tap("gate", both[..., ::2]), tap("up", both[..., 1::2])
    activation = tap("activation", bounded_glu(gate, up, config.gegelu_limit))
    return tap("output", linear(activation, weights.down_proj, weights.down_proj_bias))


block = partial(layer_normed.block, self_attention=self_attention, feedforward=feedforward)


def transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Phi3SmallConfig,
    cache: Cache | None = None,
    *,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    block: Callable[..., Float[Array, "... T D"]] = block,
    **options: Any,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The pass with this block, scaled embeddings, and two masks. Parameters as in `npllm.model.transform`.

    `visible` hides tokens besides those that the sparse layers hide. The blocks are counted by order in the cache.
    """
    past, new, layers = (0 if cache is None else cache["length"]), ids.shape[-1], config.num_hidden_layers
    if visible is None:
        visible = decoder_mask(past, new, None, ids)
    masks: list[Any] = list(visible) if isinstance(visible, Sequence) else [visible] * layers
    sparse = sparse_mask(past, new, config, ids)
    for layer in filter(config.is_sparse, range(layers)):
        masks[layer] = sparse if masks[layer] is None else sparse & masks[layer][..., None, :, :]  # [... N T S]
    scaled = partial(scaled_embed, multiplier=config.mup_embedding_multiplier)
    return layer_normed.transform(ids, weights, config, cache, visible=masks, block=block, embed=scaled, **options)


# The ids that no text has, as ranges: gaps in the vocabulary of 100,277 tokens, and rows that only fill it up.
UNUSED = ((100256, 100257), (100258, 100261), (100264, 100266), (100267, 100352))


def lm_head(hidden: Float[Array, "... T D"], weights: Weights, config: Phi3SmallConfig) -> Float[Array, "... T V"]:
    """The chapter's head, its logits divided by `mup_width_multiplier`, and those of unused ids as low as can be."""
    xp = array_namespace(hidden)
    logits = heads.lm_head(hidden, weights, config) / config.mup_width_multiplier
    lowest = xp.finfo(logits.dtype).min  # not -inf, which would look like an overflow
    ids = xp.arange(logits.shape[-1], device=device(hidden))
    for first, end in UNUSED:
        logits = xp.where((ids >= first) & (ids < end), lowest, logits)
    return logits


# config.json's names for the common keys.
KEYS = {"intermediate_size": "ff_intermediate_size", "rope_theta": "rope_embedding_base"}
ALLOWED = common.ALLOWED | {
    "hidden_act": ("gegelu",),
    "rope_position_scale": (1.0, 1),
    **dict.fromkeys(("ff_dim_multiplier", "head_dim", "rope_parameters", "sliding_window", "layer_types"), (None,)),
}
HARMLESS = (
    *("embedding_dropout_prob", "attention_dropout_prob", "ffn_dropout_prob", "gegelu_pad_to_256", "attention_bias"),
    *("pad_sequence_to_multiple_of_64", "reorder_and_upcast_attn", "blocksparse_triton_kernel_block_size"),
)


def read_config(keys: Keys) -> Phi3SmallConfig:
    """Phi-3-small's config.json, with the defaults of its configuration_phi3_small.py."""
    keys.names.update(KEYS)
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys, kv_heads=8)
    kinds = dict.fromkeys(("longrope", "su"), "longrope")
    rope = common.rope(keys, sizes["head_dim"], theta=1e6, kinds=kinds)
    return Phi3SmallConfig(
        family="phi3small",
        **sizes,
        **with_mscales(keys, rope),
        **common.head(keys, tied=True),
        layer_norm_epsilon=keys.number("layer_norm_epsilon", 1e-5),
        layer_types=common.all_full(sizes["num_hidden_layers"]),
        attention_bias=True,
        mlp_bias=True,
        dense_attention_every_n_layers=or_null(keys, "dense_attention_every_n_layers", 2, 0),
        blocksparse_block_size=keys.integer("blocksparse_block_size", 64),
        blocksparse_num_local_blocks=keys.integer("blocksparse_num_local_blocks", 16),
        blocksparse_vert_stride=keys.integer("blocksparse_vert_stride", 8),
        blocksparse_homo_head_pattern=keys.boolean("blocksparse_homo_head_pattern"),
        gegelu_limit=or_null(keys, "gegelu_limit", 20.0, math.inf),
        mup_use_scaling=keys.boolean("mup_use_scaling", True),
        mup_attn_multiplier=keys.number("mup_attn_multiplier", 1.0),
        mup_embedding_multiplier=or_null(keys, "mup_embedding_multiplier", 10.0, 1.0),
        mup_width_multiplier=or_null(keys, "mup_width_multiplier", 8.0, 1.0),
    )


def or_null(keys: Keys, name: str, absent: Any, null: Any) -> Any:
    """A positive number of the type of `absent`, its default; `null` where the file has null."""
    if keys.has(name) and keys.get(name) is None:
        return null
    return keys.integer(name, absent, least=0) if isinstance(absent, int) else keys.number(name, absent)


def shapes(config: Config) -> dict[str, Rows]:
    """The rows and columns of each weight."""
    D, F, V, H = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    return {
        "embed_tokens": ([V], D),
        "norm": ([D], None),
        **({"score": ([len(config.id2label)], D)} if config.id2label else {"lm_head": ([V], D)}),
        "input_layernorm": ([D], None),
        "qkv_proj": ([(config.num_attention_heads + 2 * config.num_key_value_heads) * H], D),
        "o_proj": ([D], D),
        "post_attention_layernorm": ([D], None),
        "up_proj": ([2 * F], D),
        "down_proj": ([D], F),
    }


def biases(config: Config) -> set[str]:
    """The weights with a bias: all in the blocks, and the final norm."""
    matrices = {"qkv_proj", "o_proj", "up_proj", "down_proj"}
    return matrices | {"input_layernorm", "post_attention_layernorm", "norm"} | score_bias(config)


def structure(config: Phi3SmallConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`: a text, and the weight it describes."""
    near = config.blocksparse_block_size * config.blocksparse_num_local_blocks
    sparse = f", block_sparse={near} near, 1 in {config.blocksparse_vert_stride} blocks)"
    attention = llama.attention_text(config, layer)
    return [
        (f"(input_layernorm): {norm_text(config)}", "input_layernorm"),
        (f"(self_attn): {attention.removesuffix(')') + sparse if config.is_sparse(layer) else attention}", ""),
        ("  (qkv_proj): Linear", "qkv_proj"),
        (f"  (rotary_emb): {llama.rope_text(config)}", ""),
        ("  (o_proj): Linear", "o_proj"),
        (f"(post_attention_layernorm): {norm_text(config)}", "post_attention_layernorm"),
        ("(mlp): GeGELU", ""),
        ("  (up_proj): Linear", "up_proj"),
        (f"  (activation_fn): GeGELU(limit={config.gegelu_limit:g})", ""),
        ("  (down_proj): Linear", "down_proj"),
    ]


def work(config: Phi3SmallConfig, layer: int, weights: Phi3SmallBlockWeights, T: int, S: int) -> list[Work]:
    """The cost of each part of a block, in order of execution."""
    norm = layer_norm_flops(T, config.hidden_size)
    qkv, rope, scores, *rest = attention_work(config, weights, T, S)
    scaled = T * config.num_attention_heads * config.head_dim
    return [
        Work("input_layernorm", norm, ["input_layernorm", "input_layernorm_bias"]),
        *(qkv, rope, scores._replace(flops=scores.flops + scaled), *rest),
        Work("post_attention_layernorm", norm, ["post_attention_layernorm", "post_attention_layernorm_bias"]),
        linear_work("up_proj", weights, T),
        Work("GeGELU", 6 * T * config.intermediate_size),
        linear_work("down_proj", weights, T),
        Work("residual", 2 * T * config.hidden_size),
    ]


NAMES = {
    **{name: llama.NAMES[name] for name in ("embed_tokens", "lm_head", "score", "input_layernorm", "down_proj")},
    "norm": "model.final_layernorm",
    "qkv_proj": "model.layers.*.self_attn.query_key_value",
    "o_proj": "model.layers.*.self_attn.dense",
    "post_attention_layernorm": llama.NAMES["post_attention_layernorm"],
    "up_proj": "model.layers.*.mlp.up_proj",
}
PARTS = (
    llama.PARTS
    | layer_normed.PARTS
    | {
        "embedding": llama.PARTS["embedding"]._replace(
            description="each id's row, times a number", function=scaled_embed
        ),
        **moved(queries_keys_values, "attention.q", "attention.k", "attention.v"),
        **moved(self_attention, "attention.output"),
        **moved(feedforward, "feedforward.gate", "feedforward.up", "feedforward.output"),
        "feedforward.activation": Tapped("GeGELU: gelu(gate) · (up + 1)", "T F", bounded_glu, "", "3-30"),
        **moved(lm_head, "logits"),
    }
)

PHI3SMALL = LLAMA._replace(
    title="Phi-3-small",
    model_types=["phi3small"],
    lm_class="Phi3SmallForCausalLM",
    read_config=read_config,
    harmless=HARMLESS,
    names=NAMES,
    shapes=shapes,
    biases=biases,
    block_weights=Phi3SmallBlockWeights,
    transform=transform,
    block=layer_normed.block,
    final_norm=layer_normed.final_norm,
    final_norm_of_parts=layer_normed.final_norm_of_parts,
    structure=structure,
    norm_text=norm_text,
    parts=PARTS,
    work=work,
    norm_flops=layer_normed.norm_flops,
    traced={},
    lm_head=lm_head,
    outside_flops=lambda config: (config.hidden_size, config.vocab_size),
    full_scores=True,
    masks_by_order=True,
    gguf=None,
    classifiers=["sequence"],
    checked=["its own loop reference"],
)
