"""A .gguf file's metadata as the keys of config.json, so that one function checks both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config, RopeScaling
from ..errors import ModelFileError
from ..families import gguf_keys, read_config
from ..families.metadata import Metadata
from ..families.scaling import llama3
from ..storage.stored import Stored, read_rows


def read_gguf_config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Config:
    """The configuration of the model in a .gguf file; errors as in `families.gguf_keys` and `families.read_config`."""
    config = read_config(config_keys(path, metadata, tensors), where=str(path))
    return replace(config, rope_scaling=rope_freqs(config, tensors) or config.rope_scaling)


def config_keys(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The keys of config.json for a .gguf file, except for Llama 3's scaling, which is a tensor."""
    keys = gguf_keys(Metadata(path, metadata, {name: stored.shape for name, stored in tensors.items()}))
    for length in ("short", "long"):
        stored = tensors.get(f"rope_factors_{length}.weight")
        if stored is not None:
            if (keys.get("rope_scaling") or {}).get("rope_type") != "longrope":
                raise ModelFileError(f"{path}: {stored.name}: expected no LongRoPE factors in a model of this family")
            keys["rope_scaling"][f"{length}_factor"] = list(factors_in(stored))
    return keys


def rope_freqs(config: Config, tensors: Mapping[str, Stored]) -> RopeScaling | None:
    """Llama 3's scaling, a tensor in these files: the divisor of each pair's frequency. None without scaling.

    Raises
    ------
    ModelFileError : invalid factors
    """
    stored = tensors.get("rope_freqs.weight")
    if stored is None:
        return None
    factors = factors_in(stored)
    if len(factors) != config.rotary_dim // 2:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {config.rotary_dim // 2} factors, got {len(factors)}"
        )
    if all(factor == 1 for factor in factors):
        return None
    if config.rope_scaling is not None:
        kind = config.rope_scaling.kind
        raise ModelFileError(f"{stored.path}: {stored.name}: expected one scaling, got these factors and a {kind} one")
    return RopeScaling("factors", factors)


def factors_in(stored: Stored) -> tuple[float, ...]:
    """The factors in a tensor: positive float32 numbers, one for each pair."""
    if stored.dtype != "F32" or len(stored.shape) != 1:
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected F32 of one dimension, got {stored.dtype} {list(stored.shape)}"
        )
    factors = np.concatenate(list(read_rows(stored)))[:, 0]
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(f"{stored.path}: {stored.name}: expected positive numbers, got {factors.min()}")
    return tuple(float(factor) for factor in factors)


def llama3_scaling(config: Config) -> dict[str, Any]:
    """The keys of config.json for a file's factors: those of Llama 3, which are the same in every size.

    Raises
    ------
    ModelFileError : they are other factors, which config.json cannot express
    """
    assert config.rope_scaling is not None
    factors = config.rope_scaling.factors
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = {"rope_type": "llama3", "factor": max(factors), **published}
    if not np.allclose(llama3(scaling, config.rope_theta, len(factors)).factors, factors, rtol=1e-4):
        raise ModelFileError(
            "rope_freqs.weight: expected the factors of Llama 3.1 to 3.3, got others, which config.json cannot express;"
            " keep the .gguf file"
        )
    return scaling
