"""A .gguf file's metadata as the keys of config.json, so that one function checks both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ModelFileError
from ..rope import rope_frequencies
from ..storage.stored import Stored, read_rows
from .config_json import read_config

ARCHITECTURES = ("llama", "phi3")
# Keys that change the computation in a way that npllm does not know. Ignored, they would give wrong numbers.
NOT_COMPUTED = (
    "expert_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def read_gguf_config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Config:
    """The configuration of the model in a .gguf file; errors as in `gguf_keys`."""
    config = read_config(gguf_keys(path, metadata, tensors), where=str(path))
    return replace(config, rope_scaling=rope_factors(config, tensors) or config.rope_scaling)


def gguf_keys(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The keys of config.json that a .gguf file's metadata mean; Llama 3's scaling, a tensor, is not among them.

    Some of it is told by the tensors: without an output matrix the embeddings are tied; biases are there or not;
    the vocabulary is as large as the embeddings matrix.

    Raises
    ------
    ModelFileError : an architecture, a rope scaling or a value that npllm does not compute
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"{path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r};"
            " npllm computes these architectures"
        )

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    def refuse(key: str, expected: str) -> ModelFileError:
        return ModelFileError(f"{path}: {architecture}.{key}: expected {expected}, got {get(key)!r}")

    for key in NOT_COMPUTED:
        if get(key):
            raise refuse(key, "none, because npllm does not compute it")

    def count(key: str, default: int | None = None) -> int:
        if type(value := get(key, default)) is not int or value < 1:
            raise refuse(key, "a whole number from 1")
        return value

    head_dim = count("attention.key_length", count("embedding_length") // count("attention.head_count"))
    if get("attention.value_length", head_dim) != head_dim:
        raise refuse("attention.value_length", f"that of the keys, {head_dim}")
    rotated = count("rope.dimension_count", head_dim)
    if architecture == "llama" and rotated != head_dim:
        raise refuse("rope.dimension_count", f"the head width, {head_dim}")
    if "token_embd.weight" not in tensors:
        raise ModelFileError(f"{path}: expected a tensor token_embd.weight, there is none; get the file again")

    # Files of Phi-3-mini-4k and Phi-3-medium-4k that are older than the key: their window is known.
    old_phi3_4k = architecture == "phi3" and get("context_length") == 4096 and get("block_count") in (32, 40)
    window = get("attention.sliding_window", 2047 if old_phi3_4k else 0)
    return {
        "model_type": "mistral" if architecture == "llama" and window else architecture,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv", get("attention.head_count")),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": shortest(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest(get("rope.freq_base", 10000.0)),
        "rope_scaling": rope_scaling(get, refuse),
        "partial_rotary_factor": rotated / head_dim,
        "sliding_window": window or None,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "eos_token_id": [metadata[key] for key in END_KEYS if key in metadata],
    }


def rope_scaling(get: Any, refuse: Any) -> dict[str, Any] | None:
    """The scaling of positions that the metadata ask for; only the linear one is computed."""
    kind = get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise refuse("rope.scaling.type", "none or linear, because npllm does not compute others")
    factor = get("rope.scaling.factor", get("rope.scale_linear", 1.0))
    return None if kind == "none" or factor in (0, 1) else {"rope_type": "linear", "factor": shortest(factor)}


def rope_factors(config: Config, tensors: Mapping[str, Stored]) -> dict[str, Any] | None:
    """Llama 3's scaling, which these files keep as a tensor: what to divide the frequency of each pair by.

    Raises
    ------
    ModelFileError : Phi-3's long and short factors, which npllm does not compute; factors that cannot be
    """
    for name, longrope in tensors.items():
        if name.startswith("rope_factors_"):
            raise ModelFileError(
                f"{longrope.path}: {name}: expected no LongRoPE factors, because npllm does not compute them;"
                " take a file of the 4k model"
            )
    stored = tensors.get("rope_freqs.weight")
    if stored is None:
        return None
    if stored.dtype != "F32" or stored.shape != (config.rotary_dim // 2,):
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected F32 [{config.rotary_dim // 2}],"
            f" got {stored.dtype} {list(stored.shape)}"
        )
    factors = next(read_rows(stored))[:, 0]
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(f"{stored.path}: {stored.name}: expected positive numbers, got {factors.min()}")
    if (factors == 1).all():
        return None
    if config.rope_scaling is not None:
        raise ModelFileError(f"{stored.path}: {stored.name}: expected one scaling, got these factors and a linear one")
    return {"rope_type": "factors", "factors": tuple(float(factor) for factor in factors)}


def llama3_scaling(config: Config) -> dict[str, Any]:
    """The keys of config.json that mean the same as a file's factors: Llama 3's, whose numbers are the same in all.

    Raises
    ------
    ModelFileError : they are other factors, for which config.json has no word
    """
    factors = np.array((config.rope_scaling or {})["factors"])
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **published}
    like = np.zeros(0, dtype=np.float32)
    plain, slowed = (rope_frequencies(replace(config, rope_scaling=how), like) for how in (None, scaling))
    if not np.allclose(plain / slowed, factors, rtol=1e-4):
        raise ModelFileError(
            "rope_freqs.weight: expected the factors of Llama 3.1 to 3.3, got others, which config.json cannot tell;"
            " keep the .gguf file"
        )
    return scaling


def shortest(value: Any) -> Any:
    """A float32 as the shortest decimal number that means it: 1e-05, where its digits are 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
