"""Gemma 2: Gemma with norms before and after each layer, capped scores and logits, and windows in every second layer.

A cap bounds the scores of attention, and the logits, smoothly: cap · tanh(x / cap) is close to x where x is small, and
never beyond the cap. `flash_attention` has no cap, so this attention computes all scores at once.

Source: Gemma Team 2024, "Gemma 2: Improving open language models at a practical size"; Bello et al. 2016, "Neural
combinatorial optimization with reinforcement learning" (the cap);
https://huggingface.co/docs/transformers/model_doc/gemma2
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .. import block as chapter
from .. import heads
from ..arrays import Array, Bool, Float, Weight, array_namespace
from ..attention import attention, attention_weights, combine, relevance_scores
from ..cache import Cache
from ..config import Config
from ..shapes import BlockLike, Weights
from ..tap import Tap, under, untapped
from ..text.brief import brief
from . import common, gemma, llama
from .family import Gguf, Rows, Tapped, Work
from .gemma import GEMMA, GemmaConfig, feedforward, norm, norm_flops
from .granite import scaled_attention
from .keys import Keys
from .metadata import Metadata
from .work import attention_work


class Gemma2BlockWeights(NamedTuple):
    """The weights of one block, in the order in which it uses them."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
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


def capped(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """cap · tanh(x / cap): between -cap and cap. Without a cap x itself."""
    return x if cap is None else cap * array_namespace(x).tanh(x / cap)


def capped_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    cap: float | None,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """The chapter's attention with scores that are capped before the mask hides any: the tapped "scores"."""
    # One expression, so that the scores are freed when their softmax begins.
    weights = tap("weights", attention_weights(tap("scores", capped(relevance_scores(q, k), cap)), visible))
    return tap("mixed", combine(weights, v))


def self_attention(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: GemmaConfig,
    *args: Any,  # those of the chapter's, from `cos` to `layer`
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The chapter's attention layer with `capped_attention`, whatever `attention` says, and a scale of its own."""
    within_cap = partial(capped_attention, cap=config.attn_logit_softcapping)
    attention = partial(scaled_attention, scale=config.query_pre_attn_scalar**-0.5, attention=within_cap)
    return chapter.self_attention(x, weights, config, *args, attention=attention, tap=tap)


def block(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: GemmaConfig,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    self_attention: Callable[..., Float[Array, "... T D"]] = self_attention,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """x + norm(attention(norm(x))), then x + norm(feedforward(norm(x))): the "sandwich norms".

    Parameters as in `npllm.block.block`; `self_attention` is another attention layer.
    """
    eps = config.rms_norm_eps
    normed = tap("input_layernorm", norm(x, weights.input_layernorm, eps))
    y = self_attention(
        normed, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=under(tap, "attention")
    )
    x = x + tap("post_attention_layernorm", norm(y, weights.post_attention_layernorm, eps))
    x = tap("residual_after_attention", x)
    normed = tap("pre_feedforward_layernorm", norm(x, weights.pre_feedforward_layernorm, eps))
    y = feedforward(normed, weights, tap=under(tap, "feedforward"))
    x = x + tap("post_feedforward_layernorm", norm(y, weights.post_feedforward_layernorm, eps))
    return tap("residual_after_feedforward", x)


transform = partial(gemma.transform, block=block)  # its `attention` has no effect


def lm_head(hidden: Float[Array, "... T D"], weights: Weights, config: GemmaConfig) -> Float[Array, "... T V"]:
    """The chapter's LM head, and its logits capped."""
    return capped(heads.lm_head(hidden, weights, config), config.final_logit_softcapping)


def read_config(keys: Keys) -> GemmaConfig:
    """Gemma 2's config.json."""
    keys.allow_only(gemma.ALLOWED | {"hidden_activation": gemma.TANH})
    sizes = common.sizes(keys, kv_heads=4, head_dim=256)
    return GemmaConfig(
        family="gemma2",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys, tied=True, pad_token_id=0),
        **windowed(keys, sizes["num_hidden_layers"], every=2),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        attention_bias=keys.boolean("attention_bias"),
        query_pre_attn_scalar=keys.number("query_pre_attn_scalar", 256.0),
        attn_logit_softcapping=cap_of(keys, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=cap_of(keys, "final_logit_softcapping", 30.0),
    )


def windowed(keys: Keys, layers: int, every: int) -> dict[str, Any]:
    """The fields of the window: without `layer_types` all layers have it but the last of each `every` layers."""
    window = keys.optional("sliding_window", absent=4096)
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    return {"sliding_window": window, "layer_types": common.layer_types(keys, layers, default=kinds, window=window)}


def cap_of(keys: Keys, key: str, absent: float | None) -> float | None:
    """A cap: `absent` if the file has no such key, and None if it is null there."""
    if not keys.has(key):
        keys.get(key)
        return absent
    return None if keys.get(key) is None else keys.number(key)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "gemma2". The scale of the scores is not in the file: it follows from the size."""
    keys = gemma.gguf_keys(m) | {"model_type": "gemma2"}
    return keys | {
        "query_pre_attn_scalar": scalar_of(m, keys["head_dim"], layers_of_27b=46),
        "attn_logit_softcapping": m.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": m.number("final_logit_softcapping", 30.0),
        "sliding_window": m.get("attention.sliding_window", 4096),
    }


def scalar_of(m: Metadata, head_dim: int, layers_of_27b: int) -> int:
    """query_pre_attn_scalar by llama.cpp's rule: the width of a head, but in the model of 27 billion D / N."""
    large = m.get("block_count") == layers_of_27b
    return m.count("embedding_length") // m.count("attention.head_count") if large else head_dim


def shapes(config: Config) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    vector: Rows = ([config.hidden_size], None)
    return llama.shapes(config) | dict.fromkeys(("pre_feedforward_layernorm", "post_feedforward_layernorm"), vector)


def structure(config: Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = gemma.structure(config, layer)
    at = 1 + [name for _, name in rows].index("post_attention_layernorm")
    before, after = (
        (f"({name}_feedforward_layernorm): {gemma.norm_text(config)}", f"{name}_feedforward_layernorm")
        for name in ("pre", "post")
    )
    return [*rows[:at], before, *rows[at:], after]


def work(config: GemmaConfig, layer: int, weights: BlockLike, T: int, S: int) -> list[Work]:
    """What the parts of a block cost, in the order of execution."""
    rows, width = T * config.num_attention_heads, config.head_dim
    cap = [Work("cap", 3 * rows * S)] if config.attn_logit_softcapping else []
    attention = [
        step
        for part in attention_work(config, weights, T, S)
        for step in ([Work("scale", rows * width), part, *cap] if part.part == "scores" else [part])
    ]
    return sandwich_work(config, weights, T, attention)


def sandwich_work(config: GemmaConfig, weights: BlockLike, T: int, attention: list[Work]) -> list[Work]:
    """What a block with this attention layer costs."""
    flops = norm_flops(config, T)
    return [
        Work("input_layernorm", flops, ["input_layernorm"]),
        *attention,
        Work("post_attention_layernorm", flops, ["post_attention_layernorm"]),
        Work("pre_feedforward_layernorm", flops, ["pre_feedforward_layernorm"]),
        *gemma.feedforward_work(config, weights, T),
        Work("post_feedforward_layernorm", flops, ["post_feedforward_layernorm"]),
        Work("residual", 2 * T * config.hidden_size),
    ]


def outside_flops(config: GemmaConfig) -> tuple[int, int]:
    """The FLOPs for each token of scaling the embedding, and of capping the logits."""
    return config.hidden_size, 3 * config.vocab_size if config.final_logit_softcapping else 0


SANDWICH = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
PARTS = (
    gemma.PARTS
    | dict.fromkeys(SANDWICH, gemma.NORMED)
    | {
        "attention.scores": Tapped("relevance, within the cap", "N T S", capped_attention, 'tap("scores"', "3-20"),
        "logits": Tapped("a score for each token, within the cap", "T V", lm_head, "", "3-6"),
    }
    | llama.moved(block, "residual_after_attention", "residual_after_feedforward")
)
NAMES = llama.NAMES | {name: f"model.layers.*.{name}" for name in SANDWICH}
GGUF_NAMES = llama.GGUF_NAMES | {
    "post_attention_layernorm": "blk.*.post_attention_norm",
    "pre_feedforward_layernorm": "blk.*.ffn_norm",
    "post_feedforward_layernorm": "blk.*.post_ffw_norm",
}
TRACED = (
    llama.TRACED
    | {f"layers.*.{name}": f"model.layers.*.{name}" for name in SANDWICH}
    | {"layers.*.residual_after_attention": ">model.layers.*.pre_feedforward_layernorm"}
)

GEMMA2 = GEMMA._replace(
    title="Gemma 2",
    model_types=["gemma2"],
    lm_class="Gemma2ForCausalLM",
    read_config=read_config,
    # transformers' Gemma 2 reads `hidden_activation` in place of `hidden_act`.
    harmless=["hidden_act", *GEMMA.harmless],
    names=NAMES,
    shapes=shapes,
    block_weights=Gemma2BlockWeights,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    traced=TRACED,
    lm_head=lm_head,
    uncapped_head=heads.lm_head,
    outside_flops=outside_flops,
    added=("post_attention_layernorm", "post_feedforward_layernorm"),
    full_scores=True,
    gguf=Gguf("gemma2", gguf_keys, GGUF_NAMES, plus_one=["norm", "input_layernorm", *SANDWICH], checked="llama.cpp"),
)
