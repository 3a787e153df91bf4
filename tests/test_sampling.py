import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.inspect.funnel import funnel
from npllm.sampling import (
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    scale_by_temperature,
    softmax,
)

JUST_BELOW_1 = 1 - 2**-53  # the largest value that Generator.random() returns


def array(values):
    return np.array(values, dtype=np.float32)


@st.composite
def logits_without_ties(draw):
    """Distinct logits, far enough apart that rounding cannot change their order."""
    steps = draw(st.permutations(range(draw(st.integers(1, 8)))))
    return array(steps) * np.float32(draw(st.sampled_from([0.1, 0.5, 3.0]))) - np.float32(draw(st.floats(-5, 5)))


def probabilities(logits):
    """The softmax in float64."""
    shares = [math.exp(float(logit) - float(max(logits))) for logit in logits]
    return np.array(shares) / sum(shares)


def kept(logits):
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


@given(logits=logits_without_ties())
def test_softmax_is_the_formula(lib, logits):
    assert_close("softmax", to_host(softmax(lib.array(logits))), probabilities(logits))


@given(logits=logits_without_ties(), uniform=st.floats(0, 1, exclude_max=True), temperature=st.floats(0.1, 10))
def test_top_k_of_one_is_greedy(lib, logits, uniform, temperature):
    token = choose(lib.array(logits), uniform=uniform, temperature=temperature, top_k=1)
    assert int(token) == int(choose(lib.array(logits))) == np.argmax(logits)


@given(logits=logits_without_ties(), uniform=st.floats(1e-6, 1, exclude_max=True))
def test_a_temperature_near_zero_is_greedy(lib, logits, uniform):
    for temperature in (1e-3, 1e-6):
        assert int(choose(lib.array(logits), uniform=uniform, temperature=temperature)) == np.argmax(logits)


@pytest.mark.parametrize("temperature", [1e-39, 1e-45, 1e-300])
def test_a_temperature_too_small_for_float32_is_greedy(lib, temperature):
    assert int(choose(lib.array([5.0, 9.0, -3.0]), uniform=0.5, temperature=temperature)) == 1


@given(logits=logits_without_ties(), temperature=st.floats(0.2, 5))
def test_temperature_divides_the_logits(lib, logits, temperature):
    expected = probabilities(logits.astype(np.float64) / temperature)
    assert_close("probabilities", to_host(softmax(scale_by_temperature(lib.array(logits), temperature))), expected)


@given(logits=logits_without_ties(), temperature=st.floats(0.2, 5), factor=st.floats(1.1, 4))
def test_a_higher_temperature_takes_from_the_likeliest_and_gives_to_the_least_likely(lib, logits, temperature, factor):
    cold, hot = (
        to_host(softmax(scale_by_temperature(lib.array(logits), degrees)))
        for degrees in (temperature, temperature * factor)
    )
    best, last = np.argmax(logits), np.argmin(logits)
    assert hot[best] <= cold[best]
    assert hot[last] >= cold[last]
    if 0.5 < cold[best] < 0.99:  # far enough from uniform and from one-hot to be visible
        assert hot[best] < cold[best]


@given(logits=logits_without_ties(), shift=st.integers(-100, 100))
def test_the_softmax_of_shifted_logits_is_the_same(lib, logits, shift):
    logits = np.round(16 * logits) / np.float32(16)  # few enough digits for an exact shift
    shifted = softmax(lib.array(logits + np.float32(shift)))
    np.testing.assert_array_equal(to_host(shifted), to_host(softmax(lib.array(logits))))


@given(logits=logits_without_ties(), k=st.integers(1, 10))
def test_top_k_keeps_the_k_likeliest(lib, logits, k):
    filtered = to_host(keep_top_k(lib.array(logits), k))
    assert kept(filtered) == set(np.argsort(-logits)[:k].tolist())
    np.testing.assert_array_equal(filtered[list(kept(filtered))], logits[list(kept(filtered))])


@given(logits=logits_without_ties(), p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_sum_to_p(lib, logits, p):
    shares = probabilities(logits)
    order = np.argsort(-logits)
    sums = np.cumsum(shares[order])
    assume(np.min(np.abs(sums - p)) > 1e-5)  # nearer, rounding decides
    filtered = to_host(keep_top_p(lib.array(logits), p))
    fewest = int(np.argmax(sums >= p)) + 1
    assert kept(filtered) == set(order[:fewest].tolist())
    np.testing.assert_array_equal(filtered[list(kept(filtered))], logits[list(kept(filtered))])


def test_top_p_reached_exactly_is_enough():
    logits = array(np.log([0.5, 0.25, 0.125, 0.125]))
    # The first token is enough for 0.5. Slightly more needs the second.
    assert kept(keep_top_p(logits, 0.4999)) == {0}
    assert kept(keep_top_p(logits, 0.5001)) == {0, 1}
    assert kept(keep_top_p(logits, 0.7501)) == {0, 1, 2, 3}  # the last two tie


@given(logits=logits_without_ties(), p=st.floats(0.01, 1.0))
def test_min_p_keeps_tokens_at_least_p_times_as_likely_as_the_likeliest(lib, logits, p):
    ratios = probabilities(logits) / max(probabilities(logits))
    assume(np.min(np.abs(ratios / p - 1)) > 1e-5)
    assert kept(to_host(keep_min_p(lib.array(logits), p))) == set(np.flatnonzero(ratios >= p).tolist())


@given(logits=logits_without_ties(), k=st.integers(1, 10), p=st.floats(1e-6, 1.0))
def test_every_filter_keeps_the_likeliest(lib, logits, k, p):
    best, array = int(np.argmax(logits)), lib.array(logits)
    for filtered in (keep_top_k(array, k), keep_top_p(array, p), keep_min_p(array, p)):
        assert best in kept(to_host(filtered))


@given(logits=logits_without_ties(), k=st.integers(1, 10), p=st.floats(0.01, 0.99))
def test_a_filter_applied_twice_is_the_filter(lib, logits, k, p):
    for keep, value in ((keep_top_k, k), (keep_min_p, p)):
        once = keep(lib.array(logits), value)
        np.testing.assert_array_equal(to_host(keep(once, value)), to_host(once))


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_tokens_that_tie_stay_together(lib, name):
    keep, value = {"top_k": (keep_top_k, 2), "top_p": (keep_top_p, 0.5), "min_p": (keep_min_p, 1.0)}[name]
    assert kept(to_host(keep(lib.array([1.0, 3.0, 3.0, 3.0]), value))) == {1, 2, 3}


@given(logits=logits_without_ties())
def test_a_token_is_drawn_as_often_as_it_is_likely(lib, logits):
    grid, array = 400, lib.array(logits)
    counts = np.zeros(len(logits))
    for i in range(grid):  # evenly spaced random numbers, so the counts are exact
        counts[int(draw(array, (i + 0.5) / grid))] += 1
    assert np.all(np.abs(counts - grid * probabilities(logits)) <= 1.01)


@given(
    logits=logits_without_ties(),
    ruled_out=st.lists(st.booleans(), min_size=8, max_size=8),
    uniform=st.one_of(st.sampled_from([0.0, 0.5, JUST_BELOW_1, 1 - 2**-24]), st.floats(0, 1, exclude_max=True)),
)
@example(logits=array([1.0, 2.0]), ruled_out=[True, False] * 4, uniform=0.0)
@example(logits=array([1.0, 2.0]), ruled_out=[False, True] * 4, uniform=JUST_BELOW_1)
def test_a_ruled_out_token_is_never_drawn(lib, logits, ruled_out, uniform):
    ruled_out = np.array(ruled_out[: len(logits)])
    assume(not np.all(ruled_out))
    token = int(draw(lib.array(np.where(ruled_out, -np.inf, logits)), uniform))
    assert not ruled_out[token]


def test_the_last_token_of_a_large_vocabulary_is_drawn_only_when_it_may_be():
    logits = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    assert int(draw(logits, JUST_BELOW_1)) == 49_999
    logits[-100:] = -np.inf
    assert int(draw(logits, JUST_BELOW_1)) == 49_899


def test_the_repetition_penalty_makes_positive_and_negative_logits_less_likely(lib):
    logits, seen = lib.array([2.0, -2.0, 2.0, -2.0, 0.0]), lib.array([True, True, False, False, True])
    np.testing.assert_array_equal(to_host(penalize_repetition(logits, seen, 4.0)), [0.5, -8.0, 2.0, -2.0, 0.0])
    np.testing.assert_array_equal(to_host(penalize_repetition(logits, seen, 1.0)), to_host(logits))


@given(logits=logits_without_ties(), penalty=st.floats(1.0, 10.0), seed=st.integers(0, 20))
def test_a_penalized_token_is_never_likelier_than_before(lib, logits, penalty, seed):
    seen = np.random.default_rng(seed).random(len(logits)) < 0.5
    penalized = to_host(penalize_repetition(lib.array(logits), lib.array(seen), penalty))
    assert np.all(penalized[seen] <= logits[seen])
    np.testing.assert_array_equal(penalized[~seen], logits[~seen])


def test_greedy_decoding_knows_the_repetition_penalty(lib):
    logits, seen = lib.array([3.0, 2.0]), lib.array([True, False])
    assert int(choose(logits)) == 0
    assert int(choose(logits, seen=seen)) == 0
    assert int(choose(logits, seen=seen, repetition_penalty=2.0)) == 1


def test_temperature_comes_before_top_p(lib):
    logits = lib.array(np.log([0.5, 0.3, 0.2]))
    # At temperature 1 the first two sum to 0.8; at temperature 2 the shares are 0.41, 0.32, 0.26: all are needed.
    assert int(choose(logits, uniform=0.999, temperature=1.0, top_p=0.75)) == 1
    assert int(choose(logits, uniform=0.999, temperature=2.0, top_p=0.75)) == 2


def test_the_penalty_comes_before_the_filters(lib):
    logits, seen = lib.array([3.0, 2.0, 1.0]), lib.array([True, False, False])
    options = {"uniform": 0.999, "temperature": 1.0, "seen": seen, "repetition_penalty": 10.0}
    assert int(choose(logits, top_k=1, **options)) == 1


@given(logits=logits_without_ties(), uniform=st.floats(0, 1, exclude_max=True))
def test_what_is_switched_off_changes_nothing(lib, logits, uniform):
    logits, seen = lib.array(logits), lib.array(np.ones(len(logits), dtype=bool))
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seen": seen}
    plain = choose(logits, uniform=uniform, temperature=1.0)
    assert int(choose(logits, uniform=uniform, temperature=1.0, **off)) == int(plain) == int(draw(logits, uniform))


@given(logits=logits_without_ties(), uniform=st.floats(0, 1, exclude_max=True), k=st.integers(1, 8))
def test_every_library_draws_the_same_token(lib, logits, uniform, k):
    shares = probabilities(np.where(np.argsort(np.argsort(-logits)) < k, logits, -np.inf))
    sums = np.cumsum(shares)
    assume(np.min(np.abs(sums - uniform)) > 1e-5)  # nearer, rounding decides
    token = int(choose(lib.array(logits), uniform=uniform, temperature=1.0, top_k=k))
    assert token == int(np.argmax(sums > uniform))


# The funnel

UNIFORM = st.floats(0, 1, exclude_max=True)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "top_k": st.integers(0, 9),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.7]),
    },
)


@given(logits=logits_without_ties(), options=OPTIONS, uniform=UNIFORM, seen=st.lists(st.booleans(), min_size=8))
def test_the_funnel_ends_with_the_token_that_choose_takes(lib, logits, options, uniform, seen):
    options = options | {"uniform": uniform, "seen": lib.array(np.array(seen[: len(logits)]))}
    steps = funnel(lib.array(logits), **options)
    token = int(choose(lib.array(logits), **options))
    assert kept(to_host(steps[-1].logits)) == {token}
    assert steps[-1].left == 1
    assert_close("probabilities", to_host(steps[-1].probabilities), np.eye(len(logits))[token])
    if steps[-1].name == "draw":  # from what the previous step left
        assert int(draw(steps[-2].logits, uniform)) == token
    else:
        assert int(np.argmax(to_host(steps[-2].logits))) == token


@given(logits=logits_without_ties(), options=OPTIONS)
def test_the_funnel_only_narrows(lib, logits, options):
    steps = funnel(lib.array(logits), **options)
    left = [kept(to_host(step.logits)) for step in steps]
    assert [step.left for step in steps] == [len(tokens) for tokens in left]
    assert left[0] == set(range(len(logits)))
    assert all(later <= earlier for earlier, later in pairwise(left))


@given(logits=logits_without_ties(), options=OPTIONS)
def test_each_step_of_the_funnel_has_the_probabilities_of_what_is_left(lib, logits, options):
    for step in funnel(lib.array(logits), **options):
        got, rest = to_host(step.probabilities), to_host(step.logits)
        assert kept(rest) >= set(np.flatnonzero(got).tolist())
        assert_close(step.name, got, probabilities(rest))


def test_the_funnel_is_the_filters_in_their_order(lib):
    logits, seen = lib.array([4.0, 3.0, 2.5, 1.0, 0.5]), lib.array([True, False, False, False, False])
    options = {"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.2, "repetition_penalty": 2.0, "seen": seen}
    penalized = penalize_repetition(logits, seen, 2.0)
    tempered = scale_by_temperature(penalized, 0.5)
    by_k = keep_top_k(tempered, 4)
    by_p = keep_top_p(by_k, 0.9)
    by_min_p = keep_min_p(by_p, 0.2)
    expected = {
        "logits": logits,
        "repetition_penalty": penalized,
        "temperature": tempered,
        "top_k": by_k,
        "top_p": by_p,
        "min_p": by_min_p,
    }
    steps = funnel(logits, **options)
    assert [step.name for step in steps] == [*expected, "draw"]
    for step, left in zip(steps, expected.values(), strict=False):
        np.testing.assert_array_equal(to_host(step.logits), to_host(left), err_msg=step.name)


def test_what_is_switched_off_is_no_step_of_the_funnel():
    logits = array([1.0, 3.0, 2.0])
    assert [step.name for step in funnel(logits)] == ["logits", "greedy"]
    assert [step.name for step in funnel(logits, temperature=1.0)] == ["logits", "temperature", "draw"]
    assert [step.name for step in funnel(logits, repetition_penalty=2.0)] == ["logits", "greedy"]  # nothing was seen


def test_the_funnel_leaves_its_logits_alone(lib):
    logits = lib.array([1.0, 3.0, 2.0])
    funnel(logits, temperature=2.0, top_k=1)
    np.testing.assert_array_equal(to_host(logits), [1.0, 3.0, 2.0])


def test_of_tokens_that_tie_the_funnel_takes_the_first_as_argmax_does():
    assert kept(funnel(array([1.0, 3.0, 3.0]))[-1].logits) == {1}
