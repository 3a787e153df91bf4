"""SmolLM3: Llama without RoPE in every fourth layer (NoPE), which knows the order of tokens only from the causal mask.

Source: Bakouch et al. 2025, "SmolLM3"; Yang et al. 2025, "RoPE to NoPE and back again";
https://huggingface.co/docs/transformers/model_doc/smollm3
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .. import model
from ..arrays import Array, Bool, Float
from ..attention import attention
from ..block import block as llama_block
from ..cache import Cache
from ..config import Config
from ..shapes import BlockWeights
from ..tap import Tap, untapped
from . import common, llama, metadata
from .family import Gguf, Work
from .keys import Keys
from .llama import LLAMA


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(Config):
    """SmolLM3's configuration: the common one, and which layers rotate queries and keys."""

    rotated: tuple[bool, ...]  # one for each layer


def block(
    x: Float[Array, "... T D"],
    weights: BlockWeights,
    config: SmolLM3Config,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The chapter's block; a layer without RoPE gets no cos and sin, and has no "q_rotated" and "k_rotated"."""
    if not config.rotated[layer]:
        cos = sin = None
    return llama_block(x, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=tap)


transform = partial(model.transform, block=block)


def read_config(keys: Keys) -> SmolLM3Config:
    """SmolLM3's config.json. Sliding windows, if any, are in the layers without RoPE."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys, kv_heads=4)
    layers = sizes["num_hidden_layers"]
    rotated = rotated_layers(keys, layers)
    used, window = keys.boolean("use_sliding_window"), keys.optional("sliding_window")
    local = ["sliding_attention" if used and window and not turns else "full_attention" for turns in rotated]
    kinds = common.layer_types(keys, layers, default=local, window=window)
    return SmolLM3Config(
        family="smollm3",
        **sizes,
        **common.rope(keys, sizes["head_dim"], theta=2e6),
        **common.head(keys, tied=True, pad_token_id=128004),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        sliding_window=window,
        layer_types=kinds,
        attention_bias=keys.boolean("attention_bias"),
        mlp_bias=keys.boolean("mlp_bias"),
        rotated=rotated,
    )


def rotated_layers(keys: Keys, layers: int) -> tuple[bool, ...]:
    """Which layers have RoPE: those with a 1 (despite its name) in `no_rope_layers`; without it all but every fourth.

    `no_rope_layer_interval` puts another number in place of four.
    """
    listed, interval = keys.get("no_rope_layers"), keys.integer("no_rope_layer_interval", 4)
    if listed is None:
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or not all(one in (0, 1) for one in listed):
        raise keys.refusal("no_rope_layers", f"{layers} numbers, 1 for a layer with RoPE and 0 for one without")
    return tuple(bool(one) for one in listed[:layers])


def structure(config: SmolLM3Config, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    rows = llama.structure(config, layer)
    return rows if config.rotated[layer] else [row for row in rows if not row[0].startswith("  (rotary_emb)")]


def work(config: SmolLM3Config, layer: int, weights: BlockWeights, T: int, S: int) -> list[Work]:
    """What the parts of a block cost."""
    parts = llama.work(config, layer, weights, T, S)
    return [part if part.part != "RoPE" or config.rotated[layer] else part._replace(flops=0) for part in parts]


SMOLLM3 = LLAMA._replace(
    title="SmolLM3",
    model_types=["smollm3"],
    lm_class="SmolLM3ForCausalLM",
    read_config=read_config,
    harmless=["rope_interleaved", "max_window_layers"],
    transform=transform,
    block=block,
    structure=structure,
    work=work,
    gguf=Gguf(  # the files do not say which layers have RoPE: all but every fourth
        "smollm3",
        partial(metadata.decoder, model_type="smollm3"),
        llama.GGUF_NAMES,
        interleaved=["qkv_proj"],
        checked="llama.cpp",
    ),
)
