"""Mixtral: Mistral with eight feedforward networks in each block, of which every token passes through two.

It has 47 billion parameters and uses 13 billion per token.

Source: Jiang et al. 2024, "Mixtral of experts"; https://huggingface.co/docs/transformers/model_doc/mixtral
"""

from functools import partial
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array, Float, Weight
from ..text.brief import brief
from . import common, experts, llama
from .experts import ExpertsConfig, ExpertWeights, block_with_experts
from .family import Gguf, Rows, Work
from .keys import Keys
from .llama import LLAMA
from .work import attention_work, rms_norm_flops


class MixtralBlockWeights(NamedTuple):
    """The weights of one block: Llama's, with a router and experts in place of one network."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    router: Weight  # [E, D]
    experts: tuple[ExpertWeights, ...]  # E of them
    qkv_proj_bias: None = None  # `self_attention` adds them where a family has them
    o_proj_bias: None = None

    def __repr__(self) -> str:
        return brief(self)


transform = partial(model.transform, block=block_with_experts)


def read_config(keys: Keys) -> ExpertsConfig:
    """Mixtral's config.json. The shares of a token's experts always sum to 1."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys, kv_heads=8)
    layers, window = sizes["num_hidden_layers"], keys.optional("sliding_window")
    return ExpertsConfig(
        family="mixtral",
        **sizes,
        **common.rope(keys, sizes["head_dim"], theta=1e6),
        **common.head(keys),
        **experts.read_experts(keys, layers, ["num_local_experts", "num_experts"], experts=8, chosen=2),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        sliding_window=window,
        layer_types=common.same_window(keys, layers, window),
    )


def shapes(config: ExpertsConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    dense = {name: rows for name, rows in llama.shapes(config).items() if name not in DENSE}
    return dense | experts.expert_shapes(config)


def structure(config: ExpertsConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = llama.structure(config, layer)
    return rows[: rows.index(("(mlp): SwiGLU", ""))] + experts.expert_structure(config)


def work(config: ExpertsConfig, layer: int, weights: Any, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    norm = rms_norm_flops(T, config.hidden_size)
    return [
        Work("input_layernorm", norm, ["input_layernorm"]),
        *attention_work(config, weights, T, S),
        Work("post_attention_layernorm", norm, ["post_attention_layernorm"]),
        *experts.expert_work(config, weights, T),
        Work("residual", 2 * T * config.hidden_size),
    ]


DENSE = ("gate_up_proj", "down_proj")  # the weights of a network that all tokens pass through
NAMES = {name: theirs for name, theirs in llama.NAMES.items() if name not in DENSE} | {
    "router": "model.layers.*.block_sparse_moe.gate",
    "experts.gate_up_proj": "model.layers.*.block_sparse_moe.experts.#.w1 model.layers.*.block_sparse_moe.experts.#.w3",
    "experts.down_proj": "model.layers.*.block_sparse_moe.experts.#.w2",
}
GGUF_NAMES = {name: theirs for name, theirs in llama.GGUF_NAMES.items() if name not in DENSE} | {
    "router": "blk.*.ffn_gate_inp",
    # one tensor of all experts; in files of 2023 one for each
    "experts.gate_up_proj": "blk.*.ffn_gate_exps.# blk.*.ffn_up_exps.# | blk.*.ffn_gate.# blk.*.ffn_up.#",
    "experts.down_proj": "blk.*.ffn_down_exps.# | blk.*.ffn_down.#",
}

MIXTRAL = LLAMA._replace(
    title="Mixtral",
    model_types=["mixtral"],
    lm_class="MixtralForCausalLM",
    read_config=read_config,
    # transformers' Mixtral has no biases. The rest is for training.
    harmless=["attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers", *experts.HARMLESS],
    names=NAMES,
    shapes=shapes,
    biases=llama.score_bias,
    block_weights=MixtralBlockWeights,
    transform=transform,
    block=block_with_experts,
    structure=structure,
    parts=experts.PARTS,
    work=work,
    traced=experts.TRACED,
    gguf=Gguf("llama", llama.gguf_keys, GGUF_NAMES, interleaved=["qkv_proj"], checked="llama.cpp"),
)
