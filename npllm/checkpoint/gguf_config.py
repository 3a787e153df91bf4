"""A .gguf file's metadata as the keys of config.json, so that one function checks both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ModelFileError
from ..families import gguf_keys, read_config
from ..families.metadata import Metadata
from ..rope import rope_frequencies
from ..storage.stored import Stored, read_rows


def read_gguf_config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Config:
    """The configuration of the model in a .gguf file; errors as in `families.gguf_keys` and `families.read_config`."""
    config = read_config(config_keys(path, metadata, tensors), where=str(path))
    return replace(config, rope_scaling=rope_factors(config, tensors) or config.rope_scaling)


def config_keys(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The keys of config.json for a .gguf file, except for Llama 3's scaling, which is a tensor."""
    return gguf_keys(Metadata(path, metadata, {name: stored.shape for name, stored in tensors.items()}))


def rope_factors(config: Config, tensors: Mapping[str, Stored]) -> dict[str, Any] | None:
    """Llama 3's scaling, a tensor in these files: the divisor of each pair's frequency. None without scaling.

    Raises
    ------
    ModelFileError : Phi-3's long and short factors, which npllm does not compute; invalid factors
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
    """The keys of config.json for a file's factors: those of Llama 3, which are the same in every size.

    Raises
    ------
    ModelFileError : they are other factors, which config.json cannot express
    """
    factors = np.array((config.rope_scaling or {})["factors"])
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **published}
    like = np.zeros(0, dtype=np.float32)
    plain, slowed = (rope_frequencies(replace(config, rope_scaling=how), like) for how in (None, scaling))
    if not np.allclose(plain / slowed, factors, rtol=1e-4):
        raise ModelFileError(
            "rope_freqs.weight: expected the factors of Llama 3.1 to 3.3, got others, which config.json cannot express;"
            " keep the .gguf file"
        )
    return scaling
