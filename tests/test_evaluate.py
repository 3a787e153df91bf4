"""Perplexity and divergence: every figure against a loop over the text."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_gpt2_weights, random_ids, random_weights, tiny_config, tiny_gpt2_config

import npllm
from npllm.apps.evaluate import Scores, divergence, evaluate, joined, perplexity, reference, summary, windows
from npllm.errors import ModelFileError, NotEnoughMemoryError, UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.lm import LM
from npllm.sampling import softmax

CONFIG = tiny_config(max_position_embeddings=16)
MODEL = LM(CONFIG, random_weights(CONFIG), None, {})
OTHER = LM(CONFIG, random_weights(CONFIG, seed=1), None, {})


def text(length, seed=0):
    return [int(i) for i in random_ids(CONFIG, length, seed=seed)]


def scored(lm, ids, window, stride, against=None):
    return joined(evaluate(lm, ids, window, stride, against))


def predictions_of(lm, ids, window, stride):
    *_, made = reference(lm, ids, window, stride)
    return made


def by_loop(lm, ids, window, stride):
    """The distribution for each token except the first, from the first window that predicts it."""
    rows = []
    for token in range(1, len(ids)):
        begin = next(begin for begin in range(0, len(ids), stride) if token < begin + window)
        logits, _ = npllm.forward(np.array(ids[begin : begin + window]), lm)
        rows.append(softmax(logits[token - 1 - begin].astype(np.float64)))
    return np.stack(rows)


SIZES = st.integers(2, 16).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window - 1)))


@given(tokens=st.integers(2, 60), sizes=SIZES)
def test_each_token_but_the_first_is_scored_once_with_as_much_before_it_as_any_window_has(tokens, sizes):
    window, stride = sizes
    parts = windows(tokens, window, stride)
    assert [token for _, end, scored in parts for token in range(scored, end)] == list(range(1, tokens))
    for i, (begin, end, scored) in enumerate(parts):
        assert begin == i * stride
        assert end == min(begin + window, tokens)
        assert scored > begin, "something stands before it"
        assert scored - begin >= min(scored, window - stride)
        assert end > scored, "no window without a token"


def test_the_windows_are_those_of_transformers_documentation():
    """The loop as published there: start, end, and how many tokens at the end are targets."""
    for tokens, window, stride in [(10, 6, 2), (2487, 1024, 512), (512, 512, 256), (513, 512, 256), (5, 6, 2)]:
        expected, before = [], 0
        for begin in range(0, tokens, stride):
            end = min(begin + window, tokens)
            targets = end - before
            expected.append((begin, end, max(end - targets, 1)))
            before = end
            if end == tokens:
                break
        assert windows(tokens, window, stride) == expected


@given(length=st.integers(2, 40), sizes=SIZES)
def test_losses_are_the_loop(length, sizes):
    ids = text(length)
    expected = -np.log([row[token] for row, token in zip(by_loop(MODEL, ids, *sizes), ids[1:], strict=True)])
    np.testing.assert_allclose(scored(MODEL, ids, *sizes).losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@given(length=st.integers(2, 40), sizes=SIZES)
def test_divergences_are_the_loop(length, sizes):
    ids = text(length)
    p, q = by_loop(OTHER, ids, *sizes), by_loop(MODEL, ids, *sizes)
    got = scored(MODEL, ids, *sizes, against=predictions_of(OTHER, ids, *sizes))
    expected = [
        sum(x * (math.log(x) - math.log(y)) for x, y in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)
    ]
    np.testing.assert_allclose(got.divergences, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got.same_top, p.argmax(axis=-1) == q.argmax(axis=-1))
    np.testing.assert_allclose(got.reference_losses, scored(OTHER, ids, *sizes).losses, rtol=1e-12, atol=1e-12)


def test_more_tokens_than_are_held_at_once():
    config = tiny_config(max_position_embeddings=200)
    lm = MODEL._replace(config=config)
    ids = text(150)
    pieces = list(evaluate(lm, ids, 100, 50))
    assert [len(piece.losses) for piece in pieces] == [32, 32, 32, 3, 32, 18]
    expected = -np.log([row[token] for row, token in zip(by_loop(lm, ids, 100, 50), ids[1:], strict=True)])
    np.testing.assert_allclose(joined(pieces).losses, expected, rtol=1e-5, atol=1e-5)


def test_a_gpt2_is_read_by_its_own_pass():
    config = tiny_gpt2_config()
    lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
    ids = text(20)
    expected = -np.log([row[token] for row, token in zip(by_loop(lm, ids, 8, 4), ids[1:], strict=True)])
    np.testing.assert_allclose(scored(lm, ids, 8, 4).losses, expected, rtol=1e-5, atol=1e-5)


def test_on_any_library_it_is_the_same(lib):
    ids = text(20)
    lm, other = (model._replace(weights=lib.tree(model.weights)) for model in (MODEL, OTHER))
    got = scored(lm, ids, 8, 4, predictions_of(other, ids, 8, 4))
    expected = scored(MODEL, ids, 8, 4, predictions_of(OTHER, ids, 8, 4))
    np.testing.assert_allclose(got.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(got.divergences, expected.divergences, rtol=1e-3, atol=1e-6)


def test_a_model_does_not_diverge_from_itself():
    ids = text(30)
    got = scored(MODEL, ids, 8, 4, predictions_of(MODEL, ids, 8, 4))
    assert not np.any(got.divergences)
    assert np.all(got.same_top)
    np.testing.assert_array_equal(got.losses, got.reference_losses)


def test_the_reference_keeps_no_blocks_and_no_logits():
    made = predictions_of(OTHER, text(30), 8, 4)
    assert made.lm.weights.layers == ()
    assert sum(part.size for part in made.hidden) == 29 * CONFIG.hidden_size
    assert all(part.base is None for part in made.hidden), "no view that keeps a whole window"


# Statistics


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    assert perplexity(np.full(7, math.log(50))) == pytest.approx(50)


def test_divergence_goes_from_the_reference_to_the_model():
    p, q = np.array([[1.0 - 1e-12, 1e-12]]), np.array([[0.5, 0.5]])
    assert divergence(np.log(p), np.log(q)) == pytest.approx(math.log(2))
    assert divergence(np.log(q), np.log(p)) == pytest.approx(0.5 * math.log(1e12 / 4), rel=1e-3)


def test_summary_is_what_its_names_say():
    losses, kl = np.log([2.0, 8.0]), np.array([0.0, 1.0])
    result = summary(Scores(losses, np.log([4.0, 4.0]), kl, np.array([True, False])), text_bytes=4)
    assert result == pytest.approx(
        {
            "scored_tokens": 2,
            "perplexity": 4.0,
            "bits_per_byte": 1.0,
            "reference_perplexity": 4.0,
            "mean_kl_divergence": 0.5,
            "kl_divergence_99": 0.99,
            "max_kl_divergence": 1.0,
            "same_top_share": 0.5,
        }
    )
    assert summary(Scores(losses)) == {"scored_tokens": 2, "perplexity": pytest.approx(4.0), "bits_per_byte": None}


# Bad input


@pytest.mark.parametrize(
    ("ids", "window", "stride", "message"),
    [
        ([], 8, 4, "at least two tokens, got 0"),
        ([1], 8, 4, "at least two tokens, got 1"),
        ([1, 11], 8, 4, "token 1: expected an id from 0 to 10"),
        ([1, 2], 17, 4, "window: expected 2 to 16, the model's context, got 17"),
        ([1, 2], 1, 1, "window: expected 2 to 16"),
        ([1, 2], 8, 8, "stride: expected 1 to 7, less than the window, got 8"),
        ([1, 2], 8, 0, "stride: expected 1 to 7"),
    ],
)
def test_what_cannot_be_evaluated(ids, window, stride, message):
    with pytest.raises(UsageError, match=message):
        list(evaluate(MODEL, ids, window, stride))
    with pytest.raises(UsageError, match=message):
        list(reference(MODEL, ids, window, stride))


def test_a_reference_for_other_windows_or_with_other_tokens_is_refused():
    made = predictions_of(OTHER, text(20), 8, 4)
    with pytest.raises(UsageError, match="against: expected predictions for the same ids and windows"):
        list(evaluate(MODEL, text(20), 8, 2, made))
    with pytest.raises(UsageError, match="against: expected predictions for the same ids"):
        list(evaluate(MODEL, text(19), 8, 4, made))
    config = tiny_config(vocab_size=12)
    wider = LM(config, random_weights(config), None, {})
    with pytest.raises(UsageError, match="against: expected the model's vocabulary size of 11, got 12"):
        list(evaluate(MODEL, text(20), 8, 4, predictions_of(wider, text(20), 8, 4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_logits_that_are_not_finite_are_refused_with_their_place(bad):
    norm = MODEL.weights.norm.copy()
    norm[0] = bad
    with pytest.raises(ModelFileError, match="the logits for token 1: expected finite numbers"):
        list(evaluate(MODEL._replace(weights=MODEL.weights._replace(norm=norm)), text(20), 8, 4))


def test_a_window_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("npllm.apps.evaluate.free_bytes", lambda _: 3 * 4 * 4 * 8 * 8 - 1)
    with pytest.raises(NotEnoughMemoryError, match="attention scores"):
        list(evaluate(MODEL, text(20), 8, 4))
    list(evaluate(MODEL, text(20), 7, 4))
