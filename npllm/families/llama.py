"""Llama 1 to 3: RMSNorm before each layer, RoPE, SwiGLU and, since Llama 2, grouped-query attention.

The block and the pass are those of block.py and model.py. Unlike Phi-3's, its files store the projections separately.
Its descendants share its names, shapes and descriptions.

Source: Touvron et al. 2023, "LLaMA" and "Llama 2"; Llama Team 2024, "The Llama 3 herd of models";
https://huggingface.co/docs/transformers/model_doc/llama
"""

from collections.abc import Callable
from typing import Any

from ..arrays import Array, Float
from ..attention import attention_weights, combine, queries_keys_values, relevance_scores
from ..block import block, self_attention
from ..config import Config
from ..embedding import embed
from ..feedforward import feedforward, swiglu
from ..heads import lm_head
from ..model import transform
from ..norm import rms_norm
from ..rope import apply_rope
from ..shapes import BlockLike, BlockWeights, Weights
from . import common, metadata
from .family import Family, Gguf, Rows, Tapped, Work
from .fixed_norm import rms_norm_of_parts
from .keys import Keys
from .metadata import Metadata
from .work import attention_work, linear_work, rms_norm_flops

# Our name of a weight, and its names in a file: the separate parts, in row order | the fused tensor. * is the layer's
# index.
NAMES = {
    "embed_tokens": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "score": "score",
    "input_layernorm": "model.layers.*.input_layernorm",
    "qkv_proj": "model.layers.*.self_attn.q_proj model.layers.*.self_attn.k_proj model.layers.*.self_attn.v_proj"
    " | model.layers.*.self_attn.qkv_proj",
    "o_proj": "model.layers.*.self_attn.o_proj",
    "post_attention_layernorm": "model.layers.*.post_attention_layernorm",
    "gate_up_proj": "model.layers.*.mlp.gate_proj model.layers.*.mlp.up_proj | model.layers.*.mlp.gate_up_proj",
    "down_proj": "model.layers.*.mlp.down_proj",
}
GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "blk.*.attn_norm",
    "qkv_proj": "blk.*.attn_q blk.*.attn_k blk.*.attn_v | blk.*.attn_qkv",
    "o_proj": "blk.*.attn_output",
    "post_attention_layernorm": "blk.*.ffn_norm",
    "gate_up_proj": "blk.*.ffn_gate blk.*.ffn_up | blk.*.ffn_up",
    "down_proj": "blk.*.ffn_down",
}
# RoPE's frequencies: in older Llama files, and in Llama 3's .gguf files (checkpoint/gguf_config.py reads those).
NOT_NEEDED = (".rotary_emb.inv_freq", "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

ALLOWED = common.ALLOWED | {"hidden_act": ("silu", "swish")}


def read_config(keys: Keys) -> Config:
    """Llama's config.json."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys)
    common.refuse_window(keys, sizes["max_position_embeddings"])
    return Config(
        family="llama",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        layer_types=common.all_full(sizes["num_hidden_layers"]),
        attention_bias=keys.boolean("attention_bias"),
        mlp_bias=keys.boolean("mlp_bias"),
    )


def shapes(config: Config) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and the columns."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    return {
        "embed_tokens": ([V], D),
        "norm": ([D], None),
        **({"score": ([len(config.id2label)], D)} if config.id2label else {"lm_head": ([V], D)}),
        "input_layernorm": ([D], None),
        "qkv_proj": ([N * H, K * H, K * H], D),
        "o_proj": ([D], N * H),
        "post_attention_layernorm": ([D], None),
        "gate_up_proj": ([F, F], D),
        "down_proj": ([D], F),
    }


def biases(config: Config) -> set[str]:
    """The weights with a bias: those in the config, and the head of a token classifier."""
    attention = {"qkv_proj", "o_proj"} if config.attention_bias else set()
    feedforward = {"gate_up_proj", "down_proj"} if config.mlp_bias else set()
    return attention | feedforward | score_bias(config)


def score_bias(config: Config) -> set[str]:
    """{"score"} if the classification head has a bias: a token classifier has one, a text classifier none."""
    return {"score"} if any(name.endswith("ForTokenClassification") for name in config.architectures) else set()


def final_norm(x: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T D"]:
    """The norm between the last block and the head."""
    return rms_norm(x, weights.norm, config.rms_norm_eps)


def final_norm_of_parts(
    parts: Float[Array, "P D"], x: Float[Array, " D"], weights: Weights, config: Config
) -> Float[Array, "P D"]:
    """The share of each part of x in the final norm of x."""
    return rms_norm_of_parts(parts, x, weights.norm, config.rms_norm_eps)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "llama", which Mistral's files also have, with a sliding window, and Mixtral's."""
    window = m.get("attention.sliding_window", 0)
    if m.get("expert_count", 0):
        return metadata.decoder(m, "mixtral") | {"sliding_window": window or None} | metadata.experts(m)
    keys = metadata.decoder(m, "mistral" if window else "llama")
    return keys | ({"sliding_window": window} if window else {})


def rms_norm_text(config: Config) -> str:
    """A norm, for `npllm show`."""
    return f"RMSNorm({config.hidden_size}, eps={config.rms_norm_eps:g})"


def attention_text(config: Config, layer: int) -> str:
    """An attention layer, for `npllm show`."""
    window = config.window(layer)
    heads = f"heads={config.num_attention_heads}, kv_heads={config.num_key_value_heads}, head_dim={config.head_dim}"
    return f"Attention({heads}{f', sliding_window={window}' if window else ''})"


def rope_text(config: Config) -> str:
    """RoPE, for `npllm show`."""
    scaling = f", {config.rope_scaling.kind}" if config.rope_scaling else ""
    return f"RotaryEmbedding(dim={config.rotary_dim}, theta={config.rope_theta:g}{scaling})"


def structure(config: Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`: a text, and the weight it describes."""
    return [
        (f"(input_layernorm): {rms_norm_text(config)}", "input_layernorm"),
        (f"(self_attn): {attention_text(config, layer)}", ""),
        ("  (qkv_proj): Linear", "qkv_proj"),
        (f"  (rotary_emb): {rope_text(config)}", ""),
        ("  (o_proj): Linear", "o_proj"),
        (f"(post_attention_layernorm): {rms_norm_text(config)}", "post_attention_layernorm"),
        ("(mlp): SwiGLU", ""),
        ("  (gate_up_proj): Linear", "gate_up_proj"),
        ("  (activation_fn): SiLU()", ""),
        ("  (down_proj): Linear", "down_proj"),
    ]


def work(config: Config, layer: int, weights: BlockLike, T: int, S: int) -> list[Work]:
    """The cost of each part of a block, in order of execution."""
    norm = rms_norm_flops(T, config.hidden_size)
    return [
        Work("input_layernorm", norm, ["input_layernorm"]),
        *attention_work(config, weights, T, S),
        Work("post_attention_layernorm", norm, ["post_attention_layernorm"]),
        linear_work("gate_up_proj", weights, T),
        Work("SwiGLU", 4 * T * config.intermediate_size),
        linear_work("down_proj", weights, T),
        Work("residual", 2 * T * config.hidden_size),
    ]


def norm_flops(config: Config, T: int) -> int:
    """The FLOPs of the final norm."""
    return rms_norm_flops(T, config.hidden_size)


AFTER_ATTENTION, AFTER_FEEDFORWARD = 'tap("residual_after_attention"', 'tap("residual_after_feedforward"'
PARTS = {
    "embedding": Tapped("each id's row of the embedding matrix", "T D", embed, "", "3-5"),
    "input_layernorm": Tapped("each vector scaled to the same length", "T D", rms_norm, "", "3-30"),
    "attention.q": Tapped("queries: what each token looks for", "N T H", queries_keys_values, "    q = ", "3-18, 3-19"),
    "attention.k": Tapped("keys: what each token offers", "K T H", queries_keys_values, "    k = ", "3-18, 3-19"),
    "attention.v": Tapped("values: what each token says", "K T H", queries_keys_values, "    v = ", "3-18, 3-19"),
    "attention.q_rotated": Tapped("RoPE: rotated by position", "N T H", apply_rope, "", "3-32, 3-33"),
    "attention.k_rotated": Tapped("RoPE: rotated by position", "K T H", apply_rope, "", "3-32, 3-33"),
    "attention.scores": Tapped("relevance: each query with each key", "N T S", relevance_scores, "", "3-20"),
    "attention.weights": Tapped("softmax: shares that sum to 1", "N T S", attention_weights, "", "3-20"),
    "attention.mixed": Tapped("the values, weighted and summed", "N T H", combine, "", "3-21"),
    "attention.output": Tapped("all heads combined, back to D", "T D", self_attention, 'tap("output"', "3-17"),
    "residual_after_attention": Tapped("added to the residual stream", "T D", block, AFTER_ATTENTION, "3-30"),
    "post_attention_layernorm": Tapped("each vector scaled to the same length", "T D", rms_norm, "", "3-30"),
    "feedforward.gate": Tapped("how much of each element passes", "T F", feedforward, 'tap("gate"', "3-13"),
    "feedforward.up": Tapped("up to F dimensions", "T F", feedforward, 'tap("up"', "3-13"),
    "feedforward.activation": Tapped("SwiGLU: silu(gate) · up", "T F", swiglu, "", "3-30"),
    "feedforward.output": Tapped("back down to D", "T D", feedforward, 'tap("output"', "3-13"),
    "residual_after_feedforward": Tapped("added to the residual stream", "T D", block, AFTER_FEEDFORWARD, "3-12, 3-30"),
    "norm": Tapped("each vector scaled to the same length", "T D", rms_norm, "", "3-30"),
    "logits": Tapped("a score for each token of the vocabulary", "T V", lm_head, "", "3-6"),
}


def moved(function: Callable[..., Any], *names: str, **changes: str) -> dict[str, Tapped]:
    """The descriptions of these values, computed by another function in lines like those of the chapter's."""
    return {name: PARTS[name]._replace(function=function, **changes) for name in names}


# The same values in transformers: the output of a module, or its input (>). tools/hf_trace.py reads it.
TRACED = {
    "embedding": "model.embed_tokens",
    "layers.*.input_layernorm": "model.layers.*.input_layernorm",
    "layers.*.attention.q": "model.layers.*.self_attn.q_proj",
    "layers.*.attention.k": "model.layers.*.self_attn.k_proj",
    "layers.*.attention.v": "model.layers.*.self_attn.v_proj",
    "layers.*.attention.output": "model.layers.*.self_attn.o_proj",
    "layers.*.residual_after_attention": ">model.layers.*.post_attention_layernorm",
    "layers.*.post_attention_layernorm": "model.layers.*.post_attention_layernorm",
    "layers.*.feedforward.gate": "model.layers.*.mlp.gate_proj",
    "layers.*.feedforward.up": "model.layers.*.mlp.up_proj",
    "layers.*.feedforward.activation": ">model.layers.*.mlp.down_proj",
    "layers.*.feedforward.output": "model.layers.*.mlp",
    "layers.*.residual_after_feedforward": "model.layers.*",
    "norm": "model.norm",
    "logits": "lm_head",
}

LLAMA = Family(
    title="Llama",
    model_types=["llama"],
    lm_class="LlamaForCausalLM",
    read_config=read_config,
    harmless=["rope_interleaved", "is_llama_config", "use_sliding_window", "max_window_layers"],
    names=NAMES,
    shapes=shapes,
    biases=biases,
    block_weights=BlockWeights,
    transform=transform,
    block=block,
    final_norm=final_norm,
    final_norm_of_parts=final_norm_of_parts,
    structure=structure,
    norm_text=rms_norm_text,
    parts=PARTS,
    work=work,
    norm_flops=norm_flops,
    traced=TRACED,
    not_needed=NOT_NEEDED,
    gguf=Gguf("llama", gguf_keys, GGUF_NAMES, interleaved=["qkv_proj"], checked="llama.cpp"),
)
