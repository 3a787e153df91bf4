"""Phi-3, Phi-3.5, Phi-4: the chapter's model; fused projections, partial rotation, a sliding window or LongRoPE.

The block and the pass are those of block.py and model.py. Differences from Llama: its files store queries, keys and
values in one tensor, gate and up in another; Phi-4-mini rotates only a part of each head; in the 4k models a token sees
2,047 tokens; the 128k models use LongRoPE.

Source: Abdin et al. 2024, "Phi-3 technical report"; https://huggingface.co/microsoft/Phi-3-mini-4k-instruct
"""

from typing import Any

from ..config import Config
from . import common, metadata
from .family import Gguf
from .keys import Keys
from .llama import ALLOWED, GGUF_NAMES, LLAMA, TRACED, score_bias
from .metadata import Metadata


def read_config(keys: Keys) -> Config:
    """Phi-3's config.json."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys)
    check_original(keys)
    window = keys.optional("sliding_window")
    return Config(
        family="phi3",
        **sizes,
        **common.rope(keys, sizes["head_dim"], partial=True, kinds=KINDS_OF_ROPE, original=4096),
        **common.head(keys, pad_token_id=32000),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        sliding_window=window,
        layer_types=common.windows(sizes["num_hidden_layers"], window),
    )


def check_original(keys: Keys) -> None:
    """Refuse an original context inside `rope_scaling` unless it is that of the top level, which transformers takes."""
    outside = keys.get("original_max_position_embeddings", 4096)
    for where in ("rope_scaling", "rope_parameters"):
        inside = keys.object(where).get("original_max_position_embeddings", outside)
        if inside != outside:
            name = f"{where}.original_max_position_embeddings"
            raise keys.refusal(name, f"that of the top level, {outside}", got=inside)


def gguf_keys(m: Metadata) -> dict[str, Any]:
    """The keys for architecture "phi3"."""
    keys = metadata.common(m, m.tensors)
    # Files of Phi-3-mini-4k and Phi-3-medium-4k that are older than the key: their window is known.
    old_4k = m.get("context_length") == 4096 and m.get("block_count") in (32, 40)
    original = m.get("rope.scaling.original_context_length", m.get("context_length"))
    attention_factor = m.number("rope.scaling.attn_factor", 1.0)
    if "rope_factors_long.weight" in m.tensors:  # the factors themselves are read with the tensors
        keys |= {"original_max_position_embeddings": original}
        keys["rope_scaling"] = {"rope_type": "longrope", "attention_factor": attention_factor}
    elif attention_factor != 1.0:
        raise m.refusal("rope.scaling.attn_factor", "1.0 without the tensors of LongRoPE's factors")
    return keys | {
        "model_type": "phi3",
        "sliding_window": m.get("attention.sliding_window", 2047 if old_4k else 0) or None,
        "partial_rotary_factor": m.count("rope.dimension_count", keys["head_dim"]) / keys["head_dim"],
    }


# "su" and "yarn" are older spellings of LongRoPE in Phi-3's files.
KINDS_OF_ROPE = {"linear": "linear", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}
WINDOWS = ("use_sliding_window", "max_window_layers", "layer_types")
FUSED = {
    **dict.fromkeys((f"layers.*.attention.{name}" for name in "qkv"), "model.layers.*.self_attn.qkv_proj"),
    **dict.fromkeys((f"layers.*.feedforward.{name}" for name in ("gate", "up")), "model.layers.*.mlp.gate_up_proj"),
}

PHI3 = LLAMA._replace(
    title="Phi-3, Phi-3.5, Phi-4",
    model_types=["phi3"],
    lm_class="Phi3ForCausalLM",
    read_config=read_config,
    # transformers' Phi-3 has no biases, and one window for all layers, whatever these keys say.
    harmless=["attention_bias", "mlp_bias", "resid_pdrop", "embd_pdrop", *WINDOWS],
    biases=score_bias,
    traced=TRACED | FUSED,
    gguf=Gguf("phi3", gguf_keys, GGUF_NAMES, checked="llama.cpp"),
)
