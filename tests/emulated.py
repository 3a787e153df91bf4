"""CuPy for the tests: on a GPU, or on cupy-on-cpu's emulated device.

    PYTHONPATH=$CUPY_ON_CPU python -m pytest -p cupy_on_cpu.plugin -m cuda

The plugin puts the emulated device under the CuPy wheel before the tests are collected. Tests that count launches,
copies or bytes need the emulated device.
"""

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bridge import tool
from libraries import library

import npllm
from npllm.cache import Cache, empty_cache
from npllm.config import Config
from npllm.devices.device import Device
from npllm.devices.transfer import reserve
from npllm.shapes import BlockWeights, Weights


@pytest.fixture(scope="module")
def cupy() -> Any:
    """The cupy module. Skips the test, with the reason, if CuPy or a device is missing."""
    library("cupy")
    return sys.modules["cupy"]


@pytest.fixture(scope="module")
def emulator(cupy) -> Any:
    """The cupy_on_cpu module, which records the calls to the emulated device."""
    if "cupy_on_cpu" not in sys.modules:
        pytest.skip("needs the emulated device: python -m pytest -p cupy_on_cpu.plugin")
    return sys.modules["cupy_on_cpu"]


def phi3_mini() -> Config:
    """The model from the chapter."""
    return tool("gpu_model").config()


def empty_model(cupy: Any, config: Config) -> npllm.LM:
    """A model of this shape on the GPU, with float16 matrices, float32 vectors and uninitialized values."""
    gc.collect()  # another test's model may survive in a traceback cycle, and two do not fit
    cupy.get_default_memory_pool().free_all_blocks()
    reserve(Device("cuda:0", cupy))
    D, F, V, H = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads

    def matrix(*shape: int) -> Any:
        return cupy.empty(shape, dtype=np.float16)

    def norm() -> Any:
        return cupy.empty(D, dtype=np.float32)

    layers = tuple(
        BlockWeights(norm(), matrix((N + 2 * K) * H, D), matrix(D, N * H), norm(), matrix(2 * F, D), matrix(D, F))
        for _ in range(config.num_hidden_layers)
    )
    weights = Weights(matrix(V, D), layers, norm(), matrix(V, D))
    return npllm.LM(config, weights, None, {})


def matrices(lm: npllm.LM) -> list[Any]:
    """The weight matrices of all blocks."""
    return [weight for block in lm.weights.layers for weight in block if weight is not None and weight.ndim == 2]


def weight_bytes(lm: npllm.LM) -> int:
    """The size of all weights in bytes, each counted once."""
    arrays = {id(array): array for array in (*lm.weights, *(w for block in lm.weights.layers for w in block))}
    return sum(getattr(array, "nbytes", 0) for array in arrays.values())


def filled_cache(lm: npllm.LM, past: int, capacity: int, **options: Any) -> Cache:
    """A KV cache marked as holding `past` tokens."""
    cache = empty_cache(lm.config, capacity, like=lm.weights.norm, **options)
    cache["length"] = past
    return cache


def cache_bytes(cache: Cache) -> int:
    """The size of all keys and values in bytes."""
    return sum(array.nbytes for name in ("keys", "values") for array in cache[name])


def decoding(lm: npllm.LM, past: int, cache: Cache, **options: Any) -> Iterator[npllm.Step]:
    """The loop's steps after `past` cached tokens and one new one. The first two steps have run, as warm-up."""
    cache["length"] = past
    steps = npllm.steps(lm, [1] * (past + 1), cache=cache, **options)
    next(steps), next(steps)
    return steps
