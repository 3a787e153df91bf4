import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.backend.devices import to_host
from npllm.masks import causal, decoder_mask, sliding_window


def matrix(text):
    """The mask that a drawing of 0s and 1s shows."""
    return np.array([[cell == "1" for cell in row] for row in text.split()])


def positions(lib, *range_):
    return lib.array(np.arange(*range_))


def test_causal_sees_itself_and_what_is_before(lib):
    drawing = """
        1000
        1100
        1110
        1111"""
    np.testing.assert_array_equal(to_host(causal(positions(lib, 4), positions(lib, 4))), matrix(drawing))


def test_causal_with_two_tokens_in_the_cache(lib):
    drawing = """
        11100
        11110
        11111"""
    np.testing.assert_array_equal(to_host(causal(positions(lib, 2, 5), positions(lib, 5))), matrix(drawing))
    np.testing.assert_array_equal(to_host(decoder_mask(2, 3, None, positions(lib, 3))), matrix(drawing))


def test_a_window_of_three(lib):
    drawing = """
        10000
        11000
        11100
        01110
        00111"""
    np.testing.assert_array_equal(to_host(sliding_window(positions(lib, 5), positions(lib, 5), 3)), matrix(drawing))
    np.testing.assert_array_equal(to_host(decoder_mask(0, 5, 3, positions(lib, 5))), matrix(drawing))


def test_a_window_of_two_with_three_tokens_in_the_cache(lib):
    drawing = """
        00110
        00011"""
    np.testing.assert_array_equal(to_host(decoder_mask(3, 2, 2, positions(lib, 2))), matrix(drawing))


def test_one_token_and_a_window_shorter_than_the_cache(lib):
    np.testing.assert_array_equal(to_host(decoder_mask(3, 1, 2, positions(lib, 1))), matrix("0011"))


@given(past=st.integers(0, 5), new=st.integers(1, 5))
def test_a_window_of_one_sees_itself_only(past, new):
    mask = decoder_mask(past, new, 1, np.arange(new))
    if past + new == 1:
        assert mask is None
    else:
        np.testing.assert_array_equal(mask, np.eye(past + new, dtype=bool)[past:])


@given(length=st.integers(1, 6), extra=st.integers(0, 3))
def test_a_window_of_the_length_or_more_hides_nothing(length, extra):
    places = np.arange(length)
    np.testing.assert_array_equal(sliding_window(places, places, length + extra), causal(places, places))


@given(past=st.integers(0, 6), new=st.integers(1, 6), window=st.sampled_from([None, 1, 2, 3, 7, 20]))
def test_decoder_mask_is_the_last_rows_of_the_whole_and_none_only_where_nothing_is_hidden(past, new, window):
    places = np.arange(past + new)
    whole = causal(places, places) if window is None else sliding_window(places, places, window)
    mask = decoder_mask(past, new, window, np.arange(new))
    np.testing.assert_array_equal(np.ones((new, past + new), dtype=bool) if mask is None else mask, whole[past:])


@pytest.mark.parametrize("mask", [causal, lambda q, k: sliding_window(q, k, 2)])
def test_each_sequence_of_a_batch_has_its_own_positions(mask):
    queries, keys = np.array([[1, 2], [7, 9]]), np.array([[0, 1, 2], [9, 8, 7]])
    both = mask(queries, keys)
    assert both.shape == (2, 2, 3)
    for one in range(2):
        np.testing.assert_array_equal(both[one], mask(queries[one], keys[one]))
