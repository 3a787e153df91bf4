import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.attention import attention
from npllm.block import block
from npllm.devices.device import to_host
from npllm.masks import (
    aligned_mask,
    alternating,
    bidirectional,
    block_local,
    causal,
    decoder_mask,
    fixed,
    same_document,
    sliding_window,
    strided,
)
from npllm.model import transform

# The causal masks and their arguments.
LOOKING_BACK = {
    causal: st.just(()),
    sliding_window: st.tuples(st.integers(1, 9)),
    strided: st.tuples(st.integers(1, 9)),
    fixed: st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))),
    block_local: st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5)),
}
EXAMPLES = [
    bidirectional,
    causal,
    lambda q, k: sliding_window(q, k, 2),
    lambda q, k: strided(q, k, 2),
    lambda q, k: fixed(q, k, 3),
    lambda q, k: block_local(q, k, 2, 1, 2),
]


def matrix(text):
    """The mask drawn as 0s and 1s."""
    return np.array([[cell == "1" for cell in row] for row in text.split()])


def assert_draws(mask, text):
    np.testing.assert_array_equal(to_host(mask), matrix(text))


def positions(lib, *range_):
    return lib.array(np.arange(*range_))


def test_causal_sees_itself_and_what_is_before(lib):
    drawing = """
        1000
        1100
        1110
        1111"""
    assert_draws(causal(positions(lib, 4), positions(lib, 4)), drawing)


def test_causal_with_two_tokens_in_the_cache(lib):
    drawing = """
        11100
        11110
        11111"""
    assert_draws(causal(positions(lib, 2, 5), positions(lib, 5)), drawing)
    assert_draws(decoder_mask(2, 3, None, positions(lib, 3)), drawing)


def test_bidirectional_sees_both_sides(lib):
    assert_draws(bidirectional(positions(lib, 1, 3), positions(lib, 4)), "1111 1111")


def test_a_window_of_three(lib):
    drawing = """
        10000
        11000
        11100
        01110
        00111"""
    assert_draws(sliding_window(positions(lib, 5), positions(lib, 5), 3), drawing)
    assert_draws(decoder_mask(0, 5, 3, positions(lib, 5)), drawing)


def test_a_window_of_two_with_three_tokens_in_the_cache(lib):
    drawing = """
        00110
        00011"""
    assert_draws(decoder_mask(3, 2, 2, positions(lib, 2)), drawing)


def test_one_token_and_a_window_shorter_than_the_cache(lib):
    assert_draws(decoder_mask(3, 1, 2, positions(lib, 1)), "0011")


def test_texts_of_five_tokens_three_and_one_aligned_at_their_ends(lib):
    keys = lib.array(np.arange(5) - np.array([[0], [2], [4]]))
    for window, drawing in ((None, "11111 00111 00001"), (2, "00011 00011 00001")):
        mask = aligned_mask(keys, window)
        assert mask.shape == (3, 1, 5)
        assert_draws(mask[:, 0, :], drawing)


def test_strided_sees_the_last_three_and_every_third_before_them(lib):
    drawing = """
        10000000
        11000000
        11100000
        11110000
        01111000
        00111100
        10011110
        01001111"""
    assert_draws(strided(positions(lib, 8), positions(lib, 8), 3), drawing)


def test_fixed_sees_its_block_of_four_and_the_last_two_of_each_block_before(lib):
    drawing = """
        1000000000
        1100000000
        1110000000
        1111000000
        0011100000
        0011110000
        0011111000
        0011111100
        0011001110
        0011001111"""
    assert_draws(fixed(positions(lib, 10), positions(lib, 10), 4, summary=2), drawing)


def test_block_local_sees_two_blocks_of_two_and_every_third_block(lib):
    drawing = """
        100000000000
        110000000000
        111000000000
        111100000000
        001110000000
        001111000000
        000011100000
        000011110000
        000011111000
        000011111100
        000011001110
        000011001111"""
    assert_draws(block_local(positions(lib, 12), positions(lib, 12), 2, local_blocks=2, stride=3), drawing)


def test_another_head_of_phi_3_small_sees_other_blocks(lib):
    drawing = """
        001111100000
        001111110000
        001100111000
        001100111100
        001100001110
        001100001111"""
    queries, keys = positions(lib, 6, 12), positions(lib, 12)
    assert_draws(block_local(queries, keys, 2, local_blocks=2, stride=3, offset=1), drawing)


def test_documents_of_three_tokens_and_two_and_padding_that_nobody_sees(lib):
    drawing = """
        1110000
        1110000
        1110000
        0001100
        0001100
        0000000
        0000000"""
    documents, places = lib.array([0, 0, 0, 1, 1, -1, -1]), positions(lib, 7)
    assert_draws(same_document(documents, documents), drawing)
    drawing = """
        1000000
        1100000
        1110000
        0001000
        0001100
        0000000
        0000000"""
    assert_draws(causal(places, places) & same_document(documents, documents), drawing)


def test_the_last_of_8192_tokens_sees_1920_in_phi_3_small():
    seen = block_local(np.array([8191]), np.arange(8192))
    assert np.sum(seen) == 16 * 64 + 14 * 64  # its last 16 blocks, and one in 8 of the 112 before them


@pytest.mark.parametrize("mask", LOOKING_BACK)
@given(data=st.data(), past=st.integers(0, 9), new=st.integers(1, 9))
def test_each_is_the_loop(lib, mask, data, past, new):
    arguments = data.draw(LOOKING_BACK[mask])
    got = to_host(mask(positions(lib, past, past + new), positions(lib, past + new), *arguments))
    for t in range(new):
        assert set(np.flatnonzero(got[t])) == getattr(loops, mask.__name__)(past + t, *arguments)


@pytest.mark.parametrize("mask", LOOKING_BACK)
@given(data=st.data(), length=st.integers(1, 12))
def test_each_token_sees_itself_and_nothing_that_comes_after(lib, mask, data, length):
    places = positions(lib, length)
    seen = to_host(mask(places, places, *data.draw(LOOKING_BACK[mask])))
    assert np.all(np.diag(seen))
    assert not np.any(np.triu(seen, 1))


@given(documents=st.lists(st.integers(-1, 2), min_size=1, max_size=8))
def test_same_document_is_the_loop(lib, documents):
    got = to_host(same_document(lib.array(documents), lib.array(documents)))
    assert got.tolist() == [[a == b and b != -1 for b in documents] for a in documents]


@given(past=st.integers(0, 5), new=st.integers(1, 5))
def test_a_window_of_one_sees_itself_only(past, new):
    mask = decoder_mask(past, new, 1, np.arange(new))
    if past + new == 1:
        assert mask is None
    else:
        np.testing.assert_array_equal(mask, np.eye(past + new, dtype=bool)[past:])


@given(length=st.integers(1, 6), extra=st.integers(0, 3))
def test_what_is_as_long_as_the_text_hides_nothing(lib, length, extra):
    places = positions(lib, length)
    for mask in (
        sliding_window(places, places, length + extra),
        strided(places, places, 1),
        strided(places, places, length + extra),
        fixed(places, places, length + extra),
        fixed(places, places, 2, summary=2),
        block_local(places, places, 1, length + extra),
        block_local(places, places, 2, 1, stride=1),
    ):
        np.testing.assert_array_equal(to_host(mask), np.tri(length) > 0)


@given(size=st.integers(1, 5), length=st.integers(1, 15))
def test_over_two_sparse_layers_every_token_reaches_all_before_it(lib, size, length):
    places = positions(lib, length)
    for mask in (to_host(strided(places, places, size)), to_host(fixed(places, places, size))):
        np.testing.assert_array_equal(mask @ mask, np.tri(length) > 0)


@given(size=st.integers(1, 3), near=st.integers(1, 2), stride=st.integers(1, 4), length=st.integers(1, 20))
def test_the_heads_of_phi_3_small_see_every_block_together_and_none_beyond_their_own_twice(
    lib, size, near, stride, length
):
    places, before = positions(lib, length), np.tri(length) > 0
    heads = [to_host(block_local(places, places, size, near, stride, offset)) for offset in range(stride + 1)]
    local = to_host(block_local(places, places, size, near, length + 1))  # the stride is too long to reach any block
    np.testing.assert_array_equal(np.any(heads[:stride], axis=0), before)
    np.testing.assert_array_equal(np.sum(heads[:stride], axis=0)[~local], before[~local])
    np.testing.assert_array_equal(heads[stride], heads[0])


@given(past=st.integers(0, 6), new=st.integers(1, 6), window=st.sampled_from([None, 1, 2, 3, 7, 20]))
def test_decoder_mask_is_the_last_rows_of_the_whole_and_none_only_where_nothing_is_hidden(lib, past, new, window):
    places = positions(lib, past + new)
    whole = causal(places, places) if window is None else sliding_window(places, places, window)
    mask = decoder_mask(past, new, window, positions(lib, new))
    mask = np.ones((new, past + new), dtype=bool) if mask is None else to_host(mask)
    np.testing.assert_array_equal(mask, to_host(whole)[past:])


@pytest.mark.parametrize("mask", EXAMPLES)
def test_each_sequence_of_a_batch_has_its_own_positions(lib, mask):
    queries, keys = [[1, 2], [7, 9]], [[0, 1, 2], [9, 8, 7]]
    both = to_host(mask(lib.array(queries), lib.array(keys)))
    assert both.shape == (2, 2, 3)
    for one in range(2):
        np.testing.assert_array_equal(both[one], to_host(mask(lib.array(queries[one]), lib.array(keys[one]))))


def test_gpt_3_and_phi_3_small_alternate():
    full, sparse = np.tri(3) > 0, np.eye(3) > 0
    assert [mask is full for mask in alternating(4, full, sparse)] == [True, False, True, False]
    assert [mask is sparse for mask in alternating(5, sparse, full)] == [True, False, True, False, True]
    assert alternating(2, None, sparse)[0] is None


def test_each_layer_has_its_turn():
    config = tiny_config(num_hidden_layers=3)
    weights, ids, places = random_weights(config), random_ids(config, 6), np.arange(6)
    full, sparse = causal(places, places), strided(places, places, 2)
    seen = []

    def looking(x, weights, config, cos, sin, visible, *arguments, **options):
        seen.append(visible)
        return block(x, weights, config, cos, sin, visible, *arguments, **options)

    transform(ids, weights, config, visible=alternating(3, full, sparse), block=looking)
    assert [visible is full for visible in seen] == [True, False, True]


def test_a_mask_for_each_head_is_attention_with_the_heads_as_a_batch(lib):
    random, places = np.random.default_rng(0), np.arange(7)
    q, k, v = random.standard_normal((3, 4, 7, 2)).astype(np.float32)
    masks = np.stack([block_local(places, places, 1, 2, 4, offset=head) for head in range(4)])
    together = to_host(attention(*lib.tree((q[:, None], k[:, None], v[:, None], masks))))[:, 0]
    for head in range(4):
        one = attention(q[head : head + 1], k[head : head + 1], v[head : head + 1], masks[head])
        assert_close("head", together[head], one[0])


@pytest.mark.oracle
@pytest.mark.parametrize("mask", EXAMPLES)
def test_attention_under_each_mask_is_that_of_torch(mask):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 3, length, 5)).astype(np.float32) for length in (6, 9, 9))
    visible = mask(np.arange(3, 9), np.arange(9))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.asarray(array) for array in (q, k, v)), attn_mask=torch.asarray(visible)
    )
    assert_close("mixed", attention(q, k, v, visible), expected.numpy())


@pytest.mark.oracle
def test_the_causal_mask_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 4)).astype(np.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.asarray(array) for array in (q, k, v)), is_causal=True
    )
    assert_close("mixed", attention(q, k, v, causal(np.arange(6), np.arange(6))), expected.numpy())
