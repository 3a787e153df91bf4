"""OLMoE: Llama with experts, and with OLMo 2's QK-norm over the full width, all heads together.

Unlike in OLMo 2, the norms come before the layers. The shares of a token's eight experts do not sum to 1: they are
their probabilities among all 64.

Source: Muennighoff et al. 2024, "OLMoE"; https://huggingface.co/docs/transformers/model_doc/olmoe
"""

from functools import partial
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array, Float, Weight
from ..text.brief import brief
from . import common, experts, llama, metadata, mixtral, olmo2, qwen3
from .experts import ExpertsConfig, ExpertWeights, block_with_experts
from .family import Gguf, Rows, Work
from .keys import Keys
from .metadata import Metadata
from .qwen3_moe import QWEN3_MOE


class OlmoeBlockWeights(NamedTuple):
    """The weights of one block: Llama's and two norms, with a router and experts in place of one network."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    q_norm: Float[Array, " N*H"]
    k_norm: Float[Array, " K*H"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    router: Weight  # [E, D]
    experts: tuple[ExpertWeights, ...]  # E of them
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


block = partial(block_with_experts, self_attention=olmo2.self_attention)


transform = partial(model.transform, block=block)

# A limit on queries, keys and values, which the published models do not have.
ALLOWED = llama.ALLOWED | {"clip_qkv": (None,)}


def read_config(keys: Keys) -> ExpertsConfig:
    """OLMoE's config.json."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys)
    common.refuse_window(keys, sizes["max_position_embeddings"])
    layers = sizes["num_hidden_layers"]
    return ExpertsConfig(
        family="olmoe",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys, pad_token_id=1),
        **experts.read_experts(keys, layers, ["num_experts", "num_local_experts"], experts=64, chosen=8),
        norm_topk_prob=keys.boolean("norm_topk_prob"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        layer_types=common.all_full(layers),
        attention_bias=keys.boolean("attention_bias"),
    )


def shapes(config: ExpertsConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return mixtral.shapes(config) | {"q_norm": ([N * H], None), "k_norm": ([K * H], None)}


def structure(config: ExpertsConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    return qwen3.structure_with_norms(config, mixtral.structure(config, layer), whole=True)


def work(config: ExpertsConfig, layer: int, weights: OlmoeBlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    return qwen3.work_with_norms(config, mixtral.work(config, layer, weights, T, S), T, whole=True)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "olmoe". As in llama.cpp, the shares of a token's experts need not sum to 1."""
    return metadata.decoder(m, "olmoe") | metadata.experts(m) | {"norm_topk_prob": False}


OLMOE = QWEN3_MOE._replace(
    title="OLMoE",
    model_types=["olmoe"],
    lm_class="OlmoeForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias", "use_sliding_window", "max_window_layers", *experts.HARMLESS],
    shapes=shapes,
    block_weights=OlmoeBlockWeights,
    transform=transform,
    structure=structure,
    parts=experts.PARTS | {name: part for name, part in olmo2.PARTS.items() if name.startswith("attention.")},
    work=work,
    gguf=Gguf("olmoe", gguf_keys, mixtral.GGUF_NAMES | qwen3.GGUF_NORMS, checked="llama.cpp"),
    classifiers=[],
)
