import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.attention import attention
from npllm.block import block
from npllm.cache import append, empty_cache, grow
from npllm.devices.device import to_host
from npllm.model import forward, transform

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
LIKE = WEIGHTS.norm


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def held(cache):
    """Copies of a cache's contents."""
    return [to_host(array)[..., : cache["length"], :].copy() for name in ("keys", "values") for array in cache[name]]


def test_an_empty_cache_has_room_for_every_layer(lib):
    cache = empty_cache(CONFIG, 7, (3,), like=lib.array(LIKE))
    assert list(cache) == ["keys", "values", "length"]
    assert cache["length"] == 0
    for name in ("keys", "values"):
        assert [tuple(array.shape) for array in cache[name]] == [(3, 2, 7, 4)] * 2
        assert all(array.dtype == lib.xp.float32 for array in cache[name])


def test_append_writes_behind_what_is_held(writable_lib):
    lib = writable_lib
    cache = empty_cache(CONFIG, 5, like=lib.array(LIKE))
    k, v = random(2, 3, 4), random(2, 3, 4, seed=1)
    append(cache, 1, lib.array(k[:, :2]), lib.array(v[:, :2]))
    cache["length"] = 2
    keys, values = append(cache, 1, lib.array(k[:, 2:]), lib.array(v[:, 2:]))
    np.testing.assert_array_equal(to_host(keys), k)
    np.testing.assert_array_equal(to_host(values), v)
    assert not np.any(to_host(cache["keys"][0]))  # the other layer
    assert cache["length"] == 2  # `transform` advances it once all layers are done


def test_append_returns_views_of_the_cache():
    cache = empty_cache(CONFIG, 5, like=LIKE)
    keys, values = append(cache, 0, random(2, 1, 4), random(2, 1, 4))
    assert np.shares_memory(keys, cache["keys"][0])
    assert np.shares_memory(values, cache["values"][0])


def test_decoding_hands_the_cache_itself_to_attention_and_never_a_copy():
    cache = empty_cache(CONFIG, 8, like=LIKE)
    rooms = [*cache["keys"], *cache["values"]]
    _, cache = transform(random_ids(CONFIG, 5), WEIGHTS, CONFIG, cache)
    layers = iter(range(CONFIG.num_hidden_layers))

    def looking_at_memory(q, k, v, visible, *, tap):
        layer = next(layers)
        assert np.shares_memory(k, rooms[layer])
        assert np.shares_memory(v, rooms[CONFIG.num_hidden_layers + layer])
        return attention(q, k, v, visible, tap=tap)

    transform(random_ids(CONFIG, 1), WEIGHTS, CONFIG, cache, attention=looking_at_memory)
    assert next(layers, None) is None
    assert all(now is before for now, before in zip([*cache["keys"], *cache["values"]], rooms, strict=True))


def test_an_interrupted_pass_leaves_the_cache_as_it_was(writable_lib):
    lib, weights = writable_lib, writable_lib.tree(WEIGHTS)
    ids = random_ids(CONFIG, 6)
    cache = empty_cache(CONFIG, 8, like=weights.norm)
    transform(lib.array(ids[:4]), weights, CONFIG, cache)
    before = held(cache)

    def interrupted(*arguments, **options):
        if arguments[7] == 1:  # the second layer
            raise KeyboardInterrupt
        return block(*arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        transform(lib.array(ids[4:]), weights, CONFIG, cache, block=interrupted)
    assert cache["length"] == 4
    for now, then in zip(held(cache), before, strict=True):
        np.testing.assert_array_equal(now, then)
    again, _ = transform(lib.array(ids[4:]), weights, CONFIG, cache)
    assert_close("again", to_host(again), transform(ids, WEIGHTS, CONFIG)[0][4:])


def test_length_moves_on_after_the_last_block_only():
    cache = empty_cache(CONFIG, 8, like=LIKE)
    lengths = []

    def looking_at_length(*arguments, **options):
        lengths.append(cache["length"])
        x = block(*arguments, **options)
        lengths.append(cache["length"])
        return x

    for new in (3, 2):
        transform(random_ids(CONFIG, new), WEIGHTS, CONFIG, cache, block=looking_at_length)
    assert lengths == [0] * 4 + [3] * 4
    assert cache["length"] == 5


@given(kept=st.integers(0, 5))
def test_lowering_length_forgets_the_last_tokens(writable_lib, kept):
    lib, weights = writable_lib, writable_lib.tree(WEIGHTS)
    cache = empty_cache(CONFIG, 8, like=weights.norm)
    transform(lib.array(random_ids(CONFIG, 5, seed=1)), weights, CONFIG, cache)
    cache["length"] = kept
    other = random_ids(CONFIG, 3, seed=2)
    rolled_back, _ = forward(lib.array(other), weights, CONFIG, cache)
    whole = np.concatenate([random_ids(CONFIG, 5, seed=1)[:kept], other])
    assert_close("logits", to_host(rolled_back), forward(whole, WEIGHTS, CONFIG)[0][kept:])


@given(batch=st.sampled_from([(), (2,)]), capacity=st.integers(1, 9))
def test_grow_keeps_what_is_held_and_makes_room(writable_lib, batch, capacity):
    lib, weights = writable_lib, writable_lib.tree(WEIGHTS)
    cache = empty_cache(CONFIG, 4, batch, like=weights.norm)
    ids = random_ids(CONFIG, *batch, 7)
    transform(lib.array(ids[..., :4]), weights, CONFIG, cache)
    before = held(cache)
    grow(cache, capacity)
    for array in (cache["keys"][0], cache["values"][1]):
        assert tuple(array.shape) == (*batch, 2, max(4, capacity), 4)
    for now, then in zip(held(cache), before, strict=True):
        np.testing.assert_array_equal(now, then)
    if capacity >= 7:
        after, _ = forward(lib.array(ids[..., 4:]), weights, CONFIG, cache)
        assert_close("logits", to_host(after), forward(ids, WEIGHTS, CONFIG)[0][..., 4:, :])


def test_a_full_cache_refuses_more():
    cache = empty_cache(CONFIG, 4, like=LIKE)
    transform(random_ids(CONFIG, 3), WEIGHTS, CONFIG, cache)
    before = held(cache)
    with pytest.raises(ValueError, match="expected room for 5 tokens, got 4"):
        transform(random_ids(CONFIG, 2), WEIGHTS, CONFIG, cache)
    assert cache["length"] == 3
    for now, then in zip(held(cache), before, strict=True):
        np.testing.assert_array_equal(now, then)
    transform(random_ids(CONFIG, 1), WEIGHTS, CONFIG, cache)
    assert cache["length"] == 4
