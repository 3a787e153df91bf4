"""Comparing traces: every figure against a loop, and which step is named."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.errors import UsageError
from npllm.inspect import compare as module
from npllm.inspect.compare import TOLERANCES, allowed, compare, difference, first_beyond
from npllm.inspect.trace import trace
from npllm.lm import LM

CONFIG = tiny_config()

MODEL = LM(CONFIG, random_weights(CONFIG), None, {})

IDS = [int(i) for i in random_ids(CONFIG, 6)]

NUMBERS = st.floats(-100, 100, width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf])


def by_loop(a, b, tolerance, where):
    """Largest error, its ratio to the largest value, cosine, number out of tolerance, first of those, non-finite."""
    places = [i for i in np.ndindex(a.shape) if np.broadcast_to(where, a.shape)[i]]
    finite = [i for i in places if math.isfinite(a[i]) and math.isfinite(b[i])]
    largest = max((abs(float(a[i])) for i in places if math.isfinite(a[i])), default=0.0)
    errors = {i: abs(float(a[i]) - float(b[i])) for i in finite}
    wrong = [
        i
        for i in places
        if (errors[i] > tolerance * abs(float(a[i])) + 0.2 * tolerance * largest if i in errors else a[i] != b[i])
    ]
    dot = sum(float(a[i]) * float(b[i]) for i in finite)
    lengths = [math.sqrt(sum(float(x[i]) ** 2 for i in finite)) for x in (a, b)]
    worst = max(errors.values(), default=0.0)
    return (
        worst,
        worst / largest if largest else (math.inf if worst else 0.0),
        dot / lengths[0] / lengths[1] if all(lengths) else float(lengths[0] == lengths[1]),
        len(wrong),
        wrong[0] if wrong else None,
        tuple(sum(not math.isfinite(x[i]) for i in places) for x in (a, b)),
    )


@given(data=st.data(), shape=st.sampled_from([(1, 1), (3, 4), (2, 3, 3)]), tolerance=st.sampled_from([0.0, 1e-4, 0.5]))
def test_a_difference_is_the_loop(data, shape, tolerance):
    a = data.draw(arrays(np.float32, shape, elements=NUMBERS))
    b = data.draw(arrays(np.float32, shape, elements=NUMBERS) | st.just(a.copy()))
    where = data.draw(arrays(np.bool_, shape[-2:]))
    expected = by_loop(a, b, tolerance, where)
    for piece in (1, 3, 2**20):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "PIECE", piece)
            row = difference("x", a, b, tolerance, where)
        assert (row.beyond, row.first, row.not_finite) == expected[3:]
        np.testing.assert_allclose([row.max_abs, row.max_rel, row.cosine], expected[:3], rtol=1e-9, atol=1e-9)
        if row.first is not None:
            np.testing.assert_array_equal([row.first_a, row.first_b], [a[row.first], b[row.first]])


@given(seed=st.integers(0, 1000), where=st.sampled_from([None, np.tri(4, dtype=bool)]))
def test_it_accepts_what_the_tests_own_tolerance_accepts(seed, where):
    """Two implementations of the same rule: this one and the one in tests/tolerance.py (with 0.999e-4 for 1e-4)."""
    random = np.random.default_rng(seed)
    a = random.standard_normal((2, 4, 4)).astype(np.float32)
    b = (a + 10 ** random.uniform(-6, -3) * random.standard_normal(a.shape)).astype(np.float32)
    row = difference("x", a, b, 0.999e-4, where)
    try:
        assert_close("x", b, a, where)
        accepted = True
    except AssertionError:
        accepted = False
    assert accepted == (row.beyond == 0)


def test_the_limit_is_that_of_the_design():
    a = np.array([0.0, 3.0, -100.0])
    np.testing.assert_allclose(allowed(a, TOLERANCES["float32"]), 1e-4 * np.abs(a) + 2e-5 * 100)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_is_within_up_to_the_limit_and_beyond_behind_it(sign):
    a = np.array([[1.0, 100.0]])
    for off, beyond in ((0.99, 0), (1.01, 1)):
        limit = 1e-4 + 2e-5 * 100
        assert difference("x", a, a + np.array([[sign * off * limit, 0.0]])).beyond == beyond


def test_a_measures_b_and_not_the_other_way_round():
    small, large = np.array([[1.0, 1.0]]), np.array([[1.0, 1.5]])
    assert difference("x", large, small, 0.3).beyond == 0  # 0.5 <= 0.3 * 1.5 + 0.06 * 1.5
    assert difference("x", small, large, 0.3).beyond == 1  # 0.5 > 0.3 + 0.06


def test_what_is_compared_piece_by_piece_is_one_value(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 2)
    a = np.array([[100.0, 1.0, 1.0, 1.0, 1.0]])
    row = difference("x", a, a + np.array([0, 0, 0, 1e-3, 1.0]))
    assert (row.beyond, row.first) == (1, (0, 4)), "1e-3 is within 2e-5 of the largest number"
    assert row.max_rel == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("a", "b", "beyond", "not_finite"),
    [
        (math.nan, 1.0, 1, (1, 0)),
        (1.0, math.nan, 1, (0, 1)),
        (math.nan, math.nan, 1, (1, 1)),
        (math.inf, 1.0, 1, (1, 0)),
        (math.inf, -math.inf, 1, (1, 1)),
        (math.inf, math.inf, 0, (1, 1)),
        (-math.inf, -math.inf, 0, (1, 1)),
    ],
)
def test_nan_agrees_with_nothing_and_is_counted(a, b, beyond, not_finite):
    row = difference("x", np.array([[0.0, a]]), np.array([[0.0, b]]), tolerance=1.0)
    assert (row.beyond, row.not_finite) == (beyond, not_finite)
    assert math.isfinite(row.max_abs)
    assert math.isfinite(row.cosine)


def test_where_nothing_is_compared_nothing_differs():
    row = difference("x", np.ones((2, 2)), np.zeros((2, 2)), where=np.zeros((2, 2), dtype=bool))
    assert (row.max_abs, row.max_rel, row.cosine, row.beyond, row.not_finite) == (0.0, 0.0, 1.0, 0, (0, 0))


def test_a_trace_agrees_with_itself_bit_for_bit():
    values = trace(MODEL, IDS)
    rows = compare(values, values, tolerance=0.0)
    assert [row.name for row in rows] == list(values)
    assert first_beyond(rows) is None
    assert {row.max_abs for row in rows} == {0.0}


@pytest.mark.slow
@given(data=st.data())
def test_the_first_step_that_differs_is_named_whichever_it_is(data):
    values = trace(MODEL, IDS)
    wrong = data.draw(st.sets(st.sampled_from(list(values)), min_size=1))
    other = {name: value + 1 if name in wrong else value for name, value in values.items()}
    rows = compare(values, other)
    assert first_beyond(rows).name == next(name for name in values if name in wrong)
    assert {row.name for row in rows if row.beyond} == wrong


@pytest.mark.parametrize("name", ["layers.0.attention.scores", "layers.1.attention.scores"])
def test_scores_that_the_mask_hides_are_of_no_consequence(name):
    values = trace(MODEL, IDS)
    hidden = np.where(np.tri(6, dtype=bool), values[name], np.nan)
    assert first_beyond(compare(values, values | {name: hidden})) is None
    assert first_beyond(compare(values | {name: hidden}, values)) is None
    seen = np.where(np.tri(6, k=-1, dtype=bool), values[name], np.nan)
    assert first_beyond(compare(values, values | {name: seen})).name == name


@pytest.mark.parametrize("sides", ["a", "b", "both"])
def test_a_mask_in_a_trace_tells_which_scores_are_compared(sides):
    values = trace(MODEL, IDS)
    name = "layers.0.attention.scores"
    window = np.tri(6, dtype=bool) & ~np.tri(6, k=-2, dtype=bool)
    mask = {"layers.0.attention.visible": window.astype(np.float32)}
    outside = values | {name: np.where(window, values[name], 7.0)}
    inside = values | {name: np.where(window, 7.0, values[name])}
    a, b = (mask if sides != "b" else {}), (mask if sides != "a" else {})
    assert first_beyond(compare(values | a, outside | b)) is None
    assert first_beyond(compare(values | a, inside | b)).name == name
    assert first_beyond(compare(values, outside)).name == name


def test_two_masks_that_differ_are_a_step_that_differs_and_hide_together():
    values = trace(MODEL, IDS)
    name = "layers.0.attention.scores"
    one = {"layers.0.attention.visible": np.tri(6).astype(np.float32)}
    other = {"layers.0.attention.visible": np.tri(6, k=-1).astype(np.float32)}
    odd = values | {name: np.where(np.eye(6, dtype=bool), 7.0, values[name])}
    rows = {row.name: row for row in compare(one | values, other | odd)}
    assert rows["layers.0.attention.visible"].beyond == 6
    assert rows[name].beyond == 0


def test_a_mask_of_another_shape_is_refused():
    values = trace(MODEL, IDS)
    with pytest.raises(UsageError, match=r"layers\.0\.attention\.visible: expected the shape \[6, 6\], got \[1, 6\]"):
        compare(values, values | {"layers.0.attention.visible": np.ones((1, 6), dtype=np.float32)})


def test_only_what_is_asked_for_is_compared():
    values = trace(MODEL, IDS)
    assert [row.name for row in compare(values, values, only="norm,*.gate")] == [
        "layers.0.feedforward.gate",
        "layers.1.feedforward.gate",
        "norm",
    ]


def test_traces_of_different_models_or_texts_are_refused():
    values = trace(MODEL, IDS)
    config = tiny_config(num_key_value_heads=4)
    other = trace(LM(config, random_weights(config), None, {}), IDS)
    with pytest.raises(UsageError, match=r"layers\.0\.attention\.k: .* got \[2, 6, 4\] in A and \[4, 6, 4\] in B"):
        compare(values, other)
    with pytest.raises(UsageError, match=r"embedding: expected the same shape .* \[6, 8\] in A and \[5, 8\] in B"):
        compare(values, trace(MODEL, IDS[:5]))
    with pytest.raises(UsageError, match=r"no name in common: A has embedding, .*, B has x; expected traces of"):
        compare(values, {"x": np.zeros((6, 1))})
