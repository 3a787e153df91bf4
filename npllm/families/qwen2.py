"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a sliding window in some layers.

Source: Yang et al. 2024, "Qwen2 technical report"; https://huggingface.co/docs/transformers/model_doc/qwen2
"""

from functools import partial
from typing import Any

from ..config import Config
from . import common, metadata
from .family import Gguf
from .keys import Keys
from .llama import ALLOWED, GGUF_NAMES, LLAMA, score_bias


def read_config(keys: Keys) -> Config:
    """Qwen2's config.json. Without `use_sliding_window` the window is off, whatever `sliding_window` says."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys, kv_heads=32)
    return Config(
        family="qwen2",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        **windowed(keys, sizes["num_hidden_layers"]),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        attention_bias=True,
    )


def windowed(keys: Keys, layers: int) -> dict[str, Any]:
    """The fields of the sliding window: which layers have it, and how long it is."""
    keys.mark_read("sliding_window")  # read only if it is used
    window = keys.optional("sliding_window", absent=4096) if keys.boolean("use_sliding_window") else None
    first = keys.integer("max_window_layers", 28, least=0)
    kinds = common.layer_types(keys, layers, default=common.windows(layers, window, first), window=window)
    return {"sliding_window": window, "layer_types": kinds}


def biases(config: Config) -> set[str]:
    """The weights with a bias: queries, keys and values, and the head of a token classifier."""
    return {"qkv_proj"} | score_bias(config)


QWEN2 = LLAMA._replace(
    title="Qwen2, Qwen2.5",
    model_types=["qwen2"],
    lm_class="Qwen2ForCausalLM",
    read_config=read_config,
    harmless=["attention_bias", "mlp_bias"],  # transformers' Qwen2 has fixed biases, whatever these say
    biases=biases,
    gguf=Gguf("qwen2", partial(metadata.decoder, model_type="qwen2"), GGUF_NAMES, checked="llama.cpp"),
)
