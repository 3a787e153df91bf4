"""config.json to a `Config`: every key checked before anything of that size is allocated."""

from collections.abc import Mapping
from typing import Any

from ..config import Config
from ..errors import ModelFileError
from ..text.end_ids import read_token_ids
from .gpt2 import GPT2_KEYS, gpt2_keys

MODEL_TYPES = ("phi3", "llama", "mistral", "qwen2", "gpt2")
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
MOST_LABELS = 2**16
# Beyond any model that exists: a config.json that asks for more is broken or hostile, and refused before allocating.
LARGEST = {
    "vocab_size": 2**24,  # and float32 holds every id below 2**24 exactly
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "max_position_embeddings": 2**27,
}
ROPE_SCALING_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_config(keys: Mapping[str, Any], where: str = "config.json") -> Config:
    """The parsed config.json, checked, with the defaults that its model_type implies.

    Raises
    ------
    ModelFileError : a key is missing, of the wrong type, out of range, or asks for what npllm does not compute
    """

    model_type = keys.get("model_type")
    gpt2 = model_type == "gpt2"
    if gpt2:
        keys = gpt2_keys(keys, where)

    def refuse(
        key: str, expected: str, do: str = "check that the file belongs to this model", source: Mapping[str, Any] = keys
    ) -> ModelFileError:
        name = GPT2_KEYS.get(key, key) if gpt2 else key
        return ModelFileError(f"{where}: {name}: expected {expected}, got {source.get(key)!r}; {do}")

    def integer(key: str, default: int | None = None, least: int = 1) -> int:
        value = default if keys.get(key) is None else keys[key]
        most = LARGEST.get(key, 2**31)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(key: str, default: float | None = None, source: Mapping[str, Any] = keys) -> float:
        value = default if source.get(key) is None else source[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
            raise refuse(key, "a positive number", source=source)
        return float(value)

    def boolean(key: str) -> bool:
        value = False if keys.get(key) is None else keys[key]
        if not isinstance(value, bool):
            raise refuse(key, "true or false")
        return value

    if model_type not in MODEL_TYPES:
        raise refuse("model_type", "one of " + ", ".join(MODEL_TYPES), "npllm computes these architectures")
    if keys.get("hidden_act", "silu") not in ("silu", "swish"):
        raise refuse("hidden_act", "'silu'", "npllm computes SwiGLU networks")

    layers, heads = integer("num_hidden_layers"), integer("num_attention_heads")
    absent = 8 if model_type == "mistral" and "num_key_value_heads" not in keys else heads
    kv_heads = integer("num_key_value_heads", default=absent)
    if heads % kv_heads:
        raise refuse("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    hidden = integer("hidden_size")
    if keys.get("head_dim") is None and hidden % heads:
        raise refuse("hidden_size", f"a multiple of num_attention_heads, {heads}, where there is no head_dim")
    head_dim = integer("head_dim", default=hidden // heads)

    # Newer files keep all of RoPE in rope_parameters; older ones have rope_theta and rope_scaling at the top.
    rope = keys.get("rope_parameters") or {}
    scaling = keys.get("rope_scaling") or rope
    if not isinstance(rope, Mapping) or not isinstance(scaling, Mapping):
        raise refuse("rope_scaling", "an object")
    partial = 1.0
    if model_type == "phi3":  # the others rotate the whole head
        partial = number("partial_rotary_factor", number("partial_rotary_factor", 1.0), source=rope)
    if not gpt2 and (partial > 1 or int(head_dim * partial) % 2 or int(head_dim * partial) == 0):
        raise ModelFileError(
            f"{where}: head_dim, partial_rotary_factor: expected an even number of rotated dimensions up to head_dim,"
            f" got {head_dim} x {partial}; RoPE turns dimensions in pairs"
        )

    window = keys.get("sliding_window", 4096 if model_type == "mistral" else None)
    if model_type == "llama" or (model_type == "qwen2" and keys.get("use_sliding_window") is not True):
        window = None
    if window is not None:
        window = integer("sliding_window", default=4096)
    first_sliding = integer("max_window_layers", default=28, least=0) if model_type == "qwen2" else 0
    layer_types = tuple(
        "sliding_attention" if window and layer >= first_sliding else "full_attention" for layer in range(layers)
    )
    if model_type == "qwen2" and keys.get("layer_types") is not None:
        given, known = keys["layer_types"], ("full_attention", "sliding_attention")
        if not isinstance(given, list) or len(given) != layers or not all(kind in known for kind in given):
            raise refuse("layer_types", f"{layers} of 'full_attention' and 'sliding_attention'")
        layer_types = tuple(given)

    architectures = () if keys.get("architectures") is None else keys["architectures"]
    if not isinstance(architectures, list | tuple) or not all(isinstance(name, str) for name in architectures):
        raise refuse("architectures", "a list of names")
    architectures = tuple(architectures)
    classifies = any(name.endswith(CLASSIFIERS) for name in architectures)

    return Config(
        model_type=model_type,
        vocab_size=integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=integer("max_position_embeddings"),
        rms_norm_eps=0.0 if gpt2 else number("rms_norm_eps"),
        layer_norm_epsilon=number("layer_norm_epsilon", 1e-5) if gpt2 else 0.0,
        rope_theta=number("rope_theta", number("rope_theta", 10000.0), source=rope),
        rope_scaling=read_rope_scaling(scaling, where),
        partial_rotary_factor=partial,
        sliding_window=window,
        layer_types=layer_types,
        tie_word_embeddings=boolean("tie_word_embeddings"),
        attention_bias=model_type == "qwen2" or boolean("attention_bias"),
        mlp_bias=boolean("mlp_bias"),
        eos_token_id=read_token_ids(keys, "eos_token_id", where),
        pad_token_id=next(iter(read_token_ids(keys, "pad_token_id", where)), None),
        architectures=architectures,
        id2label=read_labels(keys, where) if classifies else (),
        problem_type=keys.get("problem_type") if classifies else None,
    )


def read_labels(keys: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The labels in the order of their scores: config.json's id2label, {"0": "NEGATIVE", "1": "POSITIVE"}.

    Where it has none there are `num_labels`, by default two, with the names that transformers does not write down.
    """
    labels = keys.get("id2label")
    if labels is None:
        count = 2 if keys.get("num_labels") is None else keys["num_labels"]
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise ModelFileError(f"{where}: num_labels: expected a number from 1 to {MOST_LABELS}, got {count!r}")
        return tuple(f"LABEL_{i}" for i in range(count))
    ids = [str(i) for i in range(len(labels))] if isinstance(labels, Mapping) else []
    if not ids or {*ids} != {*labels} or not all(isinstance(label, str) for label in labels.values()):
        raise ModelFileError(
            f"{where}: id2label: expected an object of labels, with the keys from 0 on, got {str(labels)[:80]!r}"
        )
    return tuple(labels[i] for i in ids)


def read_rope_scaling(scaling: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """config.json's rope_scaling (or rope_parameters), checked; None where positions are not scaled.

    Raises
    ------
    ModelFileError : a type that npllm does not compute (it would give wrong numbers, so it is never ignored)
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    needed = ROPE_SCALING_KEYS.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise ModelFileError(
            f"{where}: rope_scaling: expected one of default, {', '.join(ROPE_SCALING_KEYS)}, got {kind!r};"
            " npllm does not compute this scaling: use a checkpoint without it"
        )
    for key in needed:
        value = scaling.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
            raise ModelFileError(f"{where}: rope_scaling.{key}: expected a positive number, got {value!r}")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ModelFileError(
            f"{where}: rope_scaling.high_freq_factor: expected more than low_freq_factor,"
            f" {scaling['low_freq_factor']}, got {scaling['high_freq_factor']}"
        )
    return {"rope_type": kind} | {key: float(scaling[key]) for key in needed}
