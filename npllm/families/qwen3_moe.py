"""Qwen3-MoE: Qwen3 with experts, many and small: 128 in a block, of which every token passes through eight.

Source: Yang et al. 2025, "Qwen3 technical report"; Dai et al. 2024, "DeepSeekMoE" (many small experts);
https://huggingface.co/docs/transformers/model_doc/qwen3_moe
"""

from functools import partial
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array, Float, Weight
from ..text.brief import brief
from . import common, experts, llama, metadata, mixtral, qwen3
from .experts import ExpertsConfig, ExpertWeights, block_with_experts
from .family import Gguf, Rows, Work
from .keys import Keys
from .metadata import Metadata
from .mixtral import MIXTRAL


class Qwen3MoeBlockWeights(NamedTuple):
    """The weights of one block: Qwen3's, with a router and experts in place of one network."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    q_norm: Float[Array, " H"]  # the same for all heads
    k_norm: Float[Array, " H"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    router: Weight  # [E, D]
    experts: tuple[ExpertWeights, ...]  # E of them
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


block = partial(block_with_experts, self_attention=qwen3.self_attention)


transform = partial(model.transform, block=block)

# Refused: layers without experts. No published model has them.
ALLOWED = llama.ALLOWED | {"decoder_sparse_step": (1,), "mlp_only_layers": (None, [])}


def read_config(keys: Keys) -> ExpertsConfig:
    """Qwen3-MoE's config.json. A sliding window is in all layers, and off without `use_sliding_window`."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys, kv_heads=4) | {"intermediate_size": keys.integer("moe_intermediate_size", 768)}
    layers = sizes["num_hidden_layers"]
    keys.mark_read("sliding_window")  # read only if it is used
    window = keys.optional("sliding_window", absent=4096) if keys.boolean("use_sliding_window") else None
    return ExpertsConfig(
        family="qwen3_moe",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        **experts.read_experts(keys, layers, ["num_experts", "num_local_experts"], experts=128, chosen=8),
        norm_topk_prob=keys.boolean("norm_topk_prob"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        sliding_window=window,
        layer_types=common.same_window(keys, layers, window),
        attention_bias=keys.boolean("attention_bias"),
    )


def shapes(config: ExpertsConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    return mixtral.shapes(config) | {"q_norm": ([config.head_dim], None), "k_norm": ([config.head_dim], None)}


def structure(config: ExpertsConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    return qwen3.structure_with_norms(config, mixtral.structure(config, layer))


def work(config: ExpertsConfig, layer: int, weights: Qwen3MoeBlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    return qwen3.work_with_norms(config, mixtral.work(config, layer, weights, T, S), T)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "qwen3moe". As in llama.cpp, the shares of a token's experts sum to 1."""
    width = {"moe_intermediate_size": m.count("expert_feed_forward_length"), "norm_topk_prob": True}
    return metadata.decoder(m, "qwen3_moe") | metadata.experts(m) | width


OF_ATTENTION = ("attention.q_normed", "attention.k_normed", "attention.output")
EXPERT = "model.layers.*.mlp.experts.#"
EXPERT_NAMES = {
    "router": "model.layers.*.mlp.gate",
    "experts.gate_up_proj": f"{EXPERT}.gate_proj {EXPERT}.up_proj",
    "experts.down_proj": f"{EXPERT}.down_proj",
}
NAMES = {"q_norm": "model.layers.*.self_attn.q_norm", "k_norm": "model.layers.*.self_attn.k_norm"}
TRACED = {name: path for name, path in qwen3.QWEN3.traced.items() if name.endswith("_normed")}

QWEN3_MOE = MIXTRAL._replace(
    title="Qwen3-MoE",
    model_types=["qwen3_moe"],
    lm_class="Qwen3MoeForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias", "max_window_layers", *experts.HARMLESS],
    names=mixtral.NAMES | NAMES | EXPERT_NAMES,
    shapes=shapes,
    biases=llama.biases,
    block_weights=Qwen3MoeBlockWeights,
    transform=transform,
    structure=structure,
    parts=experts.PARTS | {name: qwen3.PARTS[name] for name in OF_ATTENTION},
    work=work,
    traced=experts.TRACED | TRACED,
    gguf=Gguf("qwen3moe", gguf_keys, mixtral.GGUF_NAMES | qwen3.GGUF_NORMS, checked="llama.cpp"),
)
