"""Ablating a layer's feedforward network removes that network and changes nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

import npllm
from npllm.apps.ablate import without_layers
from npllm.errors import UsageError
from npllm.lm import LM
from npllm.sampling import softmax

PROJECTIONS = {"feedforward": "down_proj", "attention": "o_proj"}


def random_lm(lib=None, seed=0, layers=3):
    config = tiny_config(num_hidden_layers=layers)
    weights = random_weights(config, seed)
    return LM(config, weights if lib is None else lib.tree(weights), None, {})


def distribution(lm, ids):
    """The probabilities of the next token."""
    logits, _ = npllm.forward(np.asarray(ids), lm)
    return softmax(logits[-1])


@pytest.mark.slow
@pytest.mark.parametrize("part", PROJECTIONS)
@given(seed=st.integers(0, 20), length=st.integers(1, 5), layers=st.integers(1, 3))
def test_it_is_the_model_with_that_projection_zeroed(part, seed, length, layers):
    lm = random_lm(seed=seed, layers=layers)
    ids = random_ids(lm.config, length, seed=seed).tolist()
    result = without_layers(lm, ids, part)
    whole = distribution(lm, ids)
    assert result.token == int(np.argmax(whole))
    assert_close("probability", np.float32(result.probability), whole.max())
    assert len(result.without) == len(result.instead) == layers
    for layer in range(layers):
        blocks = list(lm.weights.layers)
        zeros = np.zeros_like(getattr(blocks[layer], PROJECTIONS[part]))
        blocks[layer] = blocks[layer]._replace(**{PROJECTIONS[part]: zeros})
        expected = distribution(lm._replace(weights=lm.weights._replace(layers=tuple(blocks))), ids)
        assert_close(f"without {layer}", np.float32(result.without[layer]), expected[result.token])
        assert result.instead[layer] == int(np.argmax(expected))


def test_every_library_gives_the_same(lib):
    ours, expected = without_layers(random_lm(lib), [3, 1, 4]), without_layers(random_lm(), [3, 1, 4])
    assert (ours.token, ours.instead) == (expected.token, expected.instead)
    assert_close("without", np.float32(ours.without), np.float32(expected.without))


def test_the_weights_are_not_touched():
    lm, fresh = random_lm(), random_lm()
    without_layers(lm, [3, 1, 4])
    for ours, theirs in zip(lm.weights.layers, fresh.weights.layers, strict=True):
        np.testing.assert_array_equal(ours.down_proj, theirs.down_proj)


@pytest.mark.parametrize(
    ("ids", "part", "message"),
    [
        ([1], "feed_forward", "part: expected feedforward or attention, got 'feed_forward'"),
        ([], "feedforward", "the prompt is empty"),
        ([1, 11], "feedforward", "token 1: expected an id from 0 to 10, got 11"),
    ],
)
def test_what_cannot_be_left_out_is_refused(ids, part, message):
    with pytest.raises(UsageError, match=message):
        without_layers(random_lm(), ids, part)
