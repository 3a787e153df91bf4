"""One pass and what it shows: probabilities, the logit lens and norms."""

import math

import numpy as np
import pytest
from libraries import Library
from models import (
    random_gpt2_weights,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)
from tolerance import assert_close

import npllm
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect import look as looking
from npllm.inspect.lens import likeliest, shares
from npllm.inspect.look import lens, look, norms
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.sampling import softmax

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def tiny_gpt2(**keys) -> LM:
    config = tiny_gpt2_config(**keys)
    return LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)


def test_a_look_sees_every_value_of_one_pass_and_keeps_what_is_shown():
    lm = tiny_lm()
    seen, everything = look(lm, IDS), {}
    npllm.forward(np.asarray(IDS), lm, tap=record(everything))
    assert list(seen.shapes) == list(everything)
    assert seen.shapes == {name: value.shape for name, value in everything.items()}
    assert seen.values
    for name, value in seen.values.items():
        np.testing.assert_array_equal(value, everything[name])
    assert {"layers.0.attention.weights", "layers.1.attention.weights"} <= seen.values.keys()
    assert seen.not_finite == {}


def test_a_look_sees_what_a_tap_changes():
    lm = tiny_lm()

    def without_a_layer(name, value):
        return 0 * value if name == "layers.1.feedforward.output" else value

    seen = look(lm, IDS, tap=without_a_layer)
    assert_close("logits", seen.logits, npllm.forward(np.asarray(IDS), lm, tap=without_a_layer)[0])
    assert norms(seen).feedforward[1].tolist() == [0.0] * len(IDS)


def test_a_look_is_the_same_on_every_library(writable_lib: Library):
    lm = tiny_lm()
    expected = look(lm, IDS)
    seen = look(lm._replace(weights=writable_lib.tree(lm.weights)), IDS)
    assert seen.shapes == expected.shapes
    assert seen.not_finite == {}
    for name, value in expected.values.items():
        assert_close(name, seen.values[name], value)
    for got, want in zip(lens(seen, [0, 4], 2), lens(expected, [0, 4], 2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_look_keeps_the_attention_of_one_layer_where_only_that_is_shown():
    kept = look(tiny_lm(), IDS, attention="1").values
    assert "layers.1.attention.weights" in kept
    assert "layers.0.attention.weights" not in kept


def test_each_token_has_the_probability_that_the_tokens_before_it_give():
    seen = look(tiny_lm(), IDS)
    probabilities, ranks = looking.given(seen)
    assert math.isnan(probabilities[0])
    assert ranks[0] == 0
    for position in range(1, len(IDS)):
        before = softmax(seen.logits[position - 1])
        assert_close("given", probabilities[position], before[IDS[position]])
        assert ranks[position] == sorted(before.tolist(), reverse=True).index(before[IDS[position]]) + 1


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_the_lens_goes_from_the_embedding_to_the_models_own_logits(lm):
    seen = look(lm, IDS)
    result = lens(seen, range(len(IDS)), 3)
    assert result.ids.shape == result.probabilities.shape == (3, 5, 3)
    np.testing.assert_array_equal(result.ids[-1], likeliest(seen.logits, 3))
    assert_close("last", result.probabilities[-1], shares(seen.logits, result.ids[-1]))
    probabilities, _ = looking.given(seen)
    assert_close("next", result.next[-1][:-1], probabilities[1:])
    assert np.isnan(result.next[:, -1]).all()
    np.testing.assert_array_equal(lens(seen, [2], 3).ids[:, 0], result.ids[:, 2])


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_norms_are_the_lengths_of_what_is_added_and_of_the_sum(lm):
    seen, result = look(lm, IDS), norms(look(lm, IDS))
    first = "embedding" if lm.transform is not gpt2_transform else "residual_after_embedding"
    values = {}
    npllm.forward(np.asarray(IDS), lm, tap=record(values))
    for name, got in [
        (first, result.embedding),
        ("layers.1.attention.output", result.attention[1]),
        ("layers.1.feedforward.output", result.feedforward[1]),
        ("layers.1.residual_after_feedforward", result.residual[1]),
    ]:
        assert_close(name, got, np.sqrt((values[name] ** 2).sum(axis=-1)))
    assert seen.lm is lm
