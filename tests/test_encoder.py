"""A whole text in one pass: ids, token types and hidden states."""

import numpy as np
import pytest
from test_golden import GOLDEN

import npllm
from npllm.apps.encoder import encode, hidden_states
from npllm.errors import ModelFileError, UsageError


@pytest.fixture(scope="module")
def lm():
    return npllm.load(GOLDEN / "bert")


def test_a_pair_is_joined_by_the_tokenizer_s_template(lm):
    assert encode(lm, "Paris") == ([2, 8, 3], [0, 0, 0])
    assert encode(lm, "Paris", "is a") == ([2, 8, 3, 9, 16, 3], [0, 0, 0, 1, 1, 1])
    assert encode(lm, [5, 6]) == ([5, 6], [0, 0])


def test_the_hidden_states_are_those_of_the_pass_with_the_types(lm):
    ids, types = encode(lm, "Paris", "is a")
    array, hidden = hidden_states(lm, ids, types)
    np.testing.assert_array_equal(array, ids)
    np.testing.assert_array_equal(hidden, npllm.transform(ids, lm, token_types=np.array(types))[0])


def test_a_decoder_has_no_token_types():
    lm = npllm.load(GOLDEN / "phi3-sequence-classification")
    _, hidden = hidden_states(lm, [5, 6], [0, 1])
    np.testing.assert_array_equal(hidden, npllm.transform([5, 6], lm)[0])


def test_a_type_that_the_model_lacks_is_refused(lm):
    with pytest.raises(ModelFileError, match=r"expected token types below 2, as in config\.json, got 2"):
        hidden_states(lm, [5, 6], [0, 2])


def test_a_piece_that_the_model_lacks_is_refused(lm):
    tokenizer = npllm.load(GOLDEN / "bert").tokenizer
    tokenizer.backend.add_tokens(["zebra"])
    with pytest.raises(UsageError, match="expected tokens with ids below 74"):
        encode(lm._replace(tokenizer=tokenizer), "a zebra")
