"""Arrays with labels: what keeps them, what loses them, and the tables they print."""

import numpy as np
import pytest

from npllm.errors import UsageError
from npllm.inspect.labelled import Labelled, labelled

TOKENS = ["The", " cat", " sat"]
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.25, 0.25, 0.5]], dtype=np.float32)


def weights(**options):
    return labelled(WEIGHTS, "weights", {"query": TOKENS, "key": TOKENS}, **options)


def test_it_is_an_array_for_every_function_of_arrays():
    x = weights()
    assert isinstance(x, np.ndarray)
    assert (x.max(), x.mean(), x.argmax(), len(x), x.shape) == (1.0, WEIGHTS.mean(), 0, 3, (3, 3))
    np.testing.assert_array_equal(np.asarray(x), WEIGHTS)
    np.testing.assert_array_equal([list(row) for row in x], WEIGHTS)
    for computed in (x + 1, 2 * x, x @ x, np.log(x + 1), x.sum(axis=0), x > 0.5):
        assert type(computed) is np.ndarray
    for chosen in (x.array, x[:, [0, 2]], x[x > 0.5], x[None], x[True]):
        assert type(chosen) is np.ndarray
    assert x.T.tolist() == WEIGHTS.T.tolist()
    assert repr(x.T) == repr(WEIGHTS.T)


def test_it_cannot_be_changed_but_a_copy_can():
    x = weights()
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0] = 2
    with pytest.raises(ValueError, match="read-only"):
        x.sort()
    x.copy()[0, 0] = 2
    assert x[0, 0] == WEIGHTS[0, 0] == 1


@pytest.mark.parametrize(
    ("key", "title", "axes"),
    [
        (1, "weights, query ' cat'", {"key": TOKENS}),
        (-1, "weights, query ' sat'", {"key": TOKENS}),
        (" cat", "weights, query ' cat'", {"key": TOKENS}),
        (slice(1, None), "weights", {"query": TOKENS[1:], "key": TOKENS}),
        ((slice(None), 2), "weights, key ' sat'", {"query": TOKENS}),
        ((slice(None, None, -1), slice(0, 2)), "weights", {"query": TOKENS[::-1], "key": TOKENS[:2]}),
        ((slice(None), "The"), "weights, key 'The'", {"query": TOKENS}),
        ((..., 0), "weights, key 'The'", {"query": TOKENS}),
        ((0, ...), "weights, query 'The'", {"key": TOKENS}),
        (np.int64(2), "weights, query ' sat'", {"key": TOKENS}),
    ],
)
def test_an_element_or_a_range_keeps_its_labels(key, title, axes):
    found = weights(words=np.array([list("abc"), list("def"), list("ghi")], dtype=object))[key]
    assert type(found) is Labelled
    assert found.title == title
    assert dict(zip(found.names, map(list, found.labels), strict=True)) == axes
    keys = key if isinstance(key, tuple) else (key,)
    plain = tuple(TOKENS.index(one) if isinstance(one, str) else one for one in keys)
    np.testing.assert_array_equal(found.array, WEIGHTS[plain])
    assert found.words.shape == found.shape


def test_a_label_that_is_not_there_or_there_twice_is_refused():
    with pytest.raises(UsageError, match=r"query: expected a number, or one of 'The', ' cat', ' sat', got 'cat'"):
        weights()["cat"]
    twice = labelled(np.zeros(3), "x", {"token": ["a", "b", "a"]})
    with pytest.raises(UsageError, match=r"token: expected a label that occurs once, got 'a', which is at \[0, 2\]"):
        twice["a"]
    with pytest.raises(UsageError, match="index: expected a number, got 'a'"):
        weights().T["a"]
    with pytest.raises(IndexError):
        weights()[3]


def test_labels_must_fit():
    with pytest.raises(ValueError, match=r"x: expected \(2,\) labels, got \(1,\)"):
        labelled(np.zeros(2), "x", {"token": ["a"]})


def test_tables_and_bars_fit_the_width_and_say_what_they_leave_out():
    many = [f" token{i}" for i in range(90)]
    long = labelled(np.tril(np.full((90, 90), 0.5)), "weights", {"query": many, "key": many}, share=True)
    parts = labelled(np.arange(300.0) - 100, "parts", {"part": [f"head {i}" for i in range(300)]}, ranked=True)
    numbers = [str(i) for i in range(90)]
    deep = labelled(np.ones((90, 2, 2)), "deep", {"layer": numbers, "query": TOKENS[:2], "key": TOKENS[:2]}, share=True)
    for x in (long, parts, deep, long[5], long[:, 5]):
        lines = repr(x).splitlines()
        assert max(map(len, lines)) <= 100
        assert len(lines) <= 44
        assert any("..." in line for line in lines)
    assert repr(parts).splitlines()[1].split() == ["head", "299", "199.00", "█" * 30]
    assert repr(parts).splitlines()[-1] == "  ... 285 more, smaller"


def test_numbers_that_are_missing_negative_or_zero():
    x = labelled(np.array([np.nan, -0.001, 2e5, -3.0, np.inf]), "x", {"layer": list("abcde")})
    assert [line.split()[:2] for line in repr(x).splitlines()[1:]] == [
        ["a", "-"], ["b", "0.00"], ["c", "2e+05"], ["d", "-3.00"], ["e", "inf"]
    ]  # fmt: skip
    assert "100 %" not in repr(weights(share=True)[0, 1:])


def test_a_word_is_shown_beside_its_number():
    x = weights(share=True, words=np.array([[" a", " b", " c"]] * 3, dtype=object))
    assert repr(x).splitlines()[2].startswith("0 'The'   ' a'        100")
    assert repr(x[2]).splitlines()[3].split() == ["2", "'", "sat'", "'", "c'", "50.0", "%", "█" * 15]
