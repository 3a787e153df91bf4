"""Scores of heads: a model built by hand has one head of each kind, and loops compute the same scores."""

import math

import numpy as np
import pytest
from checkpoints import byte_tokenizer
from families import random_lm
from models import tiny_config, tiny_gpt2_config

from npllm.errors import UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect.edits import Edit, edit_tap
from npllm.inspect.heads import (
    KINDS,
    HeadScores,
    head_scores,
    induction_scores,
    labels,
    of_text,
    ordinary_tokens,
    ranked,
    without_first_token,
)
from npllm.inspect.look import look
from npllm.lm import LM
from npllm.shapes import GPT2BlockWeights, Weights

V, C = 12, 24  # tokens, positions
D = V + C + V  # the residual stream: this token, this position, the token before
TOKEN, PLACE, BEFORE = (np.arange(D)[start:stop] for start, stop in ((0, V), (V, V + C), (V + C, D)))
H = D // 2  # of two heads
SHARP = 200.0  # so large that the softmax chooses one key, or equal ones in equal shares


def block(*heads) -> GPT2BlockWeights:
    """A block whose heads are (queries [H, D], bias of the queries [H], keys [H, D], values [H, D], output [D, H])."""
    q, q_bias, k, v, out = (list(one) for one in zip(*heads, strict=True))
    zeros, ones = np.zeros(D), np.ones(D)
    arrays = [ones, zeros, np.concatenate([*q, *k, *v]), np.concatenate(out, axis=1), ones, zeros]
    arrays += [np.zeros((1, D)), np.zeros((D, 1))]
    bias = np.concatenate([*q_bias, np.zeros(2 * D)])
    return GPT2BlockWeights(
        *(one.astype(np.float32) for one in arrays),
        qkv_proj_bias=bias.astype(np.float32),
        o_proj_bias=np.zeros(D, np.float32),
        c_fc_bias=np.zeros(1, np.float32),
        c_proj_bias=np.zeros(D, np.float32),
    )


def reads(dimensions, gain=1.0, shift=0) -> np.ndarray:
    """[H, D]: element i is `gain` times dimension `i + shift` of those given."""
    matrix = np.zeros((H, D))
    for i in range(H):
        if i + shift < len(dimensions):
            matrix[i, dimensions[i + shift]] = gain
    return matrix


NOTHING, NO_BIAS = np.zeros((H, D)), np.zeros(H)
ALWAYS = np.eye(H)[0] * SHARP
PREVIOUS = (reads(PLACE, SHARP, shift=1), NO_BIAS, reads(PLACE), reads(TOKEN), reads(BEFORE).T)
SINK = (NOTHING, ALWAYS, reads(PLACE[:1]), NOTHING, NOTHING.T)
INDUCTION = (reads(TOKEN, SHARP), NO_BIAS, reads(BEFORE), reads(TOKEN), 2 * reads(TOKEN).T)
SAME = (reads(TOKEN, SHARP), NO_BIAS, reads(TOKEN), NOTHING, NOTHING.T)


def built() -> LM:
    """A model of two blocks: a head that looks at the token before, and a sink; an induction head, and one that looks
    at the same token. The induction head needs the first one, which writes for each token which one was before it."""
    config = tiny_gpt2_config(vocab_size=V, n_embd=D, n_head=2, n_layer=2, n_inner=1, n_positions=C)
    embed_tokens, embed_positions = np.zeros((V, D), np.float32), np.zeros((C, D), np.float32)
    embed_tokens[np.arange(V), TOKEN] = embed_positions[np.arange(C), PLACE] = 1
    layers = (block(PREVIOUS, SINK), block(INDUCTION, SAME))
    ones, zeros = np.ones(D, np.float32), np.zeros(D, np.float32)
    weights = Weights(embed_tokens, layers, ones, embed_tokens, embed_positions=embed_positions, norm_bias=zeros)
    return LM(config, weights, None, {}, gpt2_transform)


IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]  # 1 and 5 come twice
EXPECTED = [["previous token", "first token"], ["induction", "same token"]]


def test_the_heads_of_a_model_built_by_hand_get_the_labels_they_were_built_for():
    lm = built()
    scores = head_scores(lm, look(lm, IDS))
    assert labels(scores) == EXPECTED
    for (layer, head), name in zip(
        np.ndindex(2, 2), ("previous_token", "first_token", "induction", "same_token"), strict=True
    ):
        assert getattr(scores, name)[layer, head] > 0.95
        assert ranked(scores, name, 1)[0][:2] == (layer, head)


def test_the_built_model_continues_a_repeated_text_and_its_induction_head_needs_the_head_before_it():
    lm = built()
    text = [7, 2, 9, 4, 0, 7, 2, 9]
    assert int(look(lm, text).logits[-1].argmax()) == 4
    whole = induction_scores(lm)
    without = induction_scores(lm, tap=edit_tap(lm, [Edit(0, "head", 0)]))
    assert whole[1, 0] > 0.95
    assert without[1, 0] < 0.2


def test_a_head_that_looks_everywhere_has_no_label():
    scores = HeadScores(*np.full((4, 1, 1), 0.3, dtype=np.float32))
    assert labels(scores) == [[""]]
    assert labels(scores._replace(induction=np.full((1, 1), np.nan))) == [[""]]


@pytest.mark.parametrize("name", KINDS)
def test_a_label_begins_at_its_threshold_and_the_first_kind_wins(name):
    at = np.full((1, 1), KINDS[name].threshold)
    zeros = HeadScores(*np.zeros((4, 1, 1)))
    assert labels(zeros._replace(**{name: at})) == [[KINDS[name].label]]
    assert labels(zeros._replace(**{name: at - 1e-6})) == [[""]]
    assert labels(HeadScores(*np.ones((4, 1, 1)))) == [["induction"]]


def loop_scores(weights, ids):
    """The three scores of one head's weights [T, T], by the words of their definitions."""
    T = len(ids)
    first = [weights[t][0] for t in range(1, T)]
    previous = [weights[t][t - 1] for t in range(2, T)]
    same = [sum(weights[t][s] for s in range(t + 1) if ids[s] == ids[t]) for t in range(1, T)]
    return [sum(some) / len(some) if some else math.nan for some in (first, previous, same)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_the_scores_of_a_text_are_those_of_a_loop(tokens):
    ids = IDS[:tokens]
    weights = np.tril(np.random.default_rng(0).random((3, tokens, tokens), dtype=np.float32))
    weights /= weights.sum(axis=-1, keepdims=True)
    same = np.tril(np.equal.outer(ids, ids))
    expected = np.transpose([loop_scores(one, ids) for one in weights])
    np.testing.assert_allclose(of_text(weights, same), expected, rtol=1e-5)


def test_the_induction_score_is_that_of_a_loop():
    lm = random_lm("gpt2")
    tokens = 6
    text = np.random.default_rng(0).choice(23, tokens, replace=False).tolist()
    seen = look(lm, text + text)
    for layer, row in enumerate(induction_scores(lm, tokens)):
        for head, score in enumerate(row):
            weights = seen.values[f"layers.{layer}.attention.weights"][head]
            shares = [weights[i][(text + text).index(text[i - tokens]) + 1] for i in range(tokens, 2 * tokens)]
            assert math.isclose(score, sum(shares) / tokens, rel_tol=1e-5)


def test_the_random_text_fits_the_context_and_the_vocabulary():
    lm = built()  # 25 tokens twice would be 50: its context has 24
    assert induction_scores(lm).shape == (2, 2)
    short = lm._replace(weights=lm.weights._replace(embed_positions=lm.weights.embed_positions[:3]))
    short = short._replace(
        config=tiny_gpt2_config(vocab_size=V, n_embd=D, n_head=2, n_layer=2, n_inner=1, n_positions=3)
    )
    assert np.isnan(induction_scores(short)).all()
    assert np.isnan(induction_scores(random_lm("bert"))).all()


def test_a_look_without_all_layers_is_refused():
    lm = built()
    with pytest.raises(UsageError, match="attention weights of all layers"):
        head_scores(lm, look(lm, IDS, "0"))


def test_ranked_heads_are_in_order_and_without_those_that_have_no_score():
    scores = HeadScores(*np.full((4, 2, 2), np.nan, dtype=np.float32))
    scores = scores._replace(induction=np.array([[0.25, np.nan], [0.75, 0.5]]))
    assert ranked(scores, "induction") == [(1, 0, 0.75), (1, 1, 0.5), (0, 0, 0.25)]
    assert ranked(scores, "first_token") == []
    with pytest.raises(UsageError, match=r"kind: expected one of induction, .*, got 'sink'"):
        ranked(scores, "sink")


def test_without_the_first_token_the_rest_of_each_row_sums_to_one():
    weights = np.tril(np.random.default_rng(0).random((2, 5, 5)))
    weights /= weights.sum(axis=-1, keepdims=True)
    before = weights.copy()
    others = without_first_token(weights)
    np.testing.assert_array_equal(weights, before)
    assert not others[..., 0].any()
    assert not others[:, 0].any()
    np.testing.assert_allclose(others[:, 1:].sum(axis=-1), 1)
    np.testing.assert_allclose(others[:, 4, 3] / others[:, 4, 2], weights[:, 4, 3] / weights[:, 4, 2])


def test_special_tokens_are_not_drawn():
    tokenizer, config = byte_tokenizer(), tiny_config(vocab_size=300)
    special = {*tokenizer.backend.get_added_tokens_decoder()}
    ids = ordinary_tokens(LM(config, None, tokenizer, {}))
    assert special
    assert {*ids.tolist()} == {*range(tokenizer.backend.get_vocab_size())} - special
