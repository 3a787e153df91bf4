"""Attention with cuBLAS: equal to `attention.attention`, and used only in its place."""

from functools import partial

import numpy as np
import pytest
from kernel_models import random_lm
from libraries import NUMPY
from models import random_gpt2_weights, random_ids, tiny_gpt2_config
from tolerance import assert_close

import npllm
from npllm import attention as plain
from npllm.cuda import attention as module
from npllm.cuda.attention import cuda_attention, evenly_spaced, on_cuda
from npllm.devices.device import to_host
from npllm.families.gpt2 import gpt2_transform
from npllm.flash import flash_attention
from npllm.model import transform


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "new", "past"),
    [
        ((), 4, 4, 1, 6),
        ((), 4, 2, 1, 6),
        ((), 4, 1, 3, 6),
        ((2,), 4, 2, 1, 6),
        ((2,), 4, 2, 3, 5),
        ((3, 2), 2, 1, 2, 0),
    ],
)
def test_attention_in_place_is_attention(cupy, batch, heads, kv_heads, new, past, dtype):
    """Runs on a view of the filled part of a cache, and compares every tapped value."""
    random, width, capacity = np.random.default_rng(0), 5, 11
    q = random.standard_normal((*batch, heads, new, width)).astype(np.float32)
    k, v = (random.standard_normal((*batch, kv_heads, capacity, width)).astype(dtype) for _ in range(2))
    filled = (..., slice(0, past + new), slice(None))
    visible = np.tri(new, past + new, past, dtype=bool)
    expected, got = {}, {}
    plain.attention(q, *(x.astype(np.float32)[filled] for x in (k, v)), visible, tap=npllm.record(expected))
    on_device = [cupy.asarray(x)[filled] for x in (k, v)]
    assert all(evenly_spaced(x) for x in on_device)
    cuda_attention(cupy.asarray(q), *on_device, cupy.asarray(visible), tap=npllm.record(got))
    assert list(got) == list(expected) == ["scores", "weights", "mixed"]
    for name, value in got.items():
        assert value.dtype == np.float32
        assert_close(name, to_host(value).astype(dtype), expected[name].astype(dtype))


@pytest.mark.cuda
def test_attention_on_keys_and_values_without_a_cache(cupy):
    """Inputs laid out as by the fused projection: each row holds all heads."""
    random = np.random.default_rng(0)
    qkv = random.standard_normal((2, 3, 8, 5)).astype(np.float32)  # [B, T, N + 2K, H]
    arrays = [np.moveaxis(qkv[..., part, :], -2, -3) for part in (slice(0, 4), slice(4, 6), slice(6, 8))]
    views = cupy.moveaxis(cupy.asarray(qkv), -2, -3)
    on_device = [views[:, part] for part in (slice(0, 4), slice(4, 6), slice(6, 8))]
    assert_close("mixed", to_host(cuda_attention(*on_device)), plain.attention(*arrays))
    columns = [cupy.asarray(np.swapaxes(x, -1, -2).copy()).swapaxes(-1, -2) for x in arrays]
    assert not evenly_spaced(columns[1])
    assert_close("mixed", to_host(cuda_attention(*columns)), plain.attention(*arrays))


# Where it is used


@pytest.fixture
def used(monkeypatch):
    """The number of calls to `cuda_attention`, which here runs on NumPy."""
    calls = []

    def counting(*arguments, **options):
        calls.append(arguments)
        return plain.attention(*arguments, **options)

    monkeypatch.setattr(module, "cuda_attention", counting)
    return calls


@pytest.mark.parametrize("block", [{}, {"block": npllm.block.block}])
def test_a_pass_on_the_gpu_uses_it(used, block):
    lm, ids = random_lm(NUMPY), random_ids(random_lm(NUMPY).config, 4)
    expected, _ = transform(ids, lm.weights, lm.config)
    for options in ({}, {"attention": plain.attention}):
        made, _ = on_cuda(partial(transform, **block))(ids, lm.weights, lm.config, **options)
        np.testing.assert_array_equal(made, expected)
    assert len(used) == 2 * lm.config.num_hidden_layers


def test_gpt2_on_the_gpu_uses_it(used):
    config = tiny_gpt2_config()
    on_cuda(gpt2_transform)(random_ids(config, 4), random_gpt2_weights(config), config)
    assert len(used) == config.num_hidden_layers


def test_another_attention_stays(used):
    """One passed by the caller, and one that belongs to the pass."""

    def doubled(*arguments, **options):
        return 2 * plain.attention(*arguments, **options)

    def own_transform(*arguments, attention=doubled, **options):
        return transform(*arguments, attention=attention, **options)

    def without(ids, weights, config, cache=None):
        return transform(ids, weights, config, cache, attention=doubled)

    lm, ids = random_lm(NUMPY), random_ids(random_lm(NUMPY).config, 4)
    expected, _ = transform(ids, lm.weights, lm.config, attention=doubled)
    for made in (
        on_cuda(transform)(ids, lm.weights, lm.config, attention=doubled),
        on_cuda(own_transform)(ids, lm.weights, lm.config),
        on_cuda(without)(ids, lm.weights, lm.config),
    ):
        np.testing.assert_array_equal(made[0], expected)
    on_cuda(transform)(ids, lm.weights, lm.config, attention=flash_attention)
    assert used == []
