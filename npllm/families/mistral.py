"""Mistral and Ministral: Llama with a sliding window, in all layers or in those that the file lists.

Source: Jiang et al. 2023, "Mistral 7B"; https://huggingface.co/docs/transformers/model_doc/mistral
"""

from ..config import Config
from . import common
from .keys import Keys
from .llama import ALLOWED, LLAMA, score_bias


def read_config(keys: Keys) -> Config:
    """Mistral's config.json. Ministral adds `layer_types`: the layers with the window; others have full attention."""
    keys.allow_only(ALLOWED)
    sizes = common.sizes(keys, kv_heads=8)
    layers = sizes["num_hidden_layers"]
    window = keys.optional("sliding_window", absent=4096)
    kinds = common.layer_types(keys, layers, default=common.windows(layers, window), window=window)
    return Config(
        family="mistral",
        **sizes,
        **common.rope(keys, sizes["head_dim"]),
        **common.head(keys),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        sliding_window=window,
        layer_types=kinds,
    )


MISTRAL = LLAMA._replace(
    title="Mistral, Ministral",
    model_types=["mistral", "ministral"],
    lm_class="MistralForCausalLM",
    read_config=read_config,
    # transformers' Mistral has no biases.
    harmless=["attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers"],
    biases=score_bias,
)
