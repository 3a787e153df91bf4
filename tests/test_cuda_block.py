"""The kernel block, computed with the kernels' definitions, gives the plain block's values. No GPU is needed."""

import inspect
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_models import TWIN_BLOCK, pass_by_pass, random_lm
from libraries import NUMPY
from models import config_keys, random_ids, tiny_config
from tolerance import assert_close

import npllm
from npllm.attention import attention
from npllm.cache import empty_cache
from npllm.cuda import kernels, twins
from npllm.cuda.step import replayed
from npllm.devices.device import to_host
from npllm.model import transform
from npllm.rope import rope_tables

LAUNCHED = ["embed", "rms_norm", "matvec", "swiglu", "rope_and_append", "attention", "advance"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_kernel_and_its_definition_have_the_same_parameters(name):
    kernel, twin = getattr(kernels, name), getattr(twins, name)
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(twin).parameters)


@given(keys=config_keys(), biases=st.booleans(), seed=st.integers(0, 5))
def test_the_second_block_is_the_block(writable_lib, keys, biases, seed):
    lm, ids = random_lm(writable_lib, seed, biases, **keys), writable_lib.array(random_ids(tiny_config(), 8))
    chunks = (3, 1, 1, 2, 1)
    expected, one = pass_by_pass(lm, ids, transform, chunks)
    blocks, two = pass_by_pass(lm, ids, partial(transform, block=TWIN_BLOCK), chunks)
    steps, three = pass_by_pass(lm, ids, replayed(transform, twins), chunks)
    for number, all_three in enumerate(zip(expected, blocks, steps, strict=True)):
        assert_close(f"pass {number}", all_three[1], all_three[0])
        assert_close(f"captured pass {number}", all_three[2], all_three[0])
    for name in ("keys", "values"):
        for layer in range(lm.config.num_hidden_layers):
            for cache in (two, three):
                assert_close(name, to_host(cache[name][layer]), to_host(one[name][layer]))
    assert one["length"] == two["length"] == three["length"] == 8


def test_one_token_after_a_cache_goes_through_the_kernels(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 4)
    pass_by_pass(lm, ids, partial(transform, block=TWIN_BLOCK), (2, 1, 1))
    assert counted == {"block": 2 * 2, "step": 0}
    pass_by_pass(lm, ids, replayed(transform, twins), (2, 1, 1))
    assert counted == {"block": 4 * 2, "step": 2}


def doubled(q, k, v, visible, *, tap):
    return 2 * attention(q, k, v, visible, tap=tap)


@pytest.mark.parametrize(
    "options",
    [{"tap": lambda name, value: value}, {"attention": doubled}, {"visible": np.array([[True, False, True]])}, {}],
    ids=["tap", "attention", "visible", "nothing"],
)
def test_the_second_block_heeds_its_arguments(counted, options):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    made = []
    for block in ({}, {"block": TWIN_BLOCK}):
        _, cache = pass_by_pass(lm, ids[:2], transform, (2,))
        made.append(pass_by_pass(lm, ids[2:], transform, (1,), cache, **options, **block)[0][0])
    assert_close("hidden", made[1], made[0])
    assert counted["block"] == (0 if "tap" in options or "attention" in options else 2)


def test_a_batch_and_a_pass_without_cache_take_the_plain_block(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 2, 1)
    cache = empty_cache(lm.config, 3, (2,), like=lm.weights.norm)
    for whole_pass in (partial(transform, block=TWIN_BLOCK), replayed(transform, twins)):
        cache["length"] = 0
        np.testing.assert_array_equal(whole_pass(ids, lm.weights, lm.config, cache)[0], npllm.transform(ids, lm)[0])
        np.testing.assert_array_equal(whole_pass(ids[0], lm.weights, lm.config)[0], npllm.transform(ids[0], lm)[0])
    assert counted == {"block": 0, "step": 0}


def test_a_batch_of_one_goes_through_the_kernels(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 1, 1)
    one, two = (empty_cache(lm.config, 3, (1,), like=lm.weights.norm) for _ in range(2))
    got, _ = npllm.transform(ids, lm, one, block=TWIN_BLOCK)
    assert_close("hidden", got, npllm.transform(ids, lm, two)[0])
    assert counted == {"block": 2, "step": 0}


def test_a_step_changes_none_of_its_arguments():
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 2)
    x = np.ones((1, 8), dtype=np.float32)
    _, cache = pass_by_pass(lm, ids, transform, (2,))
    tables = rope_tables(np.array([2]), lm.config, 3)
    TWIN_BLOCK(x, lm.weights.layers[0], lm.config, *tables, None, cache, 0)
    np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("whole_pass", [partial(transform, block=TWIN_BLOCK), replayed(transform, twins)])
def test_a_full_cache_is_refused(whole_pass):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 1)
    cache = empty_cache(lm.config, 3, like=lm.weights.norm)
    cache["length"] = 3
    with pytest.raises(ValueError, match="KV cache: expected room for 4 tokens, got 3"):
        whole_pass(ids, lm.weights, lm.config, cache)


@pytest.mark.parametrize(
    ("array", "dtypes", "what"),
    [
        (np.zeros(4), (), "float64"),
        (np.zeros(5, np.float32), (), "4 elements of float32"),
        (np.zeros(8, np.float32)[::2], (), "strides"),
        (np.zeros(4, np.float32), ("int32", "int64"), "int32 or int64"),
    ],
)
def test_a_kernel_refuses_memory_that_it_would_misread(array, dtypes, what):
    with pytest.raises(TypeError, match=what):
        kernels.checked(array, 4, *dtypes)
