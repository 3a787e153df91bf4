"""The parallel streams, one per token: what flows between them, and which are computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.heads import lm_head
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.loop import steps
from npllm.masks import bidirectional, causal
from npllm.model import forward, transform

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


def streams(seen):
    """The number of streams that a recorded pass computed, and of keys seen in the last layer."""
    layers = range(CONFIG.num_hidden_layers)
    computed = {
        seen["embedding"].shape[-2],
        seen["norm"].shape[-2],
        *(seen[f"layers.{layer}.attention.q"].shape[-2] for layer in layers),
        *(seen[f"layers.{layer}.feedforward.output"].shape[-2] for layer in layers),
    }
    assert len(computed) == 1, "a stream goes through all layers"
    return computed.pop(), seen[f"layers.{layers[-1]}.attention.weights"].shape[-1]


def generated(ids, new, use_cache):
    """The ids after greedily generating `new` tokens as the loop does, and the trace of each pass."""
    cache, passes = empty_cache(CONFIG, len(ids) + new, like=WEIGHTS.norm), []
    for _ in range(new):
        seen = {}
        todo = np.array(ids[cache["length"] :])
        hidden, _ = transform(todo, WEIGHTS, CONFIG, cache, tap=record(seen))
        passes.append(seen)
        ids = [*ids, int(np.argmax(lm_head(hidden[-1:], WEIGHTS, CONFIG)))]
        if not use_cache:
            cache["length"] = 0
    return ids, passes


@given(keys=config_keys(), length=st.integers(2, 6))
def test_all_streams_at_once_are_the_same_as_one_after_the_other_over_the_cache(writable_lib, keys, length):
    lib, config = writable_lib, tiny_config(**keys)
    weights, ids = lib.tree(random_weights(config)), lib.array(random_ids(config, length))
    at_once, one_by_one = {}, {}
    forward(ids, weights, config, tap=record(at_once))
    cache = empty_cache(config, length, like=weights.norm)
    for t in range(length):
        forward(ids[t : t + 1], weights, config, cache, tap=record(one_by_one))
    assert list(at_once) == list(one_by_one)
    visible = np.tri(length, dtype=bool)
    for name, value in one_by_one.items():
        where = visible if name.endswith("scores") else None
        assert_close(name, to_host(value), to_host(at_once[name]), where=where)


def test_with_the_cache_a_step_computes_one_stream_and_without_it_all_of_them():
    prompt = random_ids(CONFIG, 4).tolist()
    with_cache, passes = generated(prompt, 3, use_cache=True)
    assert [streams(seen) for seen in passes] == [(4, 4), (1, 5), (1, 6)]  # streams computed, tokens looked at
    without_cache, passes = generated(prompt, 3, use_cache=False)
    assert [streams(seen) for seen in passes] == [(4, 4), (5, 5), (6, 6)]
    assert with_cache == without_cache


@pytest.mark.parametrize(("use_cache", "counts"), [(True, [4, 1, 1]), (False, [4, 5, 6])])
def test_the_loop_computes_these_streams(use_cache, counts):
    ids, seen = random_ids(CONFIG, 4).tolist(), []

    def looking(ids, *arguments, **options):
        into = {}
        hidden = transform(ids, *arguments, tap=record(into, "embedding"), **options)
        seen.append(into["embedding"].shape[-2])
        return hidden

    lm = LM(CONFIG, WEIGHTS, tokenizer=None, generation_config={}, transform=looking)
    list(steps(lm, ids, max_new_tokens=3, use_cache=use_cache))
    assert seen == counts


def test_only_the_last_stream_makes_the_next_token(lib):
    ids, weights = lib.array(random_ids(CONFIG, 5)), lib.tree(WEIGHTS)
    hidden, _ = transform(ids, weights, CONFIG)
    logits, _ = forward(ids, weights, CONFIG)
    assert_close("logits", to_host(lm_head(hidden[-1:, :], weights, CONFIG)), to_host(logits)[-1:])


def test_the_other_streams_matter_only_by_their_keys_and_values(writable_lib):
    ids, weights = writable_lib.array(random_ids(CONFIG, 5)), writable_lib.tree(WEIGHTS)
    cache = empty_cache(CONFIG, 5, like=weights.norm)
    transform(ids[:4], weights, CONFIG, cache)
    expected = to_host(forward(ids, weights, CONFIG)[0])[-1:]
    assert_close("logits", to_host(forward(ids[4:], weights, CONFIG, cache)[0]), expected)
    cache["length"] = 4
    cache["values"][1][:, 0, :] += 1.0
    assert np.any(np.abs(to_host(forward(ids[4:], weights, CONFIG, cache)[0]) - expected) > 1e-3)


@given(keys=config_keys(), known=st.integers(1, 5))
def test_the_causal_mask_is_what_makes_a_stream_blind_for_what_comes_after(lib, keys, known):
    config = tiny_config(**keys)
    ids = random_ids(config, 6)
    others = np.concatenate([ids[:known], (ids[known:] + 1) % config.vocab_size])
    weights, places = lib.tree(random_weights(config)), lib.array(np.arange(6))

    def changed(mask):
        before, after = (to_host(forward(lib.array(text), weights, config, visible=mask)[0]) for text in (ids, others))
        return list(np.any(before != after, axis=-1))

    assert changed(causal(places, places)) == [False] * known + [True] * (6 - known)
    assert changed(bidirectional(places, places)) == [True] * 6
    assert changed([None] * config.num_hidden_layers) == [True] * 6


def test_bert_s_way_differs_from_ours_in_all_streams_but_the_last_of_one_layer(lib):
    config = tiny_config(num_hidden_layers=1)
    weights, ids, places = lib.tree(random_weights(config)), lib.array(random_ids(config, 5)), lib.array(np.arange(5))
    ours, bert = (
        to_host(forward(ids, weights, config, visible=visible)[0]) for visible in (None, bidirectional(places, places))
    )
    assert_close("last", bert[-1:], ours[-1:])  # it sees all tokens either way
    assert np.all(np.any(np.abs(bert[:-1] - ours[:-1]) > 1e-3, axis=-1))
