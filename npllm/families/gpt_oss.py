"""gpt-oss: experts in 4 bits, attention with sinks, and a window in every second layer.

Each head has a sink, a learned score of a key that is not there: what a query finds nowhere goes to it and not to some
token, so a row of attention weights sums to less than 1. The experts' gates and ups are bounded. Positions are scaled
by YaRN. The published files have the experts in MXFP4 (storage/mxfp4.py), and gate and up as alternating rows.

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b model card"; Xiao et al. 2023, "Efficient streaming language models
with attention sinks"; https://huggingface.co/docs/transformers/model_doc/gpt_oss
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array, Bool, Float, Int, Weight, array_namespace
from ..attention import attention, attention_weights, combine, relevance_scores
from ..config import Config
from ..linear import linear
from ..sampling import softmax
from ..tap import Tap, untapped
from ..text.brief import brief
from . import common, experts, llama, metadata, mixtral
from .activations import bounded_glu
from .experts import ExpertsConfig, ExpertWeights, block_with_experts, mixture_of_experts
from .family import Gguf, Rows, Tapped, Work
from .keys import Keys
from .llama import LLAMA
from .metadata import Metadata


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ExpertsConfig):
    """gpt-oss's configuration: the common one with experts, and the constants of their activation."""

    swiglu_alpha: float
    swiglu_limit: float


class GptOssBlockWeights(NamedTuple):
    """The weights of one block."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    sinks: Float[Array, " N"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    router: Weight  # [E, D]
    router_bias: Float[Array, " E"]
    experts: tuple[ExpertWeights, ...]  # E of them
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


def attention_with_sinks(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    sinks: Float[Array, " N"],
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """Attention with one more score in each row, the head's sink: every query sees it, and its value is zero."""
    xp = array_namespace(q)
    scores = tap("scores", relevance_scores(q, k))
    sink = xp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
    if visible is not None:
        visible = xp.concat([visible, xp.ones_like(visible[..., :1])], axis=-1)
    weights = attention_weights(xp.concat([scores, sink], axis=-1), visible)
    return tap("mixed", combine(tap("weights", weights[..., :-1]), v))


def route(
    x: Float[Array, "... T D"], weights: GptOssBlockWeights, config: GptOssConfig, *, tap: Tap = untapped
) -> tuple[Int[Array, "... T A"], Float[Array, "... T A"]]:
    """The experts of each token, the best first, and their shares: a softmax over the scores of these alone."""
    xp = array_namespace(x)
    logits = tap("router_logits", linear(x, weights.router, weights.router_bias))
    chosen = tap("chosen", xp.argsort(-logits, axis=-1, stable=True)[..., : config.num_experts_per_tok])
    return chosen, tap("shares", softmax(xp.take_along_axis(logits, chosen, axis=-1)))


def expert_feedforward(x: Float[Array, "T D"], expert: ExpertWeights, config: GptOssConfig) -> Float[Array, "T D"]:
    """The output of one expert: the network of `npllm.feedforward` with this activation."""
    gate_up = linear(x, expert.gate_up_proj, expert.gate_up_proj_bias)
    width = gate_up.shape[-1] // 2
    activation = bounded_glu(gate_up[..., :width], gate_up[..., width:], config.swiglu_limit, config.swiglu_alpha)
    return linear(activation, expert.down_proj, expert.down_proj_bias)


def block(
    x: Float[Array, "... T D"],
    weights: GptOssBlockWeights,
    config: GptOssConfig,
    *args: Any,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The pre-norm block with sinks and experts. Parameters as in `npllm.block.block`; `attention` is not used."""
    with_sinks = partial(attention_with_sinks, sinks=weights.sinks)
    network = partial(mixture_of_experts, route=route, feedforward=partial(expert_feedforward, config=config))
    return block_with_experts(x, weights, config, *args, attention=with_sinks, feedforward=network, tap=tap)


transform = partial(model.transform, block=block)


def read_config(keys: Keys) -> GptOssConfig:
    """gpt-oss's config.json. Without `layer_types` the first layer has the window, the second has none, and so on."""
    keys.allow_only(common.ALLOWED)
    sizes = common.sizes(keys, kv_heads=8, head_dim=64)
    layers, window = sizes["num_hidden_layers"], keys.optional("sliding_window", absent=128)
    alternating = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    kinds = common.layer_types(keys, layers, default=alternating, window=window)
    return GptOssConfig(
        family="gpt_oss",
        **sizes,
        **common.rope(keys, sizes["head_dim"], theta=150000.0, default=YARN),
        **common.head(keys),
        **experts.read_experts(keys, layers, ["num_local_experts", "num_experts"], experts=128, chosen=4),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        sliding_window=window,
        layer_types=kinds,
        attention_bias=keys.boolean("attention_bias", True),
        swiglu_alpha=keys.number("swiglu_alpha", 1.702),
        swiglu_limit=keys.number("swiglu_limit", 7.0),
    )


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "gpt-oss".

    The metadata do not say that YaRN's bounds are not rounded in this model (`truncate`); llama.cpp rounds them.
    """
    keys = metadata.decoder(m, "gpt_oss")
    del keys["mlp_bias"]
    if m.get("attention.sliding_window_pattern", 2) != 2:
        raise m.refusal("attention.sliding_window_pattern", "2, a window in every second layer")
    scaling = keys.pop("rope_scaling") or {"rope_type": "default"}
    return keys | {
        "rope_parameters": scaling | {"truncate": False},
        "intermediate_size": m.count("expert_feed_forward_length"),
        **metadata.experts(m),
        "sliding_window": m.count("attention.sliding_window"),
    }


def shapes(config: GptOssConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    return mixtral.shapes(config) | {"sinks": ([config.num_attention_heads], None)}


def biases(config: Config) -> set[str]:
    """The weights with a bias: the router and the experts always, queries, keys, values and output by the config."""
    attention = {"qkv_proj", "o_proj"} if config.attention_bias else set()
    return attention | {"router", *EXPERTS} | llama.score_bias(config)


def structure(config: GptOssConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = llama.structure(config, layer)
    at = 1 + [text for text, _ in rows].index(f"  (rotary_emb): {llama.rope_text(config)}")
    sinks = (f"  (sinks): {config.num_attention_heads} scores", "sinks")
    own = [
        (text.replace("SwiGLU", "bounded SwiGLU").replace("SiLU()", f"SiLU({config.swiglu_alpha:g} x)"), name)
        for text, name in experts.expert_structure(config)
    ]
    return [*rows[:at], sinks, *rows[at : rows.index(("(mlp): SwiGLU", ""))], *own]


def work(config: GptOssConfig, layer: int, weights: GptOssBlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    runs = T * config.num_experts_per_tok
    own = {
        "softmax": Work("softmax", T * config.num_attention_heads * (4 * S + 3), ["sinks"]),
        "shares": Work("shares", T * (4 * config.num_experts_per_tok - 1)),
        "SwiGLU": Work("bounded SwiGLU", 6 * runs * config.intermediate_size),
    }
    return [own.get(part.part, part) for part in mixtral.work(config, layer, weights, T, S)]


# Positions of a file that does not mention them.
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN |= {"original_max_position_embeddings": 4096}
UNUSED = ("hidden_act", "mlp_bias", "use_sliding_window", "experts_per_token", "initial_context_length")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
NAMES = mixtral.NAMES | {
    "sinks": "model.layers.*.self_attn.sinks",
    "router": "model.layers.*.mlp.router",
    "experts.gate_up_proj": "model.layers.*.mlp.experts.gate_up_proj.#",
    "experts.down_proj": "model.layers.*.mlp.experts.down_proj.#",
}
GGUF_NAMES = mixtral.GGUF_NAMES | {
    "sinks": "blk.*.attn_sinks",
    "post_attention_layernorm": "blk.*.post_attention_norm",
    "experts.gate_up_proj": "blk.*.ffn_gate_exps.# blk.*.ffn_up_exps.#",
    "experts.down_proj": "blk.*.ffn_down_exps.#",
}
WEIGHTS = "softmax with the head's sink: the shares of the tokens"
PARTS = experts.PARTS | {
    "attention.weights": Tapped(WEIGHTS, "N T S", attention_with_sinks, 'tap("weights"', "3-20"),
    "feedforward.chosen": experts.PARTS["feedforward.chosen"]._replace(function=route),
    "feedforward.shares": experts.PARTS["feedforward.shares"]._replace(function=route),
}
TRACED = experts.TRACED | {
    "layers.*.feedforward.router_logits": "model.layers.*.mlp.router[0]",
    "layers.*.feedforward.shares": "model.layers.*.mlp.router[1]",
    "layers.*.feedforward.chosen": "model.layers.*.mlp.router[2]",
    "layers.*.feedforward.output": "model.layers.*.mlp[0]",
}

GPT_OSS = LLAMA._replace(
    title="gpt-oss",
    model_types=["gpt_oss"],
    lm_class="GptOssForCausalLM",
    read_config=read_config,
    harmless=[*UNUSED, *experts.HARMLESS],
    names=NAMES,
    shapes=shapes,
    biases=biases,
    block_weights=GptOssBlockWeights,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    traced=TRACED,
    transposed=EXPERTS,
    alternating=["experts.gate_up_proj"],
    bare=["self_attn.sinks", *EXPERTS],
    full_scores=True,
    gguf=Gguf("gpt-oss", gguf_keys, GGUF_NAMES, checked="llama.cpp"),
)
