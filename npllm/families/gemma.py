"""Gemma: Llama with norms that multiply by 1 + w, a network gated by GELU, and embeddings scaled by sqrt(D).

The weights of its norms are distances from 1, so that weight decay pulls the norms to 1 and not to 0. What Gemma 2 and
3 share with it is here, too: the pass, the norm, the network.

Source: Gemma Team 2024, "Gemma: Open models based on Gemini research and technology"; Shazeer 2020, "GLU variants
improve Transformer" (GeGLU); https://huggingface.co/docs/transformers/model_doc/gemma
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import block as chapter
from .. import model
from ..arrays import Array, Float, Int, Weight
from ..config import Config
from ..embedding import embed
from ..feedforward import gelu
from ..linear import linear
from ..norm import rms_norm
from ..shapes import BlockLike, Weights
from ..tap import Tap, untapped
from . import common, llama, metadata
from .activations import ACTIVATIONS, FLOPS
from .family import Gguf, Tapped, Work
from .fixed_norm import rms_norm_of_parts
from .keys import Keys
from .llama import LLAMA
from .metadata import Metadata
from .work import attention_work, linear_work, rms_norm_flops


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """Gemma's configuration: the common one, and what Gemma 2 and 3 add to it."""

    query_pre_attn_scalar: float = 1.0  # the scores are divided by its square root
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None


def scaled_embed(ids: Int[Array, "... T"], embed_tokens: Weight) -> Float[Array, "... T D"]:
    """The embedding vectors times sqrt(D), which gives them the length of what the layers add.

    The factor is not rounded. transformers rounds it to the dtype of the embeddings: sqrt(3072) is 55.5 in bfloat16.
    """
    return embed(ids, embed_tokens) * math.sqrt(embed_tokens.shape[1])


def norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """RMSNorm times 1 + weight."""
    return rms_norm(x, 1.0 + weight, eps)


def geglu(gate: Float[Array, "... F"], up: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """gelu(gate) · up, with the tanh approximation, whatever the first files say ("gelu")."""
    return gelu(gate) * up


def feedforward(x: Float[Array, "... T D"], weights: BlockLike, *, tap: Tap = untapped) -> Float[Array, "... T D"]:
    """The chapter's network with GeGLU in place of SwiGLU, and without biases."""
    gate_up = linear(x, weights.gate_up_proj)
    width = gate_up.shape[-1] // 2
    gate, up = tap("gate", gate_up[..., :width]), tap("up", gate_up[..., width:])
    return tap("output", linear(tap("activation", geglu(gate, up)), weights.down_proj))


block = partial(chapter.block, feedforward=feedforward, norm=norm)
transform = partial(model.transform, block=block, embed=scaled_embed, norm=norm)


def final_norm(x: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T D"]:
    """The norm between the last block and the head."""
    return norm(x, weights.norm, config.rms_norm_eps)


def final_norm_of_parts(
    parts: Float[Array, "P D"], x: Float[Array, " D"], weights: Weights, config: Config
) -> Float[Array, "P D"]:
    """The share of each part of x in the final norm of x."""
    return rms_norm_of_parts(parts, x, 1.0 + weights.norm, config.rms_norm_eps)


TANH = [name for name, function in ACTIVATIONS.items() if function is gelu]
ALLOWED = common.ALLOWED | {"use_bidirectional_attention": (False, None)}


def read_config(keys: Keys) -> GemmaConfig:
    """Gemma's config.json. In its first files `hidden_act` is "gelu", and means the tanh approximation."""
    keys.allow_only(ALLOWED | {"hidden_act": ("gelu", *TANH), "hidden_activation": (None, "gelu", *TANH)})
    sizes = common.sizes(keys, kv_heads=16, head_dim=256)
    common.refuse_window(keys, sizes["max_position_embeddings"])
    return GemmaConfig(
        family="gemma",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys, tied=True, pad_token_id=0),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        layer_types=common.all_full(sizes["num_hidden_layers"]),
        attention_bias=keys.boolean("attention_bias"),
    )


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "gemma"; "gemma2" and "gemma3" add to them."""
    return metadata.decoder(m, "gemma") | dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")


def norm_flops(config: Config, T: int) -> int:
    """The FLOPs of a norm over the width of the model, such as the final one: RMSNorm's, and 1 + w."""
    return rms_norm_flops(T, config.hidden_size) + config.hidden_size


def feedforward_work(config: Config, weights: BlockLike, T: int) -> list[Work]:
    """What the network costs."""
    geglu_flops = (FLOPS[gelu] + 1) * T * config.intermediate_size
    return [
        linear_work("gate_up_proj", weights, T),
        Work("GeGLU", geglu_flops),
        linear_work("down_proj", weights, T),
    ]


def work(config: Config, layer: int, weights: BlockLike, T: int, S: int) -> list[Work]:
    """What the parts of a block cost, in the order of execution."""
    return [
        Work("input_layernorm", norm_flops(config, T), ["input_layernorm"]),
        *attention_work(config, weights, T, S),
        Work("post_attention_layernorm", norm_flops(config, T), ["post_attention_layernorm"]),
        *feedforward_work(config, weights, T),
        Work("residual", 2 * T * config.hidden_size),
    ]


def structure(config: Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    words = (("SwiGLU", "GeGLU"), ("SiLU", "GELU"), ("RMSNorm", "GemmaRMSNorm"))
    rows = llama.structure(config, layer)
    for theirs, ours in words:
        rows = [(text.replace(theirs, ours), weight) for text, weight in rows]
    return rows


def norm_text(config: Config) -> str:
    """A norm, for `npllm show`."""
    return f"Gemma{llama.rms_norm_text(config)}"


EMBEDDING = Tapped("each id's row of the embedding matrix, times sqrt(D)", "T D", scaled_embed, "", "3-5")
NORMED = Tapped("each vector scaled to the same length", "T D", norm, "", "3-30")
NETWORK = {
    "feedforward.gate": llama.PARTS["feedforward.gate"]._replace(function=feedforward),
    "feedforward.up": llama.PARTS["feedforward.up"]._replace(function=feedforward),
    "feedforward.activation": Tapped("GeGLU: gelu(gate) · up", "T F", geglu, "", "3-30"),
    "feedforward.output": llama.PARTS["feedforward.output"]._replace(function=feedforward),
}
PARTS = (
    llama.PARTS
    | dict.fromkeys(("input_layernorm", "post_attention_layernorm", "norm"), NORMED)
    | NETWORK
    | {"embedding": EMBEDDING}
)

GEMMA = LLAMA._replace(
    title="Gemma",
    model_types=["gemma"],
    lm_class="GemmaForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias", "use_sliding_window", "max_window_layers", "cache_implementation"],
    transform=transform,
    block=block,
    final_norm=final_norm,
    final_norm_of_parts=final_norm_of_parts,
    structure=structure,
    norm_text=norm_text,
    parts=PARTS,
    work=work,
    norm_flops=norm_flops,
    outside_flops=lambda config: (config.hidden_size, 0),
    gguf=Gguf(
        "gemma",
        gguf_keys,
        llama.GGUF_NAMES,
        plus_one=["norm", "input_layernorm", "post_attention_layernorm"],
        checked="llama.cpp",
    ),
)
