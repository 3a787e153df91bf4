"""Attention weights as characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.inspect.heatmap import ASCII, LEAST, SHADES, bounds, characters, darkness, window


def test_the_heat_map_of_a_known_matrix():
    weights = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.9985, 0.001, 0.0005, 0], [0.8, 0.17, 0.03, 0.0001]])
    assert characters(weights) == ["█   ", "██  ", "█░· ", "█▓▒·"]
    assert characters(weights, ASCII) == ["@   ", "@@  ", "@:. ", "@#+."]
    assert characters(np.array([[np.nan, 1.0]])) == ["?█"]


@given(st.lists(st.floats(1e-9, 1), min_size=2, max_size=8))
def test_more_weight_is_never_a_lighter_character(weights):
    (row,) = characters(np.asarray([sorted(weights)]))
    assert [SHADES.index(c) for c in row] == sorted(SHADES.index(c) for c in row)


def test_a_character_begins_where_the_legend_says():
    for character, bound in zip(SHADES[1:], bounds()[1:], strict=True):
        assert characters(np.array([[1.0001 * bound]])) == [character]
    assert bounds()[1] == pytest.approx(LEAST)
    assert darkness(np.array([LEAST, 1.0])) == pytest.approx([0, 1])


@given(st.integers(1, 50), st.data(), st.integers(2, 20))
def test_the_window_always_shows_the_first_token_and_the_one_asked_for(tokens, data, room):
    last = data.draw(st.integers(0, tokens - 1))
    shown = list(window(tokens, last, room))
    assert len(shown) == min(tokens, room)
    assert shown == sorted(set(shown))
    assert {0, last} <= set(shown)
    assert shown[-1] < tokens
