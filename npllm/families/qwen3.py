"""Qwen3: Qwen2 without its biases, and with a norm on each head's queries and keys before RoPE (QK-norm).

The scores are then products of vectors of the same length (up to learned weights), so they are bounded.

Source: Yang et al. 2025, "Qwen3 technical report"; Henry et al. 2020, "Query-key normalization for transformers";
https://huggingface.co/docs/transformers/model_doc/qwen3
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .. import block as chapter
from .. import model
from ..arrays import Array, Bool, Float, Weight
from ..attention import attention, merge_heads, queries_keys_values
from ..cache import Cache, append
from ..config import Config
from ..linear import linear
from ..norm import rms_norm
from ..rope import apply_rope
from ..shapes import BlockLike
from ..tap import Tap, untapped
from ..text.brief import brief
from . import common, llama, metadata
from .family import Gguf, Rows, Tapped, Work
from .keys import Keys
from .llama import LLAMA
from .qwen2 import windowed
from .work import rms_norm_flops


class Qwen3BlockWeights(NamedTuple):
    """The weights of one block: Llama's, and the weights of the two norms."""

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    q_norm: Float[Array, " H"]  # the same for all heads
    k_norm: Float[Array, " H"]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]
    gate_up_proj: Weight  # [2F, D]
    down_proj: Weight  # [D, F]
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
    """The attention layer: project, normalize queries and keys head by head, rotate, cache, attend, project back."""
    q, k, v = queries_keys_values(x, weights, config)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    q = tap("q_normed", rms_norm(q, weights.q_norm, config.rms_norm_eps))
    k = tap("k_normed", rms_norm(k, weights.k_norm, config.rms_norm_eps))
    q, k = tap("q_rotated", apply_rope(q, cos, sin)), tap("k_rotated", apply_rope(k, cos, sin))
    if cache is not None:
        k, v = append(cache, layer, k, v)
    mixed = attention(q, k, v, visible, tap=tap)
    return tap("output", linear(merge_heads(mixed), weights.o_proj, weights.o_proj_bias))


block = partial(chapter.block, self_attention=self_attention)
transform = partial(model.transform, block=block)


def read_config(keys: Keys) -> Config:
    """Qwen3's config.json: windows as in Qwen2; a head is 128 wide where the file does not say."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys, kv_heads=32, head_dim=128)
    return Config(
        family="qwen3",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        **windowed(keys, sizes["num_hidden_layers"]),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        attention_bias=keys.boolean("attention_bias"),
    )


def shapes(config: Config) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns."""
    return llama.shapes(config) | {"q_norm": ([config.head_dim], None), "k_norm": ([config.head_dim], None)}


def structure(config: Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    return structure_with_norms(config, llama.structure(config, layer))


def structure_with_norms(
    config: Config, rows: list[tuple[str, str]], *, whole: bool = False, norm: str = "RMSNorm"
) -> list[tuple[str, str]]:
    """The lines of a block without QK-norm, and those of the two norms.

    whole : whether a norm goes over all heads of a token, and not over each
    norm : its name
    """
    at = 1 + [name for _, name in rows].index("qkv_proj")
    norms = [
        (f"  ({name}): {norm}({width}, eps={config.rms_norm_eps:g})", name)
        for name, (_, width) in normalized(config, whole).items()
    ]
    return [*rows[:at], *norms, *rows[at:]]


def normalized(config: Config, whole: bool) -> dict[str, tuple[int, int]]:
    """The number of vectors of a token that each of the two norms normalizes, and their width."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return {"q_norm": (1, N * H), "k_norm": (1, K * H)} if whole else {"q_norm": (N, H), "k_norm": (K, H)}


def work(config: Config, layer: int, weights: Qwen3BlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    return work_with_norms(config, llama.work(config, layer, weights, T, S), T)


def work_with_norms(config: Config, parts: list[Work], T: int, *, whole: bool = False) -> list[Work]:
    """The parts of a block without QK-norm, and the two norms. `whole` as in `structure_with_norms`."""
    at = 1 + [part.part for part in parts].index("qkv_proj")
    norms = [
        Work(name, rms_norm_flops(T * count, width), [name])
        for name, (count, width) in normalized(config, whole).items()
    ]
    return [*parts[:at], *norms, *parts[at:]]


GGUF_NORMS = {"q_norm": "blk.*.attn_q_norm", "k_norm": "blk.*.attn_k_norm"}
NORMED = 'tap("q_normed"', 'tap("k_normed"'
PARTS = llama.PARTS | {
    "attention.q_normed": Tapped("each query scaled to the same length", "N T H", self_attention, NORMED[0], "3-30"),
    "attention.k_normed": Tapped("each key scaled to the same length", "K T H", self_attention, NORMED[1], "3-30"),
    **llama.moved(self_attention, "attention.output"),
}

QWEN3 = LLAMA._replace(
    title="Qwen3",
    model_types=["qwen3"],
    lm_class="Qwen3ForCausalLM",
    read_config=read_config,
    harmless=["mlp_bias"],  # transformers' Qwen3 has none, whatever it says
    names=llama.NAMES | {"q_norm": "model.layers.*.self_attn.q_norm", "k_norm": "model.layers.*.self_attn.k_norm"},
    shapes=shapes,
    block_weights=Qwen3BlockWeights,
    transform=transform,
    block=block,
    structure=structure,
    parts=PARTS,
    work=work,
    traced=llama.TRACED | {f"layers.*.attention.{one}_normed": f"model.layers.*.self_attn.{one}_norm" for one in "qk"},
    gguf=Gguf(
        "qwen3", partial(metadata.decoder, model_type="qwen3"), llama.GGUF_NAMES | GGUF_NORMS, checked="llama.cpp"
    ),
)
