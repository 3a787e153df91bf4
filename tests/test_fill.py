"""Filling gaps: the answers are those of transformers' pipeline "fill-mask"."""

import numpy as np
import pytest
from test_golden import GOLDEN, expected_of

import npllm
from npllm.apps.fill import gaps
from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.errors import ModelFileError, UsageError

MASKED = ["bert", "bert-published-bfloat16"]


@pytest.fixture(scope="module")
def lm():
    return npllm.load(GOLDEN / "bert")


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        if isinstance(one, list):
            assert_same(one, other)
        else:
            assert {**one, "score": None} == {**other, "score": None}
            np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_the_answers_are_those_of_transformers(name):
    lm = npllm.load(GOLDEN / name)
    for case in expected_of(GOLDEN / name)["fills"]:
        assert_same(npllm.fill(lm, case["text"], 4), case["answers"])


def test_several_masks_give_several_lists(lm):
    answers = npllm.fill(lm, "The [MASK] of [MASK]", top_k=2)
    assert [len(one) for one in answers] == [2, 2]
    assert all("[MASK]" in answer["sequence"] for one in answers for answer in one)
    ids, found = gaps(lm, "The [MASK] of [MASK]", 2)
    assert [ids[gap.position] for gap in found] == [4, 4]


def test_a_pair_has_token_types_and_masks_of_its_own(lm):
    ids, found = gaps(lm, "Is Berlin?", pair="It is [MASK].")
    expected = expected_of(GOLDEN / "bert")
    alone = gaps(lm, "Is Berlin? [SEP] It is [MASK].")
    assert ids == alone[0]
    assert found[0].answers[0]["score"] != alone[1][0].answers[0]["score"]  # the types differ
    assert gaps(lm, "Paris is a [MASK] on the Seine.", pair="Is Berlin?")[0] == expected["ids"]


def test_token_ids_are_a_text(lm):
    ids = lm.tokenizer.encode("Paris is the [MASK]")
    assert npllm.fill(lm, ids) == npllm.fill(lm, "Paris is the [MASK]")


def test_the_scores_are_probabilities(lm):
    answers = npllm.fill(lm, "Paris is the [MASK]", top_k=lm.config.vocab_size)
    scores = [answer["score"] for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_padding_is_left_out_of_the_sequence(lm):
    ids = [*lm.tokenizer.encode("Paris is the [MASK]"), 0, 0]
    assert "[PAD]" not in npllm.fill(lm, [*ids, 4], 1)[0][0]["sequence"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("Paris is", {}, r"the text has no \[MASK\]: expected one where a token is to be filled in"),
        ("", {}, r"the text has no \[MASK\]"),
        ("a [MASK]", {"top_k": 0}, "top_k: expected 1 to 74, got 0"),
        ("a [MASK]", {"top_k": 100}, "top_k: expected 1 to 74, got 100"),
        ("[MASK] " * 40, {}, "the text is too long: 42 tokens, but the model's context of 32 has room for 32"),
        ([2, 4, 3], {"pair": "a"}, "pair: expected None with token ids"),
        ([4, 900], {}, "expected an id from 0 to 73, got 900"),
    ],
)
def test_what_cannot_be_filled_is_one_line(lm, text, options, message):
    with pytest.raises(UsageError, match=message):
        npllm.fill(lm, text, **options)


def test_a_tokenizer_without_a_mask_is_refused(lm):
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json: expected one with a mask token"):
        npllm.fill(lm._replace(tokenizer=None), "a [MASK]")
    other = tokenizer_from_folder(GOLDEN / "tokenizer-bytes")
    with pytest.raises(ModelFileError, match="the tokenizer has no mask token"):
        npllm.fill(lm._replace(tokenizer=other), "a [MASK]")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "got GPT2LMHeadModel, which npllm generate runs"),
        ("bert-sequence-classification", r"got BertForSequenceClassification, which npllm\.apps\.classify runs"),
        ("phi3-token-classification", r"got Phi3ForTokenClassification, which npllm\.apps\.classify runs"),
    ],
)
def test_another_model_is_refused(name, message):
    with pytest.raises(UsageError, match=f"model: expected a masked language model, .*{message}"):
        npllm.fill(npllm.load(GOLDEN / name), "a [MASK]")
