"""Keys of config.json that most families share, as fields of `Config`.

Each function returns some fields by name, for `Config(family=..., **sizes(keys), **rope(keys), **head(keys), ...)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import RopeScaling
from ..errors import ModelFileError
from ..text.end_ids import read_token_ids
from . import scaling
from .keys import POSITIVE, Keys, is_positive

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
KINDS = ("full_attention", "sliding_attention")
KINDS_OF_ROPE = {kind: kind for kind in scaling.SCALINGS}
# Keys that never affect the computation: training, what a model returns, generation (pipeline reads its options from
# generation_config.json), and the file's origin.
HARMLESS = frozenset(
    (
        *("model_type", "transformers_version", "torch_dtype", "dtype", "auto_map", "quantization_config"),
        *("name_or_path", "transformers.js_config", "unsloth_version", "unsloth_fixed", "tokenizer_class"),
        *("initializer_range", "use_cache", "gradient_checkpointing", "pretraining_tp", "attn_implementation"),
        *("attention_dropout", "hidden_dropout", "classifier_dropout", "experts_implementation"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript", "use_bfloat16"),
        *("bos_token_id", "sep_token_id", "decoder_start_token_id", "label2id", "finetuning_task", "prefix"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "tie_encoder_decoder"),
        *("cross_attention_hidden_size", "pruned_heads", "task_specific_params", "tie_last_hidden_states"),
        *("temperature", "top_k", "top_p", "typical_p", "do_sample", "num_beams", "num_beam_groups", "early_stopping"),
        *("max_length", "min_length", "length_penalty", "repetition_penalty", "diversity_penalty", "bad_words_ids"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "suppress_tokens"),
        *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
        *("output_scores", "return_dict_in_generate", "remove_invalid_values", "tf_legacy_loss"),
        *("allow_global_per_layer_attribute_access", "serialize_explicit_per_layer_config"),
    )
)
# Keys that affect the computation in every family, with the values that npllm computes; any other value is refused.
# `is_causal: false` is bidirectional attention; in transformers null is too, in some implementations of attention.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "is_decoder": (True, False, None),  # an encoder's key, which no decoder reads
    "per_layer_config": (None, {}),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "text_config": (None,),
    "add_cross_attention": (False, None),
    "token_classification_bias": (None, True),
}


def sizes(keys: Keys, kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, Any]:
    """The sizes of a model.

    kv_heads : the default for a file without `num_key_value_heads`; None for the number of query heads
    head_dim : the default for a file without `head_dim`; None for the model width divided by the number of query heads
    """
    layers, heads, hidden = (keys.integer(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    absent = heads if kv_heads is None or keys.has("num_key_value_heads") else kv_heads
    shared = keys.integer("num_key_value_heads", default=absent)
    if heads % shared:
        raise keys.refusal("num_key_value_heads", f"a divisor of num_attention_heads, {heads}", got=shared)
    if keys.get("head_dim", head_dim) is None and hidden % heads:
        raise keys.refusal("hidden_size", f"a multiple of num_attention_heads, {heads}, if head_dim is missing")
    return {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": keys.integer("head_dim", default=head_dim or hidden // heads),
        "max_position_embeddings": keys.integer("max_position_embeddings"),
    }


def rope(
    keys: Keys,
    head_dim: int,
    partial: bool = False,
    theta: float = 10000.0,
    kinds: Mapping[str, str] = KINDS_OF_ROPE,
    original: int | None = None,
    default: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of RoPE: how fast each pair of dimensions turns, and how many dimensions turn.

    Newer files have everything in `rope_parameters`; older ones have `rope_scaling`, and `rope_theta` at the top level.
    As in transformers, the two objects are synonyms, and their keys take precedence over the top level.

    partial : whether the family can rotate a part of each head; others ignore `partial_rotary_factor`, unless positions
        are scaled: then they refuse it
    theta : the default for a file without `rope_theta`
    kinds : the kinds of scaling, by their names in the family's files
    original : the family's default for a file without `original_max_position_embeddings` at the top level
    default : the family's object for a file without one
    """
    older, newer = keys.object("rope_scaling"), keys.object("rope_parameters")
    if default is not None and keys.get("rope_parameters") is None:
        newer = dict(default)
    where, inside = ("rope_scaling", older) if older else ("rope_parameters", newer)
    nested = [key for key, value in inside.items() if isinstance(value, Mapping)]
    if nested:
        raise keys.refusal(where, "one object for all layers", "npllm does not compute RoPE per layer here", got=nested)

    def number(key: str, default: float) -> float:
        outside = keys.get(key, default)
        value: Any = inside.get(key) if inside.get(key) is not None else outside
        if not is_positive(value):
            raise keys.refusal(f"{where}.{key}" if key in inside else key, POSITIVE, got=value)
        return float(value)

    base, scaled = number("rope_theta", theta), scaling_of(keys, inside, where, kinds) is not None
    factor = number("partial_rotary_factor", 1.0) if partial or scaled else 1.0
    keys.get("partial_rotary_factor")
    if factor != 1.0 and not partial:
        raise keys.refusal("partial_rotary_factor", "1.0", "npllm rotates whole heads here", got=factor)
    rotated = int(head_dim * factor)
    if factor > 1 or rotated % 2 or rotated == 0:
        raise ModelFileError(
            f"{keys.where}: head_dim, partial_rotary_factor: expected an even number of rotated dimensions up to"
            f" head_dim, got {head_dim} x {factor}; RoPE turns dimensions in pairs"
        )
    return {
        "rope_theta": base,
        "rope_scaling": rope_scaling(keys, inside, where, kinds, original, base, rotated // 2),
        "partial_rotary_factor": factor,
    }


def scaling_of(keys: Keys, inside: Mapping[str, Any], where: str, kinds: Mapping[str, str]) -> str | None:
    """The kind of scaling of positions that the file names; None if positions are not scaled.

    Raises
    ------
    ModelFileError : npllm does not compute this kind, and ignoring it would give wrong results
    """
    kind = inside.get("rope_type", inside.get("type", "default"))
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in kinds:
        expected = f"one of {', '.join(('default', *kinds))}"
        raise keys.refusal(where, expected, "npllm computes no other scaling: use a checkpoint without it", got=kind)
    return kinds[kind]


def rope_scaling(
    keys: Keys,
    inside: Mapping[str, Any],
    where: str,
    kinds: Mapping[str, str],
    original: int | None,
    theta: float,
    pairs: int,
) -> RopeScaling | None:
    """The scaling of positions, from validated keys; None if positions are not scaled."""
    outside = keys.get("original_max_position_embeddings", original)  # the top level takes precedence here
    kind = scaling_of(keys, inside, where, kinds)
    if kind is None:
        return None
    context = keys.get("max_position_embeddings")
    values = {"original_max_position_embeddings": context, **inside, "max_position_embeddings": context}
    values |= {} if outside is None else {"original_max_position_embeddings": outside}
    values = {key: value for key, value in values.items() if value is not None}
    optional = [key for key in scaling.OPTIONAL.get(kind, ()) if key in values]
    for key in (*scaling.NEEDED[kind], *optional):
        value: Any = values.get(key)
        if key in ("short_factor", "long_factor"):
            if not isinstance(value, list) or len(value) != pairs or not all(map(is_positive, value)):
                raise keys.refusal(f"{where}.{key}", f"{pairs} positive numbers, one for each pair", got=value)
            continue
        if not is_positive(value):
            raise keys.refusal(f"{where}.{key}", POSITIVE, got=value)
        values[key] = float(value)
    if kind in ("yarn", "longrope") and min(theta, values["original_max_position_embeddings"]) <= 1:
        raise keys.refusal(f"{where}.original_max_position_embeddings", "rope_theta and this to be more than 1")
    if not isinstance(values.get("truncate", True), bool):
        raise keys.refusal(f"{where}.truncate", "true or false", got=values["truncate"])
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        low = f"more than low_freq_factor, {values['low_freq_factor']}"
        raise keys.refusal(f"{where}.high_freq_factor", low, got=values["high_freq_factor"])
    return scaling.SCALINGS[kind](values, theta, pairs)


def head(keys: Keys, tied: bool = False, pad_token_id: int | None = None) -> dict[str, Any]:
    """The fields of the head (an LM head or a classifier), and the ids of special tokens.

    tied : the default for a file without `tie_word_embeddings`
    pad_token_id : the default for a classifier of texts
    """
    architectures = keys.strings("architectures")
    classifies = any(name.endswith(CLASSIFIERS) for name in architectures)
    keys.mark_read("id2label", "problem_type")  # only a classifier needs them
    labels = keys.optional("num_labels")
    pad, eos = (read_token_ids({key: keys.get(key)}, key, keys.where) for key in ("pad_token_id", "eos_token_id"))
    return {
        "tie_word_embeddings": keys.boolean("tie_word_embeddings", tied),
        "eos_token_id": eos,
        "pad_token_id": pad[0] if pad else pad_token_id if classifies and not keys.has("pad_token_id") else None,
        "architectures": architectures,
        "id2label": read_labels(keys, labels) if classifies else (),
        "problem_type": read_problem_type(keys) if classifies else None,
    }


def read_problem_type(keys: Keys) -> str | None:
    """What a classifier's scores mean; None if the file does not say."""
    return None if keys.get("problem_type") is None else keys.choice("problem_type", PROBLEM_TYPES)


def read_labels(keys: Keys, count: int | None) -> tuple[str, ...]:
    """The labels in the order of their scores: config.json's id2label, {"0": "NEGATIVE", "1": "POSITIVE"}.

    count : the file's num_labels. Without it and id2label there are two labels, with transformers' names
    """
    labels = keys.get("id2label")
    if labels is None:
        return tuple(f"LABEL_{i}" for i in range(count or 2))
    ids = [str(i) for i in range(len(labels))] if isinstance(labels, Mapping) else []
    if not ids or {*ids} != {*labels} or not all(isinstance(label, str) for label in labels.values()):
        raise keys.refusal("id2label", "an object of labels, with the keys from 0 on")
    if count not in (None, len(ids)):
        raise keys.refusal("num_labels", f"{len(ids)}, the number of labels in id2label")
    return tuple(labels[i] for i in ids)


def refuse_window(keys: Keys, context: int) -> None:
    """Refuse a sliding window in a family without one.

    transformers itself gives two answers there: its pass ignores the window, and its cache drops the keys outside it.
    """
    window = keys.get("sliding_window")
    kinds = keys.get("layer_types")
    full = isinstance(kinds, list) and bool(kinds) and all(kind == "full_attention" for kind in kinds)
    if window is not None and not full and not (isinstance(window, int) and window >= context):
        raise keys.refusal(
            "sliding_window", f"null, or at least the context of {context}", "this family has no windows"
        )
    if kinds is not None and not full:
        raise keys.refusal("layer_types", "full_attention alone", "this family has no windows")


def all_full(layers: int) -> tuple[str, ...]:
    """Layer types for full attention in every layer."""
    return ("full_attention",) * layers


def windows(layers: int, window: int | None, first: int = 0) -> tuple[str, ...]:
    """Layer types for a sliding window in every layer from `first` on; full attention without a window."""
    return tuple("sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers))


def layer_types(keys: Keys, layers: int, default: Sequence[str], window: int | None) -> tuple[str, ...]:
    """The layer types that the file lists, or the default."""
    kinds = keys.strings("layer_types", layers, KINDS) or tuple(default)
    if window is None and "sliding_attention" in kinds:
        raise keys.refusal("layer_types", "full_attention alone, since there is no sliding window", got=[*kinds])
    return kinds


def same_window(keys: Keys, layers: int, window: int | None) -> tuple[str, ...]:
    """The layer types of a family with the same window in all layers, or none."""
    kinds = windows(layers, window)
    if layer_types(keys, layers, kinds, window) != kinds:
        raise keys.refusal("layer_types", f"{kinds[0]} alone", "this family has the same window in all layers")
    return kinds
