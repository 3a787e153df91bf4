"""Laws of the whole forward pass."""

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.attention import attention
from npllm.block import block
from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.heads import lm_head
from npllm.lm import LM
from npllm.masks import causal
from npllm.model import forward, transform

BATCHES = st.sampled_from([(), (2,)])


def logits(ids, weights, config, *arguments, **options):
    return forward(ids, weights, config, *arguments, **options)[0]


@given(keys=config_keys(), length=st.integers(1, 4), seed=st.integers(0, 5))
def test_it_is_the_loop(lib, keys, length, seed):
    config = tiny_config(**keys)
    weights, ids = random_weights(config, seed, biases=seed % 2 == 1), random_ids(config, length, seed=seed)
    got, cache = forward(lib.array(ids), lib.tree(weights), config)
    assert cache is None
    assert got.dtype == lib.xp.float32
    assert_close("logits", to_host(got), loops.logits(ids, weights, config))


@given(keys=config_keys(), length=st.integers(1, 7), batch=BATCHES)
def test_cache_equals_no_cache(writable_lib, keys, length, batch):
    lib, config = writable_lib, tiny_config(**keys)
    weights, ids = random_weights(config), random_ids(config, *batch, length)
    whole = to_host(logits(lib.array(ids), lib.tree(weights), config))
    cache = empty_cache(config, length, batch, like=lib.array(weights.norm))
    for t in range(length):  # token by token, as generation does
        row, cache = forward(lib.array(ids[..., t : t + 1]), lib.tree(weights), config, cache)
        assert_close("logits", to_host(row), whole[..., t : t + 1, :])
    assert cache["length"] == length


@given(keys=config_keys(), chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=BATCHES)
def test_chunked_equals_whole(writable_lib, keys, chunks, batch):
    lib, config = writable_lib, tiny_config(**keys)
    weights, ids = lib.tree(random_weights(config)), random_ids(config, *batch, sum(chunks))
    whole = to_host(logits(lib.array(ids), weights, config))
    cache = empty_cache(config, sum(chunks) + 2, batch, like=weights.norm)
    ends = np.cumsum(chunks)
    for start, end in zip(ends - chunks, ends, strict=True):
        chunk, cache = forward(lib.array(ids[..., start:end]), weights, config, cache)
        assert_close("logits", to_host(chunk), whole[..., start:end, :])


@given(keys=config_keys(), batch=st.integers(1, 3), length=st.integers(1, 5))
def test_batch_equals_single(lib, keys, batch, length):
    config = tiny_config(**keys)
    weights, ids = random_weights(config), random_ids(config, batch, length)
    together = to_host(logits(lib.array(ids), lib.tree(weights), config))
    for one in range(batch):
        assert_close("logits", together[one], logits(ids[one], weights, config))


@pytest.mark.parametrize("side", ["left", "right"])
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3), padding=st.integers(0, 10))
def test_a_padded_batch_equals_its_sequences_one_by_one(lib, side, lengths, padding):
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, len(lengths), max(lengths))
    rows = [np.s_[:length] if side == "right" else np.s_[max(lengths) - length :] for length in lengths]
    padded, real, positions = np.full(ids.shape, padding), np.zeros(ids.shape, dtype=bool), np.zeros_like(ids)
    for one, row in enumerate(rows):
        padded[one, row], real[one, row], positions[one, row] = ids[one, row], True, np.arange(lengths[one])
    visible = lib.array((np.tri(max(lengths)) > 0) & real[:, None, :])
    together = to_host(
        logits(lib.array(padded), lib.tree(weights), config, positions=lib.array(positions), visible=visible)
    )
    for one, row in enumerate(rows):
        assert_close("logits", together[one, row], logits(ids[one, row], weights, config))


@given(keys=config_keys(), known=st.integers(1, 5), length=st.just(6))
def test_no_token_looks_ahead(lib, keys, known, length):
    config = tiny_config(**keys)
    ids = random_ids(config, length)
    others = np.concatenate([ids[:known], (ids[known:] + 1) % config.vocab_size])
    weights = lib.tree(random_weights(config))
    before, after = (to_host(logits(lib.array(text), weights, config)) for text in (ids, others))
    np.testing.assert_array_equal(before[:known], after[:known])
    assert np.any(before[known:] != after[known:])


@given(keys=config_keys(), length=st.integers(2, 6), data=st.data())
def test_a_shorter_prefix_has_the_rows_that_it_has_in_the_whole(lib, keys, length, data):
    config = tiny_config(**keys)
    weights, ids = lib.tree(random_weights(config)), random_ids(config, length)
    known = data.draw(st.integers(1, length - 1))
    prefix, whole = (to_host(logits(lib.array(text), weights, config)) for text in (ids[:known], ids))
    assert_close("logits", prefix, whole[:known])


@given(length=st.integers(1, 6), extra=st.integers(0, 3))
def test_a_window_of_the_length_or_more_is_full_attention(lib, length, extra):
    windowed = tiny_config(model_type="mistral", num_key_value_heads=2, sliding_window=length + extra)
    full = tiny_config(model_type="mistral", num_key_value_heads=2, sliding_window=None)
    weights, ids = lib.tree(random_weights(full)), lib.array(random_ids(full, length))
    np.testing.assert_array_equal(to_host(logits(ids, weights, windowed)), to_host(logits(ids, weights, full)))


def test_every_token_sees_the_first(lib):
    config = tiny_config()
    weights, ids = lib.tree(random_weights(config)), random_ids(config, 6)
    other = np.concatenate([(ids[:1] + 1) % config.vocab_size, ids[1:]])
    before, after = (to_host(logits(lib.array(text), weights, config)) for text in (ids, other))
    assert np.all(np.any(before != after, axis=-1))


def test_with_a_window_information_travels_one_window_per_block(lib):
    config = tiny_config(model_type="mistral", sliding_window=2, num_hidden_layers=2)
    weights, ids = lib.tree(random_weights(config)), random_ids(config, 6)
    other = np.concatenate([(ids[:1] + 1) % config.vocab_size, ids[1:]])
    before, after = (to_host(logits(lib.array(text), weights, config)) for text in (ids, other))
    changed = np.any(before != after, axis=-1)
    np.testing.assert_array_equal(changed, [True, True, True, False, False, False])


def test_only_the_layers_of_type_sliding_attention_have_the_window():
    config = tiny_config(
        model_type="qwen2", use_sliding_window=True, sliding_window=2, max_window_layers=1, num_hidden_layers=3
    )
    seen = {}

    def looking(x, weights, config, cos, sin, visible, cache, layer, **options):
        seen[layer] = visible
        return block(x, weights, config, cos, sin, visible, cache, layer, **options)

    logits(random_ids(config, 4), random_weights(config), config, block=looking)
    drawings = ["1000 1100 1110 1111", "1000 1100 0110 0011", "1000 1100 0110 0011"]
    for layer, drawing in enumerate(drawings):
        np.testing.assert_array_equal(seen[layer], [[cell == "1" for cell in row] for row in drawing.split()])


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6)])
def test_shapes_are_those_of_the_chapter(lib, shape):
    config = tiny_config()
    weights, ids = lib.tree(random_weights(config)), lib.array(random_ids(config, *shape))
    hidden, _ = transform(ids, weights, config)
    assert tuple(hidden.shape) == (*shape, config.hidden_size)
    assert tuple(lm_head(hidden, weights, config).shape) == (*shape, config.vocab_size)
    assert hidden.dtype == lib.xp.float32


def test_forward_is_transform_and_the_head(lib):
    config = tiny_config()
    weights, ids = lib.tree(random_weights(config)), lib.array(random_ids(config, 5))
    by_hand = lm_head(transform(ids, weights, config)[0], weights, config)
    np.testing.assert_array_equal(to_host(logits(ids, weights, config)), to_host(by_hand))


@given(batch=BATCHES)
def test_positions_count_on_from_the_cache(writable_lib, batch):
    lib, config = writable_lib, tiny_config()
    weights, ids = lib.tree(random_weights(config)), random_ids(config, *batch, 5)
    positions = np.broadcast_to(np.arange(5), ids.shape)
    default, given_ = (empty_cache(config, 5, batch, like=weights.norm) for _ in range(2))
    for part in (np.s_[..., :2], np.s_[..., 2:]):
        counted = logits(lib.array(ids[part]), weights, config, default)
        result = logits(lib.array(ids[part]), weights, config, given_, positions=lib.array(positions[part]))
        np.testing.assert_array_equal(to_host(counted), to_host(result))


@given(shift=st.integers(1, 50))
def test_only_the_distance_of_positions_matters(lib, shift):
    config = tiny_config()
    weights, ids = lib.tree(random_weights(config)), lib.array(random_ids(config, 5))
    places = np.arange(5)
    expected, shifted, stretched = (
        to_host(logits(ids, weights, config, positions=lib.array(positions)))
        for positions in (places, places + shift, places * (shift + 1))
    )
    assert_close("logits", shifted, expected)
    assert np.any(np.abs(stretched - expected) > 1e-3)


def test_visible_is_one_mask_for_all_layers_or_one_for_each(lib):
    config = tiny_config()
    weights, ids = lib.tree(random_weights(config)), lib.array(random_ids(config, 4))
    places = lib.array(np.arange(4))
    mask, full = causal(places, places), lib.array(np.ones((4, 4), dtype=bool))

    def seeing(visible):
        return to_host(logits(ids, weights, config, visible=visible))

    expected, both_ways, mixed = seeing(None), seeing(full), seeing([mask, full])
    np.testing.assert_array_equal(seeing(mask), expected)
    np.testing.assert_array_equal(seeing([mask, mask]), expected)
    np.testing.assert_array_equal(seeing([None, None]), both_ways)
    assert np.any(mixed != expected)
    assert np.any(mixed != both_ways)


def test_visible_of_a_batch_has_a_mask_for_each_sequence(lib):
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, 2, 4)
    masks = np.array([np.tri(4) > 0, np.eye(4) > 0])
    together = to_host(logits(lib.array(ids), lib.tree(weights), config, visible=lib.array(masks)))
    for one in range(2):
        assert_close("logits", together[one], logits(ids[one], weights, config, visible=masks[one]))


def test_two_texts_in_one_sequence_do_not_see_each_other():
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, 7)
    document, positions = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2, 3])
    visible = (document[:, None] == document) & causal(np.arange(7), np.arange(7))
    packed = logits(ids, weights, config, positions=positions, visible=visible)
    assert_close("first", packed[:3], logits(ids[:3], weights, config))
    assert_close("second", packed[3:], logits(ids[3:], weights, config))


def test_with_all_projections_zero_the_embeddings_reach_the_head_through_the_norm_alone(lib):
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, 5)
    zeroed = tuple(layer._replace(o_proj=0 * layer.o_proj, down_proj=0 * layer.down_proj) for layer in weights.layers)
    hidden, _ = transform(lib.array(ids), lib.tree(weights._replace(layers=zeroed)), config)
    expected = [loops.rms_norm(row, weights.norm, config.rms_norm_eps) for row in weights.embed_tokens[ids]]
    assert_close("hidden", to_host(hidden), expected)


def test_another_block_and_another_attention_are_arguments():
    config, calls = tiny_config(), []
    weights, ids = random_weights(config), random_ids(config, 4)

    def other_attention(*arguments, **options):
        calls.append("attention")
        return attention(*arguments, **options)

    def other_block(*arguments, **options):
        calls.append("block")
        return block(*arguments, **options)

    same = logits(ids, weights, config, block=other_block, attention=other_attention)
    np.testing.assert_array_equal(same, logits(ids, weights, config))
    assert calls == ["block", "attention"] * config.num_hidden_layers


def test_the_arguments_are_not_changed():
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, 4)
    again = random_weights(config)
    ids_before = ids.copy()
    logits(ids, weights, config)
    np.testing.assert_array_equal(ids, ids_before)
    for now, then in zip([weights.norm, *weights.layers[1][:6]], [again.norm, *again.layers[1][:6]], strict=True):
        np.testing.assert_array_equal(now, then)


def test_an_lm_is_only_what_it_is_made_of():
    config = tiny_config()
    lm = LM(config=config, weights=random_weights(config), tokenizer=None, generation_config={})
    assert lm._fields == ("config", "weights", "tokenizer", "generation_config", "transform", "lm_head")
