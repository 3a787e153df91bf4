import math

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_weights, tiny_config
from tolerance import assert_close

from npllm.attention import (
    attention,
    attention_weights,
    combine,
    merge_heads,
    queries_keys_values,
    relevance_scores,
    split_heads,
)
from npllm.devices.device import to_host
from npllm.masks import causal, sliding_window

HEADS = st.sampled_from([(1, 1), (3, 3), (3, 1), (4, 2), (6, 2)])  # N, K: multi-head, multi-query, grouped-query


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(heads, kv_heads, new, past=0, width=4, batch=()):
    """Random queries for `new` tokens; keys and values for these and `past` earlier ones."""
    length = past + new
    return (
        random(*batch, heads, new, width),
        random(*batch, kv_heads, length, width, seed=1),
        random(*batch, kv_heads, length, width, seed=2),
    )


@given(
    heads=HEADS,
    new=st.integers(1, 4),
    past=st.integers(0, 3),
    width=st.sampled_from([1, 2, 5]),
    window=st.sampled_from([None, 1, 2]),
)
def test_it_is_the_loop(lib, heads, new, past, width, window):
    q, k, v = tokens(*heads, new, past, width)
    queries, keys = lib.array(np.arange(past, past + new)), lib.array(np.arange(past + new))
    visible = causal(queries, keys) if window is None else sliding_window(queries, keys, window)
    mixed = attention(lib.array(q), lib.array(k), lib.array(v), visible)
    assert_close("attention", to_host(mixed), loops.attention(q, k, v, window))


@given(kv_heads=st.integers(1, 3), group=st.integers(1, 3), batch=st.sampled_from([(), (2,)]))
def test_grouped_query_attention_is_multi_head_attention_with_repeated_heads(lib, kv_heads, group, batch):
    q, k, v = tokens(kv_heads * group, kv_heads, 3, past=1, batch=batch)
    repeated_k, repeated_v = (lib.array(np.repeat(a, group, axis=-3)) for a in (k, v))
    q, k, v = lib.tree((q, k, v))
    scores = relevance_scores(q, k)
    assert_close("scores", to_host(scores), to_host(relevance_scores(q, repeated_k)))
    weights = attention_weights(scores)
    assert_close("mixed", to_host(combine(weights, v)), to_host(combine(weights, repeated_v)))


def test_multi_query_attention_gives_all_heads_the_same_keys_and_values(lib):
    q, k, v = tokens(3, 1, 2)
    q[:] = q[:1]
    mixed = to_host(attention(*lib.tree((q, k, v))))
    assert_close("mixed", mixed, mixed[[0, 0, 0]])


def test_a_batch_is_its_sequences_one_by_one(lib):
    q, k, v = tokens(4, 2, 3, past=2, batch=(2,))
    visible = np.array([np.tri(3, 5, 2), np.tri(3, 5, 0)]) > 0
    both = to_host(attention(lib.array(q), lib.array(k), lib.array(v), lib.array(visible)))
    for one in range(2):
        assert_close("one", both[one], attention(q[one], k[one], v[one], visible[one]))


def test_scores_are_divided_by_the_root_of_the_head_width(lib):
    ones = lib.array(np.ones((1, 1, 16)))
    assert to_host(relevance_scores(ones, ones)).item() == 16 / 4


def test_neighbouring_query_heads_share_a_key_head(lib):
    q, k = lib.array(np.ones((4, 1, 1))), lib.array([[[1.0]], [[2.0]]])
    np.testing.assert_array_equal(to_host(relevance_scores(q, k))[:, 0, 0], [1.0, 1.0, 2.0, 2.0])


@given(shift=st.integers(-1000, 1000))
def test_softmax_does_not_change_when_all_scores_are_shifted(lib, shift):
    scores = np.round(16 * random(2, 3, 5)) / np.float32(16)  # few enough digits that shifting them is exact
    shifted = attention_weights(lib.array(scores + np.float32(shift)))
    np.testing.assert_array_equal(to_host(shifted), to_host(attention_weights(lib.array(scores))))


@given(order=st.permutations(range(5)))
def test_the_order_of_keys_and_values_does_not_matter(lib, order):
    q, k, v = tokens(4, 2, 3, past=2)
    ordered = lib.tree((q, k[:, order], v[:, order]))
    q, k, v = lib.tree((q, k, v))
    weights = to_host(attention_weights(relevance_scores(q, k)))
    assert_close("weights", to_host(attention_weights(relevance_scores(*ordered[:2]))), weights[..., order])
    assert_close("mixed", to_host(attention(*ordered)), to_host(attention(q, k, v)))


@given(order=st.permutations(range(4)))
def test_each_query_is_answered_by_itself(lib, order):
    q, k, v = tokens(4, 2, 4, past=1)
    visible = np.tri(4, 5, 1) > 0
    mixed = to_host(attention(*lib.tree((q, k, v, visible))))
    reordered = attention(*lib.tree((q[:, order], k, v, visible[order])))
    assert_close("mixed", to_host(reordered), mixed[:, order])


def test_equal_scores_give_the_mean_of_the_values(lib):
    q, k, v = tokens(4, 2, 3, past=2)
    mixed = to_host(attention(*lib.tree((0 * q, k, v))))
    assert_close("mixed", mixed, np.broadcast_to(np.repeat(np.mean(v, axis=1), 2, axis=0)[:, None], mixed.shape))


@given(scale=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 5))
def test_what_is_mixed_lies_between_the_smallest_and_the_largest_value(lib, scale, seed):
    q, k, v = tokens(4, 2, 3, past=2)
    mixed = to_host(attention(*lib.tree((scale * random(*q.shape, seed=seed), k, v))))
    least, most = (np.repeat(of(v, axis=1, keepdims=True), 2, axis=0) for of in (np.min, np.max))
    assert np.all((least - 1e-5 <= mixed) & (mixed <= most + 1e-5))


@given(length=st.integers(1, 6), seed=st.integers(0, 5), scale=st.sampled_from([0.1, 10.0, 1e4]))
def test_weights_are_positive_sum_to_one_and_are_zero_where_hidden(lib, length, seed, scale):
    scores = scale * random(2, length, length, seed=seed)
    visible = np.tri(length) > 0
    weights = to_host(attention_weights(lib.array(scores), lib.array(visible)))
    assert np.all(weights >= 0)
    assert np.all(weights[:, ~visible] == 0)
    assert_close("sum", np.sum(weights, axis=-1), np.ones((2, length)))


def test_the_largest_of_saturated_scores_takes_all(lib):
    scores = [[[1e4, -1e4, 9e3], [-1e4, -2e4, -3e4]]]
    np.testing.assert_array_equal(to_host(attention_weights(lib.array(scores))), [[[1, 0, 0], [1, 0, 0]]])


def test_a_query_that_sees_nothing_gets_zeros(lib):
    scores, v = lib.array(random(2, 2, 3)), lib.array(random(1, 3, 4))
    visible = lib.array([[False, False, False], [True, False, False]])
    weights = attention_weights(scores, visible)
    np.testing.assert_array_equal(to_host(weights), [[[0, 0, 0], [1, 0, 0]]] * 2)
    assert not np.any(to_host(combine(weights, v))[:, 0])


@pytest.mark.parametrize("hidden", [1e30, -1e30, math.inf])
def test_a_hidden_score_does_not_matter_however_large(lib, hidden):
    weights = to_host(attention_weights(lib.array([[[1.0, 2.0, hidden]]]), lib.array([[True, True, False]])))
    np.testing.assert_array_equal(weights[..., :2], to_host(attention_weights(lib.array([[[1.0, 2.0]]]))))


def test_no_mask_hides_nothing(lib):
    scores, everything = lib.array(random(2, 3, 4)), lib.array(np.ones((3, 4), dtype=bool))
    np.testing.assert_array_equal(to_host(attention_weights(scores)), to_host(attention_weights(scores, everything)))


def test_all_weight_on_one_token_gives_its_value(lib):
    v = random(2, 4, 3)
    weights = np.zeros((2, 1, 4), dtype=np.float32)
    weights[:, :, 2] = 1
    np.testing.assert_array_equal(to_host(combine(*lib.tree((weights, v)))), v[:, 2:3])


def test_split_heads_gives_each_head_neighbouring_dimensions(lib):
    x = np.arange(12).reshape(2, 6)
    heads = split_heads(lib.array(1.0 * x), 3)
    np.testing.assert_array_equal(to_host(heads), [x[:, :2], x[:, 2:4], x[:, 4:]])
    np.testing.assert_array_equal(to_host(merge_heads(heads)), x)


@given(batch=st.sampled_from([(), (2,), (1, 2)]), heads=st.integers(1, 4), width=st.integers(1, 3))
def test_merge_heads_is_the_inverse_of_split_heads(lib, batch, heads, width):
    x = random(*batch, 5, heads * width)
    np.testing.assert_array_equal(to_host(merge_heads(split_heads(lib.array(x), heads))), x)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_rows_of_qkv_proj_make_queries_then_keys_then_values(lib, kv_heads, biases):
    config = tiny_config(num_key_value_heads=kv_heads)
    weights, x = random_weights(config, biases=biases).layers[0], random(3, config.hidden_size)
    for parts in zip(
        queries_keys_values(lib.array(x), lib.tree(weights), config),
        *(np.split(a, [16, 16 + 4 * kv_heads]) for a in (weights.qkv_proj, weights.qkv_proj_bias) if a is not None),
        strict=True,
    ):
        got, *matrix_and_bias = parts
        expected = [loops.linear(row, *matrix_and_bias).reshape(-1, 4) for row in x]  # [T, heads, H]
        assert_close("projection", to_host(got), np.swapaxes(expected, 0, 1))
