"""Keys of config.json that most families share, read into the fields of `Config`.

Each function returns some fields of a `Config` by name, so that a family is read as
`Config(family=..., **sizes(keys), **rope(keys), **head(keys), ...)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelFileError
from .keys import Keys, is_positive

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
KINDS = ("full_attention", "sliding_attention")
ROPE_TYPES = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Keys of any family that change no number: training, generation (see text/end_ids.py for the ids that end a text),
# what a model returns, and how a file came about.
HARMLESS = frozenset(
    (
        *("transformers_version", "torch_dtype", "dtype", "auto_map", "quantization_config", "transformers.js_config"),
        *("initializer_range", "use_cache", "gradient_checkpointing", "pretraining_tp", "attn_implementation"),
        *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript"),
        *("bos_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class", "task_specific_params"),
        *("label2id", "finetuning_task", "chunk_size_feed_forward", "is_encoder_decoder", "tie_encoder_decoder"),
        *("use_bfloat16", "unsloth_version", "unsloth_fixed", "name_or_path", "model_type"),
    )
)
# Keys of transformers' base class that change numbers, and the values that do not. (A null `is_causal` is not absent:
# transformers takes it for false, and attends both ways.)
REFUSED = {
    "is_causal": (True,),
    "per_layer_config": (None, {}),
    "add_cross_attention": (False, None),
    "is_decoder": (False, True, None),
    "pruned_heads": ({}, None),
}


def sizes(keys: Keys, kv_heads: int | None = None) -> dict[str, Any]:
    """The widths and counts of a model.

    kv_heads : what a file without `num_key_value_heads` means; by default as many as query heads
    """
    layers, heads, hidden = (keys.integer(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    absent = heads if kv_heads is None or keys.has("num_key_value_heads") else kv_heads
    shared = keys.integer("num_key_value_heads", default=absent)
    if heads % shared:
        raise keys.refusal("num_key_value_heads", f"a divisor of num_attention_heads, {heads}", got=shared)
    if keys.get("head_dim") is None and hidden % heads:
        raise keys.refusal("hidden_size", f"a multiple of num_attention_heads, {heads}, where there is no head_dim")
    return {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": keys.integer("head_dim", default=hidden // heads),
        "max_position_embeddings": keys.integer("max_position_embeddings"),
    }


def rope(keys: Keys, head_dim: int, partial: bool = False, original: int | None = None) -> dict[str, Any]:
    """The fields of RoPE: how fast each pair of dimensions turns, and how many dimensions turn.

    Newer files keep all of it in `rope_parameters`; older ones have `rope_theta` at the top and `rope_scaling`. As in
    transformers the two are names of one object, and what is inside wins over the top level.

    partial : whether the family computes partial_rotary_factor
    original : what a file without `original_max_position_embeddings` means, for the scalings that need it
    """
    where = "rope_scaling" if keys.object("rope_scaling") else "rope_parameters"
    inside = keys.object("rope_scaling") or keys.object("rope_parameters")
    nested = [key for key, value in inside.items() if isinstance(value, Mapping)]
    if nested:
        raise keys.refusal(where, "one object for all layers", "npllm computes no RoPE by layer here", got=nested)

    def number(key: str, default: float) -> float:
        outside = keys.get(key, default)
        value = inside.get(key) if inside.get(key) is not None else outside
        if not is_positive(value):
            raise keys.refusal(f"{where}.{key}" if key in inside else key, "a positive number", got=value)
        return float(value)

    factor = number("partial_rotary_factor", 1.0)
    if factor != 1.0 and not partial:
        raise keys.refusal("partial_rotary_factor", "1.0", "this family rotates whole heads", got=factor)
    rotated = int(head_dim * factor)
    if factor > 1 or rotated % 2 or rotated == 0:
        raise ModelFileError(
            f"{keys.where}: head_dim, partial_rotary_factor: expected an even number of rotated dimensions up to"
            f" head_dim, got {head_dim} x {factor}; RoPE turns dimensions in pairs"
        )
    return {
        "rope_theta": number("rope_theta", 10000.0),
        "rope_scaling": rope_scaling(inside, where, keys, original),
        "partial_rotary_factor": factor,
    }


def rope_scaling(
    inside: Mapping[str, Any], where: str, keys: Keys, original: int | None = None
) -> dict[str, Any] | None:
    """The scaling of positions, checked; None where positions are not scaled.

    Raises
    ------
    ModelFileError : a type that npllm does not compute: ignored, it would give wrong numbers
    """
    kind = inside.get("rope_type", inside.get("type", "default"))
    if kind == "default":
        return None
    needed = ROPE_TYPES.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise keys.refusal(
            where, f"one of default, {', '.join(ROPE_TYPES)}", "npllm computes no other scaling", got=kind
        )
    values = {"original_max_position_embeddings": original} | inside
    for key in needed:
        if not is_positive(values.get(key)):
            raise keys.refusal(f"{where}.{key}", "a positive number", got=values.get(key))
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        low = f"more than low_freq_factor, {values['low_freq_factor']}"
        raise keys.refusal(f"{where}.high_freq_factor", low, got=values["high_freq_factor"])
    return {"rope_type": kind} | {key: float(values[key]) for key in needed}


def head(keys: Keys, tied: bool = False, pad_token_id: int | None = None) -> dict[str, Any]:
    """The fields of what comes after the blocks: the LM head or a classification head, and the ids with a meaning.

    tied : what a file without `tie_word_embeddings` means
    pad_token_id : what a file without it means to a head that classifies texts
    """
    architectures = keys.strings("architectures")
    classifies = any(name.endswith(CLASSIFIERS) for name in architectures)
    keys.read |= {"id2label", "num_labels", "problem_type"}  # only a classifier needs them
    pad = token_ids(keys, "pad_token_id")
    return {
        "tie_word_embeddings": keys.boolean("tie_word_embeddings", tied),
        "eos_token_id": token_ids(keys, "eos_token_id"),
        "pad_token_id": pad[0] if pad else None if keys.has("pad_token_id") else pad_token_id,
        "architectures": architectures,
        "id2label": read_labels(keys) if classifies else (),
        "problem_type": keys.get("problem_type") if classifies else None,
    }


def read_labels(keys: Keys) -> tuple[str, ...]:
    """The labels in the order of their scores: config.json's id2label, {"0": "NEGATIVE", "1": "POSITIVE"}.

    A file without it has `num_labels`, by default two, with the names that transformers gives them.
    """
    labels, count = keys.get("id2label"), keys.integer("num_labels", default=2)
    if labels is None:
        return tuple(f"LABEL_{i}" for i in range(count))
    ids = [str(i) for i in range(len(labels))] if isinstance(labels, Mapping) else []
    if not ids or {*ids} != {*labels} or not all(isinstance(label, str) for label in labels.values()):
        raise keys.refusal("id2label", "an object of labels, with the keys from 0 on")
    return tuple(labels[i] for i in ids)


def token_ids(keys: Keys, key: str) -> tuple[int, ...]:
    """One id, a list of ids or none, as a tuple."""
    value = keys.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise keys.refusal(key, "a token id or a list of them")
    return ids


def all_full(layers: int) -> tuple[str, ...]:
    """Every layer attends to everything before a token."""
    return ("full_attention",) * layers


def windows(layers: int, window: int | None, first: int = 0) -> tuple[str, ...]:
    """Layers from `first` on attend within a sliding window, where there is one."""
    return tuple("sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers))


def layer_types(keys: Keys, layers: int, default: Sequence[str]) -> tuple[str, ...]:
    """What each layer attends to, as the file lists it; the default where it does not."""
    return keys.strings("layer_types", layers, KINDS) or tuple(default)
