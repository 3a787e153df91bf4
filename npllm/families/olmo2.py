"""OLMo 2: norms after the layers and not before them, and QK-norm over the full width, all heads together.

Each layer reads the unnormalized residual stream; its output is normalized, then added. The norms of queries and
keys go over the whole width, before the heads are split.

Source: OLMo Team 2024, "2 OLMo 2 Furious"; Liu et al. 2022, "Swin transformer V2" (norms after the layers);
https://huggingface.co/docs/transformers/model_doc/olmo2
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array, Bool, Float, Weight
from ..attention import attention, merge_heads, split_heads
from ..cache import Cache, append
from ..config import Config
from ..feedforward import feedforward
from ..linear import linear
from ..norm import rms_norm
from ..rope import apply_rope
from ..shapes import BlockLike
from ..tap import Tap, under, untapped
from ..text.brief import brief
from . import common, llama, metadata
from .family import Gguf, Rows, Tapped, Work
from .keys import Keys, is_positive
from .llama import LLAMA
from .metadata import Metadata
from .qwen3 import structure_with_norms, work_with_norms
from .scaling import sharpening
from .work import attention_work, linear_work, rms_norm_flops


class Olmo2BlockWeights(NamedTuple):
    """The weights of one block, in the order in which it uses them."""

    qkv_proj: Weight  # [(N + 2K)·H, D]
    q_norm: Float[Array, " N*H"]
    k_norm: Float[Array, " K*H"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]  # here it does come after attention
    gate_up_proj: Weight  # [2F, D]
    down_proj: Weight  # [D, F]
    post_feedforward_layernorm: Float[Array, " D"]
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None
    gate_up_proj_bias: None = None  # `feedforward` adds them where a family has them
    down_proj_bias: None = None

    def __repr__(self) -> str:
        return brief(self)


def self_attention(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: Config,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The attention layer: project, normalize all queries and all keys, rotate, cache, attend, project back."""
    heads, kv_heads, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    wide, narrow = heads * config.head_dim, kv_heads * config.head_dim
    qkv = linear(x, weights.qkv_proj, weights.qkv_proj_bias)
    q, k, v = qkv[..., :wide], qkv[..., wide : wide + narrow], qkv[..., wide + narrow :]
    q, k = tap("q", split_heads(q, heads)), tap("k", split_heads(k, kv_heads))
    v = tap("v", split_heads(v, kv_heads))
    q = tap("q_normed", split_heads(rms_norm(merge_heads(q), weights.q_norm, eps), heads))
    k = tap("k_normed", split_heads(rms_norm(merge_heads(k), weights.k_norm, eps), kv_heads))
    q, k = tap("q_rotated", apply_rope(q, cos, sin)), tap("k_rotated", apply_rope(k, cos, sin))
    if cache is not None:
        k, v = append(cache, layer, k, v)
    mixed = attention(q, k, v, visible, tap=tap)
    return tap("output", linear(merge_heads(mixed), weights.o_proj, weights.o_proj_bias))


def block(
    x: Float[Array, "... T D"],
    weights: Olmo2BlockWeights,
    config: Config,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """x + norm(attention(x)), then x + norm(feedforward(x)). Parameters as in `npllm.block.block`.

    Unlike in the original post-norm block, the residual stream itself is never normalized.
    """
    eps = config.rms_norm_eps
    y = self_attention(
        x, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=under(tap, "attention")
    )
    x = x + tap("post_attention_layernorm", rms_norm(y, weights.post_attention_layernorm, eps))
    x = tap("residual_after_attention", x)
    y = feedforward(x, weights, tap=under(tap, "feedforward"))
    x = x + tap("post_feedforward_layernorm", rms_norm(y, weights.post_feedforward_layernorm, eps))
    return tap("residual_after_feedforward", x)


transform = partial(model.transform, block=block)


def read_config(keys: Keys) -> Config:
    """OLMo 2's config.json."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys)
    common.refuse_window(keys, sizes["max_position_embeddings"])
    return Config(
        family="olmo2",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys, pad_token_id=1),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        layer_types=common.all_full(sizes["num_hidden_layers"]),
        attention_bias=keys.boolean("attention_bias"),
    )


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "olmo2", which OLMo 3's files also have: those with a sliding window.

    llama.cpp's converter writes YaRN's factor on cos and sin as `attn_factor`, and llama.cpp then multiplies by it
    twice. Here it counts once, as in the model.
    """
    window = m.get("attention.sliding_window", 0)
    keys = metadata.decoder(m, "olmo3" if window else "olmo2")
    if not window:
        return keys
    theta, scaled = keys.pop("rope_theta"), keys.pop("rope_scaling") or {}
    factor: Any = scaled.get("factor")
    given = m.number("rope.scaling.attn_factor", 1.0)
    counted = sharpening(float(factor), 1.0) if scaled.get("rope_type") == "yarn" and is_positive(factor) else 1.0
    if given != 1.0 and not (is_positive(given) and math.isclose(given, counted, rel_tol=1e-6)):
        raise m.refusal("rope.scaling.attn_factor", " or ".join(f"{one:g}" for one in sorted({1.0, counted})))
    pattern, layers = m.get("attention.sliding_window_pattern"), keys["num_hidden_layers"]
    if pattern is not None:
        if not isinstance(pattern, list) or len(pattern) != layers or not all(one in (True, False) for one in pattern):
            raise m.refusal("attention.sliding_window_pattern", f"true or false for each of {layers} layers")
        keys["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    ropes = {"full_attention": scaled | {"rope_theta": theta}, "sliding_attention": {"rope_theta": theta}}
    return keys | {"sliding_window": window, "rope_parameters": ropes}


def shapes(config: Config) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    N, K, H, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size
    own: dict[str, Rows] = {"q_norm": ([N * H], None), "k_norm": ([K * H], None)}
    own["post_feedforward_layernorm"] = ([D], None)
    return {name: rows for name, rows in llama.shapes(config).items() if name != "input_layernorm"} | own


def structure(config: Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = [
        (f"(self_attn): {llama.attention_text(config, layer)}", ""),
        ("  (qkv_proj): Linear", "qkv_proj"),
        (f"  (rotary_emb): {llama.rope_text(config)}", ""),
        ("  (o_proj): Linear", "o_proj"),
        (f"(post_attention_layernorm): {llama.rms_norm_text(config)}", "post_attention_layernorm"),
        ("(mlp): SwiGLU", ""),
        ("  (gate_up_proj): Linear", "gate_up_proj"),
        ("  (activation_fn): SiLU()", ""),
        ("  (down_proj): Linear", "down_proj"),
        (f"(post_feedforward_layernorm): {llama.rms_norm_text(config)}", "post_feedforward_layernorm"),
    ]
    return structure_with_norms(config, rows, whole=True)


def work(config: Config, layer: int, weights: Olmo2BlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost, in the order of execution."""
    D = config.hidden_size
    parts = [
        *attention_work(config, weights, T, S),
        Work("post_attention_layernorm", rms_norm_flops(T, D), ["post_attention_layernorm"]),
        linear_work("gate_up_proj", weights, T),
        Work("SwiGLU", 4 * T * config.intermediate_size),
        linear_work("down_proj", weights, T),
        Work("post_feedforward_layernorm", rms_norm_flops(T, D), ["post_feedforward_layernorm"]),
        Work("residual", 2 * T * D),
    ]
    return work_with_norms(config, parts, T, whole=True)


SAME_LENGTH = "each vector scaled to the same length"
PARTS = {name: part for name, part in llama.PARTS.items() if name != "input_layernorm"} | {
    "attention.q": llama.PARTS["attention.q"]._replace(function=self_attention, line='tap("q"'),
    "attention.k": llama.PARTS["attention.k"]._replace(function=self_attention, line='tap("k"'),
    "attention.v": llama.PARTS["attention.v"]._replace(function=self_attention, line='tap("v"'),
    "attention.q_normed": Tapped(SAME_LENGTH, "N T H", self_attention, 'tap("q_normed"', "3-30"),
    "attention.k_normed": Tapped(SAME_LENGTH, "K T H", self_attention, 'tap("k_normed"', "3-30"),
    **llama.moved(self_attention, "attention.output"),
    "post_feedforward_layernorm": Tapped(SAME_LENGTH, "T D", rms_norm, "", "3-30"),
    **llama.moved(block, "residual_after_attention", "residual_after_feedforward"),
}
TRACED = {name: path for name, path in llama.TRACED.items() if name != "layers.*.input_layernorm"} | {
    "layers.*.attention.q_normed": "model.layers.*.self_attn.q_norm",
    "layers.*.attention.k_normed": "model.layers.*.self_attn.k_norm",
    "layers.*.residual_after_attention": ">model.layers.*.mlp",
    "layers.*.post_feedforward_layernorm": "model.layers.*.post_feedforward_layernorm",
}

GGUF_NAMES = {name: theirs for name, theirs in llama.GGUF_NAMES.items() if name != "input_layernorm"} | {
    "q_norm": "blk.*.attn_q_norm",
    "k_norm": "blk.*.attn_k_norm",
    "post_attention_layernorm": "blk.*.post_attention_norm",
    "post_feedforward_layernorm": "blk.*.post_ffw_norm",
}

OLMO2 = LLAMA._replace(
    title="OLMo 2",
    model_types=["olmo2"],
    lm_class="Olmo2ForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias", "clip_qkv", "use_sliding_window", "max_window_layers"],
    names={name: theirs for name, theirs in llama.NAMES.items() if name != "input_layernorm"}
    | {
        "q_norm": "model.layers.*.self_attn.q_norm",
        "k_norm": "model.layers.*.self_attn.k_norm",
        "post_feedforward_layernorm": "model.layers.*.post_feedforward_layernorm",
    },
    shapes=shapes,
    block_weights=Olmo2BlockWeights,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    traced=TRACED,
    added=("post_attention_layernorm", "post_feedforward_layernorm"),
    gguf=Gguf("olmo2", gguf_keys, GGUF_NAMES, checked="llama.cpp"),
    classifiers=["sequence"],
)
