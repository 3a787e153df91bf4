import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_weights, tiny_config
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.heads import lm_head, sequence_classification_head, token_classification_head


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_it_is_the_loop(lib, tied, batch):
    config = tiny_config(tie_word_embeddings=tied)
    weights, hidden = random_weights(config), random(*batch, 3, config.hidden_size)
    expected = np.apply_along_axis(loops.linear, -1, hidden, weights.lm_head)
    assert_close("logits", to_host(lm_head(lib.array(hidden), lib.tree(weights), tiny_config())), expected)


def test_the_bias_of_the_head_is_added(lib):
    weights, hidden = random_weights(tiny_config()), random(3, tiny_config().hidden_size)
    bias = random(len(weights.lm_head))
    expected = lm_head(hidden, weights, tiny_config()) + bias
    got = lm_head(lib.array(hidden), lib.tree(weights._replace(lm_head_bias=bias)), tiny_config())
    assert_close("logits", to_host(got), expected)


def test_a_tied_head_is_the_embeddings_matrix_and_a_vector_finds_its_own_token(lib):
    weights = random_weights(tiny_config(tie_word_embeddings=True))
    assert weights.lm_head is weights.embed_tokens
    unit = weights.embed_tokens / np.linalg.norm(weights.embed_tokens, axis=-1, keepdims=True)
    weights = weights._replace(embed_tokens=unit, lm_head=unit)
    logits = to_host(lm_head(lib.array(unit), lib.tree(weights), tiny_config()))
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), np.arange(len(unit)))


# Heads that classify

PAD = 0


def classifier(bias=False):
    """Weights of a tiny model with a three-label head instead of the LM head."""
    score, score_bias = random(3, 8), (random(3) if bias else None)
    return random_weights(tiny_config())._replace(lm_head=None, score=score, score_bias=score_bias)


def test_a_model_that_classifies_has_no_lm_head():
    with pytest.raises(UsageError, match="no LM head: expected one, got a classifier"):
        lm_head(random(3, 8), classifier(), tiny_config())


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_token_head_is_the_loop_at_every_token(lib, batch, bias):
    weights, hidden = classifier(bias), random(*batch, 4, 8)
    expected = np.apply_along_axis(loops.linear, -1, hidden, weights.score, weights.score_bias)
    assert_close("scores", to_host(token_classification_head(lib.array(hidden), lib.tree(weights))), expected)


@given(texts=st.lists(st.lists(st.integers(PAD, 2), min_size=4, max_size=4), min_size=1, max_size=3), one=st.booleans())
def test_the_sequence_head_is_the_loop_at_the_last_token_that_is_no_padding(lib, texts, one):
    """Also if the padding id occurs within a text. If there is nothing else, it is the first token."""
    weights, hidden = classifier(), random(len(texts), 4, 8)
    last = [max((t for t in range(4) if text[t] != PAD), default=0) for text in texts]
    expected = np.array([loops.linear(rows[t], weights.score) for rows, t in zip(hidden, last, strict=True)])
    ids = np.array(texts)
    if one:
        hidden, ids, expected = hidden[0], ids[0], expected[0]
    got = sequence_classification_head(lib.array(hidden), lib.tree(weights), lib.array(ids), PAD)
    assert_close("scores", to_host(got), expected)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_without_padding_the_last_token_speaks_for_the_text(lib, batch):
    weights, hidden, ids = classifier(), random(*batch, 4, 8), np.zeros((*batch, 4), dtype=int)
    got = sequence_classification_head(lib.array(hidden), lib.tree(weights), lib.array(ids), None)
    assert_close("scores", to_host(got), np.apply_along_axis(loops.linear, -1, hidden[..., -1, :], weights.score))


def test_the_scores_of_a_text_are_those_of_its_last_token(lib):
    weights, hidden, ids = (
        lib.tree(classifier(bias=True)),
        lib.array(random(2, 4, 8)),
        lib.array([[1, 2, PAD, PAD]] * 2),
    )
    of_tokens = to_host(token_classification_head(hidden, weights))
    assert_close("scores", to_host(sequence_classification_head(hidden, weights, ids, PAD)), of_tokens[:, 1])


def test_what_stands_at_the_padding_does_not_matter_even_if_it_is_no_number(lib):
    weights, hidden, ids = lib.tree(classifier()), random(3, 8), lib.array([1, 2, PAD])
    expected = to_host(sequence_classification_head(lib.array(hidden), weights, ids, PAD))
    hidden[2] = np.nan
    np.testing.assert_array_equal(to_host(sequence_classification_head(lib.array(hidden), weights, ids, PAD)), expected)
