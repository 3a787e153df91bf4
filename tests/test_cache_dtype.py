"""A KV cache with 16-bit elements: half the memory, and nearly the same logits."""

import importlib

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_folder
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_ids, random_weights, tiny_config
from test_loop import random_lm
from tolerance import assert_close

import npllm
from npllm.apps.calls import generate, steps
from npllm.apps.chat import Chat, make_room
from npllm.apps.speculation import prompt_lookup
from npllm.cache import CACHE_DTYPES, append, empty_cache, grow, kv_cache_bytes
from npllm.devices.device import to_host
from npllm.devices.dtypes import dtype_like
from npllm.errors import NotEnoughMemoryError, UsageError
from npllm.flash import flash_attention
from npllm.model import forward

HALVES = ["float16", "bfloat16"]
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest relative rounding error
CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


def cache_of(name, config=CONFIG, capacity=16, like=WEIGHTS.norm):
    return empty_cache(config, capacity, like=like, dtype=dtype_like(name, like))


def logits_with(cache, ids, weights=WEIGHTS, config=CONFIG, sizes=(), **options):
    """The logits of the ids, computed in chunks of these sizes."""
    parts = np.split(ids, np.cumsum(sizes)) if len(sizes) else [ids]
    return np.concatenate([to_host(forward(part, weights, config, cache, **options)[0]) for part in parts])


def test_a_cache_holds_float32_unless_another_dtype_is_asked_for():
    assert all(array.dtype == np.float32 for array in empty_cache(CONFIG, 3, like=WEIGHTS.norm)["keys"])
    expected = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    for name, dtype in expected.items():
        cache = cache_of(name)
        assert all(array.dtype == dtype for kind in ("keys", "values") for array in cache[kind])
    assert set(CACHE_DTYPES) == set(expected)


@pytest.mark.parametrize("name", CACHE_DTYPES)
def test_kv_cache_bytes_are_those_of_the_cache(name):
    cache = cache_of(name, capacity=9)
    assert kv_cache_bytes(CONFIG, 9, CACHE_DTYPES[name]) == sum(
        x.nbytes for kind in ("keys", "values") for x in cache[kind]
    )
    assert 2 * kv_cache_bytes(CONFIG, 9, CACHE_DTYPES["float16"]) == kv_cache_bytes(CONFIG, 9)


@pytest.mark.parametrize("name", HALVES)
def test_append_rounds_what_it_holds_and_hands_out_float32_of_it(name):
    cache = cache_of(name, capacity=5)
    k = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    keys, values = append(cache, 0, k, 2 * k)
    assert keys.dtype == values.dtype == np.float32
    dtype = dtype_like(name, k)
    np.testing.assert_array_equal(keys, k.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(values, (2 * k).astype(dtype).astype(np.float32))
    assert np.any(keys != k)
    assert cache["keys"][0].dtype == dtype


@pytest.mark.parametrize("name", HALVES)
@given(keys=config_keys(), seed=st.integers(0, 10))
def test_the_logits_are_close_to_those_of_a_float32_cache(name, keys, seed):
    config = tiny_config(**keys)
    weights, ids = random_weights(config, seed, scale=0.5), random_ids(config, 9, seed=seed)
    exact = logits_with(cache_of("float32", config), ids, weights, config, [4, 1, 1])
    rounded = logits_with(cache_of(name, config), ids, weights, config, [4, 1, 1])
    # Each layer adds to the error. The relative error of one element is at most EPS.
    assert np.max(np.abs(rounded - exact)) <= 16 * EPS[name] * np.max(np.abs(exact))
    assert np.any(rounded != exact)


@pytest.mark.parametrize("name", HALVES)
@given(sizes=st.lists(st.integers(1, 4), max_size=3), window=st.sampled_from([None, 2]))
def test_in_parts_is_the_same_as_all_at_once(name, sizes, window):
    config = tiny_config(model_type="mistral", sliding_window=window)
    ids = random_ids(config, 13)
    whole = logits_with(cache_of(name, config), ids, config=config)
    near = {"float16": 2e-3, "bfloat16": 2e-2}[
        name
    ]  # a different summation order may round to the neighbouring 16-bit value
    np.testing.assert_allclose(logits_with(cache_of(name, config), ids, config=config, sizes=sizes), whole, atol=near)


@pytest.mark.parametrize("name", HALVES)
def test_flash_attention_reads_it_too(name):
    ids = random_ids(CONFIG, 13)
    whole = logits_with(cache_of(name), ids)
    assert_close("flash", logits_with(cache_of(name), ids, attention=flash_attention), whole)


@pytest.mark.parametrize("name", HALVES)
def test_it_grows_in_its_own_dtype(name):
    cache = cache_of(name, capacity=4)
    forward(random_ids(CONFIG, 4), WEIGHTS, CONFIG, cache)
    before = [array.copy() for array in cache["keys"]]
    grow(cache, 9)
    for now, then in zip(cache["keys"], before, strict=True):
        assert now.dtype == then.dtype == dtype_like(name, then)
        np.testing.assert_array_equal(now[:, :4], then)


@pytest.mark.parametrize("name", HALVES)
def test_torch_has_it_too(name):
    from libraries import library

    lib = library("torch")
    lm, plain = random_lm(lib), random_lm()
    made = generate(lm, [3, 1, 4], max_new_tokens=12, cache_dtype=name)
    assert made == generate(plain, [3, 1, 4], max_new_tokens=12, cache_dtype=name)


@pytest.mark.parametrize("name", HALVES)
def test_the_loop_takes_it_by_its_name(name):
    lm, ids = random_lm(), [3, 1, 4, 3, 1]
    expected, text = [], np.array(ids)
    for _ in range(6):
        logits = logits_with(cache_of(name, lm.config), text, lm.weights, lm.config)
        expected.append(int(np.argmax(logits[-1])))
        text = np.append(text, expected[-1])
    assert generate(lm, ids, max_new_tokens=6, cache_dtype=name).ids == expected
    assert generate(lm, ids, max_new_tokens=6, cache_dtype=name, use_cache=False).ids == expected
    assert generate(lm, ids, max_new_tokens=6, cache_dtype=name, tokens=prompt_lookup(4)).ids == expected


def test_another_name_is_refused():
    with pytest.raises(UsageError, match=r"^cache_dtype: expected float32 or float16 or bfloat16, got 'int8'$"):
        steps(random_lm(), [1], cache_dtype="int8")


def test_a_dtype_that_the_library_does_not_have_is_refused():
    with pytest.raises(UsageError, match=r"^cache_dtype: expected one that array_api_strict has, got bfloat16$"):
        dtype_like("bfloat16", array_api_strict.zeros(1))


def test_keys_too_large_for_float16_are_no_text_and_the_cache_is_to_blame():
    lm = random_lm()
    layers = tuple(block._replace(qkv_proj=block.qkv_proj * np.float32(1e5)) for block in lm.weights.layers)
    lm = lm._replace(weights=lm.weights._replace(layers=layers))
    generate(lm, [3, 1, 4], max_new_tokens=2, cache_dtype="bfloat16")
    blame = r"^cache_dtype: expected bfloat16 or float32 for this model, got float16: keys of layer 0 are beyond 65,504"
    with pytest.raises(UsageError, match=blame):
        generate(lm, [3, 1, 4], max_new_tokens=2, cache_dtype="float16")


def test_it_needs_half_the_memory(monkeypatch):
    lm = random_lm(max_position_embeddings=20000)
    available = 0.8 * kv_cache_bytes(lm.config, 10000)
    monkeypatch.setattr("npllm.devices.device.available_bytes", lambda: int(available))
    monkeypatch.setattr("npllm.devices.memory.attention_bytes", lambda *_: 0)
    with pytest.raises(NotEnoughMemoryError, match="KV cache"):
        steps(lm, [1], max_new_tokens=9999)
    with pytest.raises(NotEnoughMemoryError, match=r"KV cache . .* a layer of it in float32"):
        steps(lm, [1], max_new_tokens=9999, cache_dtype="bfloat16")  # one half, plus one half for one of two layers
    available = 1.1 * kv_cache_bytes(lm.config, 10000)
    steps(lm, [1], max_new_tokens=9999, cache_dtype="bfloat16")


# Conversations


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, max_position_embeddings=512)
    return npllm.load(path)


def test_a_conversation_takes_it(lm, monkeypatch):
    chat = Chat(lm, cache_dtype="bfloat16")
    said = "".join(step.text for step in chat.reply("Hello", max_new_tokens=20))
    assert (
        said == generate(lm, chat.tokenizer.chat_ids(chat.messages[:1]), max_new_tokens=20, cache_dtype="bfloat16").text
    )
    assert all(array.dtype == ml_dtypes.bfloat16 for array in chat.cache["values"])
    chat.reset()
    assert chat.cache["keys"][0].dtype == ml_dtypes.bfloat16
    module = importlib.import_module("npllm.apps.chat")
    asked = []
    monkeypatch.setattr(module, "check_memory", lambda parts, _: asked.append(parts["KV cache"]))
    make_room(lm, chat.cache, 10, "bfloat16")
    assert asked == [sum(array.nbytes for kind in ("keys", "values") for array in chat.cache[kind])]
    with pytest.raises(UsageError, match=r"^cache_dtype: "):
        Chat(lm, cache_dtype="int8")
