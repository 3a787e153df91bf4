"""Gemma 3: Gemma 2 with a norm on each head's queries and keys in place of the cap, and windows in five of six layers.

The layers with a window turn queries and keys faster than the others: they need only tell near tokens apart. Only the
others scale positions for long texts. The models that also read pictures are in gemma3_pictures.py.

Source: Gemma Team 2025, "Gemma 3 technical report"; https://huggingface.co/docs/transformers/model_doc/gemma3
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..arrays import Array, Float, Weight
from ..attention import attention
from ..config import Config
from ..tap import Tap, untapped
from ..text.brief import brief
from . import common, gemma, gemma2, local_rope, qwen3
from .family import Gguf, Rows, Work
from .gemma import GemmaConfig
from .gemma2 import GEMMA2, SANDWICH, cap_of, sandwich_work, scalar_of
from .granite import scaled_attention
from .keys import Keys
from .local_rope import LocalRopeConfig
from .metadata import Metadata
from .work import attention_work, rms_norm_flops


class Gemma3BlockWeights(NamedTuple):
    """The weights of one block, in the order in which it uses them."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    q_norm: Float[Array, " H"]  # the same for all heads
    k_norm: Float[Array, " H"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]  # here it does come after attention
    pre_feedforward_layernorm: Float[Array, " D"]
    gate_up_proj: Weight  # [2F, D]
    down_proj: Weight  # [D, F]
    post_feedforward_layernorm: Float[Array, " D"]
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


def self_attention(
    x: Float[Array, "... T D"],
    weights: Gemma3BlockWeights,
    config: GemmaConfig,
    *args: Any,  # those of the chapter's, from `cos` to `layer`
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """Qwen3's attention layer with norms that multiply by 1 + w, and scores q · k / sqrt(query_pre_attn_scalar)."""
    attention = partial(scaled_attention, scale=config.query_pre_attn_scalar**-0.5, attention=attention)
    weights = weights._replace(q_norm=1.0 + weights.q_norm, k_norm=1.0 + weights.k_norm)
    return qwen3.self_attention(x, weights, config, *args, attention=attention, tap=tap)


block = partial(gemma2.block, self_attention=self_attention)
transform = partial(local_rope.transform, block=block, embed=gemma.scaled_embed, norm=gemma.norm)


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(GemmaConfig, LocalRopeConfig):
    """Gemma 3's configuration."""


def read_config(keys: Keys) -> Gemma3Config:
    """Gemma 3's config.json. transformers ignores `attn_logit_softcapping` here: it must be null."""
    keys.allow_only(
        gemma.ALLOWED | dict.fromkeys(("attn_logit_softcapping", "original_max_position_embeddings"), (None,))
    )
    keys.allow_only({"hidden_activation": gemma.TANH})
    sizes = common.sizes(keys, kv_heads=4, head_dim=256)
    every = 6
    if keys.get("layer_types") is None:
        every = keys.integer("sliding_window_pattern", 6)
    keys.mark_read("sliding_window_pattern")
    return Gemma3Config(
        family="gemma3_text",
        **sizes,
        **rope(keys, sizes["head_dim"]),
        **common.head(keys, tied=True, pad_token_id=0),
        **gemma2.windowed(keys, sizes["num_hidden_layers"], every),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        attention_bias=keys.boolean("attention_bias"),
        query_pre_attn_scalar=keys.number("query_pre_attn_scalar", 256.0),
        final_logit_softcapping=cap_of(keys, "final_logit_softcapping", None),
    )


def rope(keys: Keys, head_dim: int) -> dict[str, Any]:
    """The fields of RoPE, for the layers with and without a window.

    Newer files have an object for each of the two kinds in `rope_parameters`; older ones `rope_theta` and
    `rope_local_base_freq`, and in `rope_scaling` what scales the positions of the layers without a window.
    """
    older, newer = keys.object("rope_scaling"), keys.object("rope_parameters")
    flat = [name for name, value in newer.items() if not isinstance(value, Mapping | None)]
    if flat or not {*newer} <= {*common.KINDS}:
        raise keys.refusal("rope_parameters", f"an object for each of {' and '.join(common.KINDS)}")
    of_full, of_sliding = (newer.get(kind) or {} for kind in common.KINDS)
    where = "rope_scaling" if older else "rope_parameters"
    if {**of_full, **older}.get("truncate", True) is not True:  # transformers looks for it in another place
        raise keys.refusal(f"{where}.truncate", "true, or no such key", got=False)
    top = {key: keys.get(key) for key in ("max_position_embeddings", "rope_theta", "partial_rotary_factor")}
    top["rope_theta"] = 1e6 if top["rope_theta"] is None else top["rope_theta"]
    full = Keys(top | {where: {**of_full, **older}}, f"{keys.where}: full_attention")
    local = keys.number("rope_local_base_freq", 1e4)
    top["rope_theta"] = local
    sliding = Keys(top | {"rope_parameters": of_sliding}, f"{keys.where}: sliding_attention")
    theta = common.rope(sliding, head_dim, kinds={})["rope_theta"]
    return common.rope(full, head_dim) | {"local_rope_theta": theta}


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "gemma3". Without a window all layers are alike."""
    keys = gemma.gguf_keys(m) | {"model_type": "gemma3_text"}
    window = m.get("attention.sliding_window", 0)
    return keys | {
        "query_pre_attn_scalar": scalar_of(m, keys["head_dim"], layers_of_27b=62),
        "final_logit_softcapping": m.number("final_logit_softcapping") or None,
        "sliding_window": window or None,
        "rope_local_base_freq": m.number("rope.freq_base_swa", 10000.0),
        "sliding_window_pattern": m.get("attention.sliding_window_pattern", 6) if window else 1,
    }


def shapes(config: Config) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    return gemma2.shapes(config) | {"q_norm": ([config.head_dim], None), "k_norm": ([config.head_dim], None)}


def structure(config: Gemma3Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = gemma2.structure(local_rope.local(config) if config.window(layer) else config, layer)
    return qwen3.structure_with_norms(config, rows, norm="GemmaRMSNorm")


def work(config: GemmaConfig, layer: int, weights: Gemma3BlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost, in the order of execution."""
    width = config.head_dim
    qkv, rotation, *rest = attention_work(config, weights, T, S)
    q_norm, k_norm = (
        Work(name, rms_norm_flops(T * heads, width) + width, [name])
        for name, heads in (("q_norm", config.num_attention_heads), ("k_norm", config.num_key_value_heads))
    )
    scale = Work("scale", T * config.num_attention_heads * width)
    return sandwich_work(config, weights, T, [qkv, q_norm, k_norm, rotation, scale, *rest])


OF_HEADS = ("q_norm", "k_norm")
PARTS = gemma2.PARTS | {
    name: qwen3.PARTS[name]
    for name in ("attention.q_normed", "attention.k_normed", "attention.output", "attention.scores")
}

GEMMA3 = GEMMA2._replace(
    title="Gemma 3",
    model_types=["gemma3_text"],
    lm_class="Gemma3ForCausalLM",
    read_config=read_config,
    names=gemma2.NAMES | {name: f"model.layers.*.self_attn.{name}" for name in OF_HEADS},
    shapes=shapes,
    block_weights=Gemma3BlockWeights,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    traced=gemma2.TRACED
    | {f"layers.*.attention.{one}_normed": f"^model.layers.*.self_attn.{one}_norm" for one in "qk"},
    full_scores=False,
    classifiers=["sequence"],
    gguf=Gguf(
        "gemma3",
        gguf_keys,
        gemma2.GGUF_NAMES | {"q_norm": "blk.*.attn_q_norm", "k_norm": "blk.*.attn_k_norm"},
        plus_one=["norm", "input_layernorm", *OF_HEADS, *SANDWICH],
        checked="llama.cpp",
    ),
)
