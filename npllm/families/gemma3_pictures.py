"""Gemma 3 with pictures: the text part of the models that also read pictures, without their vision encoder.

Their config.json is a frame: Gemma 3's own keys are in `text_config`, and many files leave most of them to
transformers. The tensors have a prefix more, and those of the vision encoder are not read. A text without pictures
has the same logits as in the whole model.

Source: Gemma Team 2025, "Gemma 3 technical report"; https://huggingface.co/docs/transformers/model_doc/gemma3
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import common, gemma3
from .gemma import GemmaConfig
from .gemma3 import GEMMA3
from .keys import Keys

# What transformers takes for missing keys of `text_config`.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
}
# Tensors of the other parts of the model, in older files and in newer ones.
NOT_READ = tuple(f"{prefix}{part}." for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))
PICTURES = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
# transformers reads these in `text_config` alone.
OF_TEXT: tuple[str, ...] = (
    "sliding_window",
    "layer_types",
    "use_sliding_window",
    "attention_bias",
    "mlp_bias",
    "head_dim",
)
OF_TEXT += ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def read_config(keys: Keys) -> GemmaConfig:
    """The configuration of the text part: Gemma 3's, from `text_config`. The whole model has no cap on its logits."""
    keys.allow_only({key: values for key, values in common.ALLOWED.items() if key != "text_config"})
    if any(name.endswith(common.CLASSIFIERS) for name in keys.strings("architectures")):
        raise keys.refusal("architectures", "a model that continues a text, not a classifier")
    outer = {key: keys.get(key) for key in ("architectures", "eos_token_id") if keys.get(key) is not None}
    part = keys.object("text_config")
    if not part.keys() - {"model_type"}:  # the defaults are those of no published model
        raise keys.refusal("text_config", "the keys of the text part", "there are none")
    inside = {**DEFAULTS, **part, **outer}
    inside["tie_word_embeddings"] = keys.boolean("tie_word_embeddings", True)
    keys.mark_read("id2label", "problem_type", "num_labels", "pad_token_id")  # only a classifier needs them
    text = Keys(inside, f"{keys.where}: text_config")
    if inside.get("model_type", "gemma3_text") != "gemma3_text":
        raise text.refusal("model_type", "'gemma3_text'")
    text.allow_only({"final_logit_softcapping": (None,)})
    config = gemma3.read_config(text)
    text.finish(common.HARMLESS | {*GEMMA3.harmless})
    return replace(config, family="gemma3")


def text_part(keys: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """config.json of the text part alone, which is a Gemma 3 without pictures, and its name."""
    found = {**DEFAULTS, **(keys.get("text_config") or {})}
    found |= {key: keys[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if keys.get(key) is not None}
    tied = keys.get("tie_word_embeddings")
    found |= {"model_type": GEMMA3.model_types[0], "architectures": [GEMMA3.lm_class]}
    return found | {"tie_word_embeddings": True if tied is None else tied}, "the text part"


def framed(spellings: str) -> str:
    """The names of a weight in these files, newer and older, from those in Gemma 3's.

    >>> framed("model.norm")
    'model.language_model.norm | language_model.model.norm'
    """
    newer = spellings.replace("model.", "model.language_model.")
    older = " ".join(name if name == "|" else f"language_model.{name}" for name in spellings.split())
    return f"{newer} | {older}"


GEMMA3_PICTURES = GEMMA3._replace(
    title="Gemma 3 with pictures",
    model_types=["gemma3"],
    lm_class="Gemma3ForConditionalGeneration",
    read_config=read_config,
    harmless=[*PICTURES, *OF_TEXT],
    names={name: framed(spellings) for name, spellings in GEMMA3.names.items()},
    traced={name: path.replace("model.", "model.language_model.", 1) for name, path in GEMMA3.traced.items()},
    not_read=NOT_READ,
    part=text_part,
    classifiers=[],
    gguf=None,
)
