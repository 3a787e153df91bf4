"""GPT-2: absolute positions, LayerNorm, GELU and biases everywhere; the predecessor of the modern block.

Its checkpoints predate the conventions of the other families. Keys and tensors have different names; the prefix
`transformer.` is optional; the matrices are stored as [in, out]; and the causal mask is stored with the weights.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; Hendrycks and Gimpel 2016,
"Gaussian error linear units"; https://huggingface.co/openai-community/gpt2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from ..arrays import Array, Bool, Float, Int, array_namespace
from ..attention import attention
from ..block import self_attention
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..feedforward import gelu, plain_feedforward
from ..masks import decoder_mask
from ..norm import layer_norm
from ..shapes import GPT2BlockWeights, Weights
from ..tap import Tap, under, untapped
from . import common, llama
from .activations import ACTIVATIONS, FLOPS
from .family import Family, Gguf, Rows, Tapped, Work
from .keys import Keys
from .layer_normed import final_norm_of_parts, norm_flops
from .llama import PARTS, attention_text, moved, score_bias
from .metadata import Metadata, end_ids, vocab_size
from .work import attention_work, linear_work


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """GPT-2's configuration: the common one and an activation function."""

    activation_function: str = "gelu_new"


def gpt2_block(
    x: Float[Array, "... T D"],
    weights: GPT2BlockWeights,
    config: GPT2Config,
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """GPT-2's block: pre-norm like the modern block, but with LayerNorm, GELU and biases, and without RoPE.

    Its norms are called `ln_1` and `ln_2` in the files; their taps have the names of the modern block. Parameters as in
    `npllm.block.block`.
    """
    eps, inside = config.layer_norm_epsilon, under(tap, "attention")
    normed = tap("input_layernorm", layer_norm(x, weights.ln_1, weights.ln_1_bias, eps))
    y = self_attention(normed, weights, config, None, None, visible, cache, layer, attention=attention, tap=inside)
    x = tap("residual_after_attention", x + y)
    normed = tap("post_attention_layernorm", layer_norm(x, weights.ln_2, weights.ln_2_bias, eps))
    activation = ACTIVATIONS[config.activation_function]
    y = plain_feedforward(normed, weights, activation, tap=under(tap, "feedforward"))
    return tap("residual_after_feedforward", x + y)


def gpt2_transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    *,
    positions: Int[Array, "... T"] | None = None,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    total_length: int | None = None,
    block: Callable[..., Float[Array, "... T D"]] = gpt2_block,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
    final_norm: bool = True,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The forward pass with absolute positions: the position vectors are added to the embeddings, once, at the start.

    Parameters as in `npllm.model.transform`; `positions` are rows of `weights.embed_positions`, which limits them.
    `total_length` has no effect. With sinusoidal rows in that table, `block=original_block` and `final_norm=False` (its
    blocks end with a norm) this is the stack of 2017, if the embeddings are multiplied by sqrt(D) beforehand.

    The taps are "embedding", "position_embedding", "residual_after_embedding" (their sum), those of the blocks, and
    "norm". The blocks have no "q_rotated", "k_rotated" or "feedforward.gate".
    """
    xp = array_namespace(ids)
    past, new = (0 if cache is None else cache["length"]), ids.shape[-1]
    if positions is None:
        positions = xp.arange(past, past + new, device=device(ids))
    if visible is None:
        visible = decoder_mask(past, new, None, ids)
    masks = visible if isinstance(visible, Sequence) else [visible] * config.num_hidden_layers

    x = tap("embedding", embed(ids, weights.embed_tokens))
    place = tap("position_embedding", embed(positions, weights.embed_positions))
    x = tap("residual_after_embedding", x + place)
    for layer, block_weights in enumerate(weights.layers):
        inside = under(tap, f"layers.{layer}")
        x = block(x, block_weights, config, masks[layer], cache, layer, attention=attention, tap=inside)
    if cache is not None:
        cache["length"] = past + new
    if final_norm:
        x = tap("norm", final_layer_norm(x, weights, config))
    return x, cache


def final_layer_norm(x: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T D"]:
    """The norm between the last block and the head."""
    return layer_norm(x, weights.norm, weights.norm_bias, config.layer_norm_epsilon)


# Our name of a weight, and its names in a file; * is the layer's index.
NAMES = {
    "embed_tokens": "wte | transformer.wte",
    "embed_positions": "wpe | transformer.wpe",
    "norm": "ln_f | transformer.ln_f",
    "lm_head": "lm_head",
    "score": "score | classifier",
    "ln_1": "h.*.ln_1 | transformer.h.*.ln_1",
    "qkv_proj": "h.*.attn.c_attn | transformer.h.*.attn.c_attn",
    "o_proj": "h.*.attn.c_proj | transformer.h.*.attn.c_proj",
    "ln_2": "h.*.ln_2 | transformer.h.*.ln_2",
    "c_fc": "h.*.mlp.c_fc | transformer.h.*.mlp.c_fc",
    "c_proj": "h.*.mlp.c_proj | transformer.h.*.mlp.c_proj",
}
GGUF_NAMES = {name: llama.GGUF_NAMES[name] for name in ("embed_tokens", "norm", "lm_head", "o_proj")} | {
    "embed_positions": "position_embd",
    "ln_1": "blk.*.attn_norm",
    "qkv_proj": "blk.*.attn_qkv",
    "ln_2": "blk.*.ffn_norm",
    "c_fc": "blk.*.ffn_up",
    "c_proj": "blk.*.ffn_down",
}
# config.json's names for the common keys; it may also use the common names.
KEYS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
ALLOWED = common.ALLOWED | {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}
DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
# Keys of other families, which GPT-2 does not read.
OTHER_FAMILIES: tuple[str, ...] = ("num_key_value_heads", "head_dim", "hidden_act", "attention_bias", "mlp_bias")
OTHER_FAMILIES += ("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
OTHER_FAMILIES += ("use_sliding_window",)
SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")


def read_config(keys: Keys) -> GPT2Config:
    """GPT-2's config.json.

    `reorder_and_upcast_attn` is harmless: it means attention in float32, which is always the case here.
    """
    keys.mark_read(*KEYS, *KEYS.values())
    # The common spellings take precedence where a file has them.
    keys.names.update({key: own for key, own in KEYS.items() if key not in keys.values})
    keys.allow_only(ALLOWED)
    common.refuse_window(keys, keys.integer("max_position_embeddings"))
    layers, heads, hidden = (keys.integer(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if hidden % heads:
        raise keys.refusal(
            "hidden_size", f"a multiple of {keys.names.get('num_attention_heads', 'num_attention_heads')}, {heads}"
        )
    return GPT2Config(
        family="gpt2",
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size", default=4 * hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=keys.integer("max_position_embeddings"),
        **common.head(keys, tied=True),
        layer_norm_epsilon=keys.number("layer_norm_epsilon", 1e-5),
        layer_types=common.all_full(layers),
        attention_bias=True,
        mlp_bias=True,
        activation_function=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
    )


def shapes(config: Config) -> dict[str, Rows]:
    """The rows and columns of each weight."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    return {
        "embed_tokens": ([V], D),
        "embed_positions": ([config.max_position_embeddings], D),
        "norm": ([D], None),
        **({"score": ([len(config.id2label)], D)} if config.id2label else {"lm_head": ([V], D)}),
        "ln_1": ([D], None),
        "qkv_proj": ([3 * D], D),
        "o_proj": ([D], D),
        "ln_2": ([D], None),
        "c_fc": ([F], D),
        "c_proj": ([D], F),
    }


def biases(config: Config) -> set[str]:
    """The weights with a bias: all in the blocks, the final norm, and the head of a token classifier."""
    return {"norm", "ln_1", "qkv_proj", "o_proj", "ln_2", "c_fc", "c_proj"} | score_bias(config)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "gpt2"; llama.cpp's GELU is the one by tanh."""
    if m.get("attention.head_count_kv", m.get("attention.head_count")) != m.get("attention.head_count"):
        raise m.refusal("attention.head_count_kv", "that of all heads")
    return {
        "model_type": "gpt2",
        "vocab_size": vocab_size(m),
        "n_embd": m.get("embedding_length"),
        "n_inner": m.get("feed_forward_length"),
        "n_layer": m.get("block_count"),
        "n_head": m.get("attention.head_count"),
        "n_positions": m.get("context_length"),
        "layer_norm_epsilon": m.required("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": "output.weight" not in m.tensors,
        "eos_token_id": end_ids(m),
    }


def layer_norm_text(config: Config) -> str:
    """A norm, for `npllm show`."""
    return f"LayerNorm({config.hidden_size}, eps={config.layer_norm_epsilon:g})"


def structure(config: GPT2Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`: a text, and the weight it describes."""
    activation = config.activation_function
    return [
        (f"(ln_1): {layer_norm_text(config)}", "ln_1"),
        (f"(self_attn): {attention_text(config, layer)}", ""),
        ("  (qkv_proj): Linear", "qkv_proj"),
        ("  (o_proj): Linear", "o_proj"),
        (f"(ln_2): {layer_norm_text(config)}", "ln_2"),
        ("(mlp): MLP", ""),
        ("  (c_fc): Linear", "c_fc"),
        (f"  (activation_fn): {'GELU(tanh)' if ACTIVATIONS[activation] is gelu else activation}", ""),
        ("  (c_proj): Linear", "c_proj"),
    ]


def work(config: GPT2Config, layer: int, weights: GPT2BlockWeights, T: int, S: int) -> list[Work]:
    """The cost of each part of a block, in order of execution."""
    norm, activation = norm_flops(config, T), ACTIVATIONS[config.activation_function]
    return [
        Work("ln_1", norm, ["ln_1", "ln_1_bias"]),
        *attention_work(config, weights, T, S, rotated=False),
        Work("ln_2", norm, ["ln_2", "ln_2_bias"]),
        linear_work("c_fc", weights, T),
        Work("GELU", FLOPS[activation] * T * config.intermediate_size),
        linear_work("c_proj", weights, T),
        Work("residual", 2 * T * config.hidden_size),
    ]


ADDED, POSITIONS = 'tap("residual_after_embedding"', 'tap("position_embedding"'
GPT2_PARTS = {name: part for name, part in PARTS.items() if not name.endswith(("_rotated", ".gate"))} | {
    "position_embedding": Tapped("each position's row of its table", "T D", gpt2_transform, POSITIONS, "3-32"),
    "residual_after_embedding": Tapped("their sum", "T D", gpt2_transform, ADDED, "3-29"),
    **moved(layer_norm, "input_layernorm", "post_attention_layernorm", "norm", figures="3-29"),
    **moved(gpt2_block, "residual_after_attention", "residual_after_feedforward", figures="3-29"),
    **moved(plain_feedforward, "feedforward.up", "feedforward.output"),
    "feedforward.activation": Tapped("the activation function", "T F", plain_feedforward, 'tap("output"', "3-29"),
}
TRACED = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "residual_after_embedding": "transformer.drop",
    "layers.*.input_layernorm": "transformer.h.*.ln_1",
    **{f"layers.*.attention.{name}": "transformer.h.*.attn.c_attn" for name in "qkv"},
    "layers.*.attention.output": "transformer.h.*.attn.c_proj",
    "layers.*.residual_after_attention": ">transformer.h.*.ln_2",
    "layers.*.post_attention_layernorm": "transformer.h.*.ln_2",
    "layers.*.feedforward.up": "transformer.h.*.mlp.c_fc",
    "layers.*.feedforward.activation": ">transformer.h.*.mlp.c_proj",
    "layers.*.feedforward.output": "transformer.h.*.mlp",
    "layers.*.residual_after_feedforward": "transformer.h.*",
    "norm": "transformer.ln_f",
    "logits": "lm_head",
}

GPT2 = Family(
    title="GPT-2",
    model_types=["gpt2"],
    lm_class="GPT2LMHeadModel",
    read_config=read_config,
    harmless=["n_ctx", "reorder_and_upcast_attn", *DROPOUT, *SUMMARY, *OTHER_FAMILIES],
    names=NAMES,
    shapes=shapes,
    biases=biases,
    block_weights=GPT2BlockWeights,
    transform=gpt2_transform,
    block=gpt2_block,
    final_norm=final_layer_norm,
    final_norm_of_parts=final_norm_of_parts,
    structure=structure,
    norm_text=layer_norm_text,
    parts=GPT2_PARTS,
    work=work,
    norm_flops=norm_flops,
    traced=TRACED,
    transposed=["qkv_proj", "o_proj", "c_fc", "c_proj"],
    gguf=Gguf("gpt2", gguf_keys, GGUF_NAMES, checked="llama.cpp"),
    not_needed=(".attn.bias", ".attn.masked_bias"),  # the causal mask, and the value it gave hidden scores
)
