"""npllm agrees with transformers: golden values, written by tools/golden/make_golden.py and committed.

Only these values pin the conventions that no mathematical property can check: the order of the fused projections, how
RoPE pairs dimensions, where a sliding window ends. Neither torch nor transformers is needed here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from default_model import needs_default_model
from safetensors.numpy import load_file
from tolerance import TOP_LOGIT, assert_close, assert_same_ids

import npllm
from npllm.cache import empty_cache
from npllm.heads import sequence_classification_head, token_classification_head
from npllm.masks import causal

GOLDEN = Path(__file__).parent / "golden"
DEFAULT = GOLDEN / "default-model"
CLASSIFIERS = {"phi3-sequence-classification", "phi3-token-classification"}
BERT = {folder.name for folder in GOLDEN.glob("bert*")}  # see test_bert.py
TINY = sorted(
    {file.parent.name for file in GOLDEN.glob("*/expected.safetensors")} - {DEFAULT.name} - CLASSIFIERS - BERT
)
KINDS = ("raw", "chat")


def expected_of(folder):
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def values_of_a_pass(lm, ids, chunk=None):
    """Every tapped value. With `chunk`, the prompt is processed in chunks, with a cache."""
    seen = {}
    cache = None if chunk is None else empty_cache(lm.config, len(ids), like=lm.weights.norm)
    for start in range(0, len(ids), chunk or len(ids)):
        part = np.asarray(ids[start : start + chunk] if chunk else ids)
        npllm.forward(part, lm, cache, total_length=len(ids), tap=npllm.record(seen))
    return seen


def assert_same_values(got, expected):
    """Assert that all names and values of a pass agree; scores only where they are visible."""
    assert {*got} == {value for value in expected if not value.endswith(".visible")}
    for value in got:
        visible = expected[value.replace(".scores", ".visible")] == 1 if value.endswith(".scores") else None
        assert_close(value, got[value], expected[value], where=visible)


@pytest.fixture(scope="module")
def default_lm():
    return npllm.load()


@pytest.mark.parametrize("chunk", [None, 12, 5, 1])
@pytest.mark.parametrize("name", TINY)
def test_every_value_of_a_pass_is_that_of_transformers(name, chunk):
    lm = npllm.load(GOLDEN / name)
    expected = load_file(GOLDEN / name / "expected.safetensors")
    assert_same_values(values_of_a_pass(lm, expected_of(GOLDEN / name)["ids"], chunk), expected)


@pytest.mark.filterwarnings("ignore:the text is now longer than the original context")
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_greedy_generation_is_that_of_transformers(name, use_cache):
    lm, expected = npllm.load(GOLDEN / name), expected_of(GOLDEN / name)
    steps = list(npllm.steps(lm, expected["ids"], max_new_tokens=16, use_cache=use_cache))
    assert [step.id for step in steps] == expected["greedy_ids"]
    assert steps[-1].finish_reason == ("length" if len(steps) == 16 else "stop")


def test_one_of_the_tiny_models_ends_by_itself():
    assert any(len(expected_of(GOLDEN / name)["greedy_ids"]) < 16 for name in TINY)


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_a_model_that_classifies_scores_as_transformers_does(name):
    lm, texts = npllm.load(GOLDEN / name), expected_of(GOLDEN / name)["texts"]
    expected = load_file(GOLDEN / name / "expected.safetensors")
    scores = {side: expected.pop(f"scores_{side}") for side in ("right", "left")}
    seen = {}
    npllm.transform(np.array(texts[0]), lm, tap=npllm.record(seen))
    assert_same_values(seen, expected)

    width = max(len(text) for text in texts)
    for side, theirs in scores.items():
        padding = [[lm.config.pad_token_id] * (width - len(text)) for text in texts]
        pairs = zip(texts, padding, strict=True)
        ids = np.array([text + pads if side == "right" else pads + text for text, pads in pairs])
        real = ids != lm.config.pad_token_id
        visible = causal(np.arange(width), np.arange(width)) & real[:, None, :]
        hidden, _ = npllm.transform(ids, lm, visible=visible)
        if "sequence" in name:
            got = sequence_classification_head(hidden, lm.weights, ids, lm.config.pad_token_id)
            assert_close(side, got, theirs)
        else:
            assert_close(side, token_classification_head(hidden, lm.weights)[real], theirs[real])


@needs_default_model
def test_every_value_of_the_default_model_is_that_of_transformers(default_lm):
    expected = load_file(DEFAULT / "expected.safetensors")
    got = values_of_a_pass(default_lm, default_lm.tokenizer.encode(expected_of(DEFAULT)["traced"]))
    assert {*got} == {value for value in expected if not value.endswith(".visible")}
    for value in got:
        sample = got[value][..., -1, :].reshape(-1)[::11]  # as tools/golden/make_golden.py does
        assert_close(value, sample, expected[value])


@needs_default_model
@pytest.mark.parametrize("kind", KINDS)
def test_default_model_continues_as_transformers_does(default_lm, kind):
    run = expected_of(DEFAULT)[kind][0]
    check_run(default_lm, kind, run, max_new_tokens=16)


@needs_default_model
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(20))
def test_default_model_continues_as_transformers_does_for_64_tokens(default_lm, kind, number):
    run = expected_of(DEFAULT)[kind][number]
    check_run(default_lm, kind, run, max_new_tokens=64)


def check_run(lm, kind, run, max_new_tokens):
    """The ids of the prompt and of its continuation, their text, and the best logit of every step."""
    prompt = run["prompt"]
    messages = [{"role": "user", "content": prompt}]
    ids = lm.tokenizer.encode(prompt) if kind == "raw" else lm.tokenizer.chat_ids(messages)
    assert ids == run["ids"]
    expected = run["greedy_ids"][:max_new_tokens]
    generation = npllm.generate(lm, ids, max_new_tokens=max_new_tokens)
    assert_same_ids(prompt, generation.ids, expected, run["gaps"])
    assert lm.tokenizer.decode(run["greedy_ids"]) == run["text"]

    # The logits along transformers' text, whichever token we chose at a near tie.
    logits, _ = npllm.forward(np.asarray(ids + expected[:-1]), lm)
    steps = logits[len(ids) - 1 :]
    np.testing.assert_allclose(steps.max(axis=-1), run["top_logits"][:max_new_tokens], rtol=0, atol=TOP_LOGIT)
    np.testing.assert_allclose(steps[0, run["first_ids"]], run["first_logits"], rtol=0, atol=TOP_LOGIT)
