"""The caller's functions of the logits, and its tap, while a text is generated."""

import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
from families import WRITERS, random_lm

import npllm
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.devices.device import to_host
from npllm.errors import ModelFileError, UsageError
from npllm.inspect.patch import patch, zero_head
from npllm.options import check_options
from npllm.sampling import choose, penalize_repetition
from npllm.text.arguments import checked_tap

LM = random_lm("llama", max_position_embeddings=256)
IDS = [3, 1, 4, 1, 5]
SAMPLED = {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 1}


def without(token):
    """A processor that rules out a token."""

    def rule_out(ids, logits):
        logits[0, token] = -math.inf  # in place: it has a copy
        return logits

    return rule_out


def by_hand(lm, ids, process, count, seed, penalty=1.0, **options):
    """The new tokens, from passes over the whole text and the chain of transformers."""
    ids, random, made = list(ids), np.random.default_rng(seed), []
    for _ in range(count):
        logits = npllm.forward(ids, lm)[0][-1, :]
        if penalty != 1.0:
            logits = penalize_repetition(logits, np.isin(np.arange(len(logits)), ids), penalty)
        logits = process(np.asarray([ids]), logits[None, :].copy())[0, :]
        made.append(int(choose(logits, uniform=random.random(), **options)))
        ids.append(made[-1])
    return made


def test_processors_come_between_the_repetition_penalty_and_the_temperature():
    def process(ids, logits):
        assert ids.dtype == np.int64
        return np.where(np.arange(logits.shape[1]) == ids[0, -1], logits, 4 - 3 * abs(logits - 1))

    options = {name: value for name, value in SAMPLED.items() if name not in ("repetition_penalty", "seed")}
    expected = by_hand(LM, IDS, process, 8, 1, penalty=1.3, **options)
    for ways in ({}, {"tokens": prompt_lookup(4)}):
        made = npllm.generate(LM, IDS, max_new_tokens=8, logits_processors=[process], **SAMPLED, **ways)
        assert made.ids == expected
    assert made.ids != npllm.generate(LM, IDS, max_new_tokens=8, **SAMPLED).ids


def test_they_are_called_in_order_and_once_for_each_new_token():
    plain = npllm.generate(LM, IDS, max_new_tokens=6).ids
    for tokens in ({}, {"tokens": prompt_lookup(4)}, {"tokens": draft_model(random_lm("llama", seed=3), 3)}):
        seen = []

        def noting(ids, logits, seen=seen):
            seen.append(ids[0].tolist())
            return -logits

        def turned_back(ids, logits):
            return -logits

        made = npllm.generate(LM, IDS, max_new_tokens=6, logits_processors=[noting, turned_back], **tokens)
        assert made.ids == plain
        assert seen == [IDS + plain[:count] for count in range(6)]


def test_each_text_of_a_batch_has_its_own_ids_and_may_have_its_own_processors():
    prompts = [IDS, [6], [5, 3, 5]]
    plain = npllm.generate(LM, prompts, max_new_tokens=5)
    first = [made.ids[0] for made in plain]
    made = npllm.generate(LM, prompts, max_new_tokens=5, logits_processors=[[without(token)] for token in first])
    for prompt, token, one in zip(prompts, first, made, strict=True):
        alone = npllm.generate(LM, prompt, max_new_tokens=5, logits_processors=[without(token)])
        assert one.ids == alone.ids
        assert token not in one.ids
    both = npllm.generate(LM, prompts, max_new_tokens=5, logits_processors=[without(first[0])])
    assert both[0].ids == made[0].ids


def test_an_array_of_another_library_gets_its_own(writable_lib):
    lm = LM._replace(weights=writable_lib.tree(LM.weights))
    seen = []

    def process(ids, logits):
        seen.append(to_host(ids).tolist())
        return -1 * logits

    made = npllm.generate(lm, IDS, max_new_tokens=3, logits_processors=[process])
    assert made.ids == by_hand(LM, IDS, lambda ids, logits: -logits, 3, None)
    assert seen[-1] == [IDS + made.ids[:2]]


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (lambda ids, logits: logits * math.nan, "finite logits, or -inf for tokens that it rules out, got nan"),
        (lambda ids, logits: np.where(logits > -9, math.inf, logits), "got inf"),
        (lambda ids, logits: logits - math.inf, "got -inf for every token"),
        (lambda ids, logits: logits[0, :], r"expected a ndarray of shape \(1, 23\), got one of shape \(23,\)"),
        (lambda ids, logits: None, r"expected a ndarray of shape \(1, 23\), got None"),
        (lambda ids, logits: logits.tolist(), r"expected a ndarray of shape \(1, 23\), got \[\["),
    ],
)
def test_a_processor_that_returns_something_else_is_named(process, message):
    with pytest.raises(UsageError, match=rf"^logits_processors\[1\] \(<lambda>\): .*{message}"):
        npllm.generate(LM, IDS, logits_processors=[without(3), process])


@pytest.mark.parametrize("value", [without(3), [3], "f", {without(3): 1}.items()])
def test_anything_but_a_list_of_functions_is_refused(value):
    with pytest.raises(UsageError, match=r"^logits_processors: expected a list of functions \(ids, logits\) -> logits"):
        check_options(logits_processors=value)


def test_a_model_that_is_damaged_is_not_blamed_on_a_processor():
    broken = LM._replace(weights=LM.weights._replace(norm=LM.weights.norm * math.nan))
    with pytest.raises(ModelFileError, match="the logits after token 5: expected finite numbers"):
        npllm.generate(broken, IDS, logits_processors=[without(3)])


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_a_processor_of_transformers_is_refused_with_the_way_to_wrap_it():
    import torch
    from transformers import NoRepeatNGramLogitsProcessor

    processor = NoRepeatNGramLogitsProcessor(2)
    with pytest.raises(UsageError, match=r"got transformers' NoRepeatNGramLogitsProcessor; wrap it: lambda ids, log"):
        npllm.generate(LM, IDS, logits_processors=[processor])

    def wrapped(ids, logits):
        return processor(torch.asarray(ids), torch.asarray(logits)).numpy()

    made = npllm.generate(LM, IDS, max_new_tokens=20, logits_processors=[wrapped])
    pairs = list(pairwise(IDS + made.ids))
    assert len({*pairs}) == len(pairs)


# A tap


@pytest.mark.parametrize("name", WRITERS)
def test_a_tap_sees_the_values_of_every_pass_and_changes_nothing(name):
    lm, seen = random_lm(name), []
    made = npllm.generate(lm, IDS, max_new_tokens=3, tap=lambda name, value: (seen.append((name, value)), value)[1])
    assert made.ids == npllm.generate(lm, IDS, max_new_tokens=3).ids
    whole = []
    npllm.forward(IDS, lm, tap=lambda name, value: (whole.append((name, value)), value)[1])
    assert [name for name, _ in seen] == 3 * [name for name, _ in whole]
    for (name, got), (_, expected) in zip(seen[: len(whole) - 1], whole[:-1], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(seen[len(whole) - 1][1], whole[-1][1][-1:, :], rtol=1e-4, atol=1e-4)


def switched_off(lm, ids, count, tap):
    """Greedy tokens of passes over the whole text with a tap."""
    text = list(ids)
    for _ in range(count):
        text.append(int(np.argmax(npllm.forward(text, lm, tap=tap)[0][-1, :])))
    return text[len(ids) :]


@pytest.mark.parametrize("ways", [{}, {"tokens": prompt_lookup(4)}, {"use_cache": False}], ids=["", "lookup", "whole"])
def test_a_head_is_switched_off_while_generating(ways):
    tap = patch({"layers.0.attention.mixed": zero_head(1), "layers.1.attention.output": lambda value: -3 * value})
    made = npllm.generate(LM, IDS, max_new_tokens=8, tap=tap, **ways)
    assert made.ids == switched_off(LM, IDS, 8, tap)
    assert made.ids != npllm.generate(LM, IDS, max_new_tokens=8).ids


def test_each_chunk_of_a_long_prompt_has_its_scores(monkeypatch):
    monkeypatch.setattr(importlib.import_module("npllm.loop"), "PREFILL_CHUNK", 4)
    seen = []
    npllm.generate(
        LM, [3, 1, 3, 1, 3, 1], max_new_tokens=2, tap=lambda name, value: (seen.append((name, value)), value)[1]
    )
    shapes = [value.shape[-2:] for name, value in seen if name == "layers.0.attention.weights"]
    assert shapes == [(4, 4), (2, 6), (1, 7)]


def test_with_a_tap_the_prompts_of_a_list_run_alone():
    shapes = []
    tap = patch({"layers.1.attention.output": lambda value: (shapes.append(value.shape), -3 * value)[1]})
    made = npllm.generate(LM, [IDS, [6]], max_new_tokens=4, tap=tap)
    assert [one.ids for one in made] == [switched_off(LM, ids, 4, tap) for ids in (IDS, [6])]
    assert all(len(shape) == 2 for shape in shapes)


def test_a_tap_that_returns_something_else_is_refused_with_the_name_of_the_value():
    for wrong, got in ((None, "None"), (np.zeros(3), r"one of shape \(3,\)")):
        for call in (npllm.generate, lambda lm, ids, tap: npllm.forward(ids, lm, tap=tap)):
            with pytest.raises(UsageError, match=rf"^tap: embedding: expected the value, or another of .*, got {got}"):
                call(LM, IDS, tap=lambda name, value, wrong=wrong: wrong)
    with pytest.raises(UsageError, match=r"^tap: expected a function \(name, value\) -> value, got 3$"):
        checked_tap(3)


def test_a_tap_with_which_the_logits_are_not_finite_is_named():
    for factor in (math.nan, math.inf):
        tap = patch({"layers.1.attention.output": lambda value, factor=factor: factor * value})
        with pytest.raises(UsageError, match=r"^tap: expected values with finite logits, got nan; check whether"):
            npllm.generate(LM, IDS, max_new_tokens=2, tap=tap)
