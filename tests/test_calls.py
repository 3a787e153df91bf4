"""The public calls: text, ids or lists of either; their keywords; log-probabilities of the new tokens."""

import inspect
import math

import numpy as np
import pytest
from checkpoints import write_folder
from families import WRITERS, random_lm

import npllm
from npllm import loop
from npllm.apps.calls import Options, OptionsOfMany, generate, steps, stream
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.errors import UsageError

LM = random_lm("llama", max_position_embeddings=256)
IDS = [3, 1, 4, 1, 5]
SAMPLED = {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 1}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(folder)
    return npllm.load(folder, kernels=False)


# Text, ids, lists


def test_a_prompt_is_a_text_or_ids_in_a_list_a_tuple_or_an_array(talker):
    ids = talker.tokenizer.encode("and the 12")
    expected = loop.steps(talker, ids, max_new_tokens=5)
    expected = [step[:3] for step in expected]
    for prompt in ("and the 12", ids, tuple(ids), np.asarray(ids, dtype=np.int32)):
        assert [step[:3] for step in steps(talker, prompt, max_new_tokens=5)] == expected
        assert "".join(stream(talker, prompt, max_new_tokens=5)) == "".join(text for _, text, _ in expected)
        made = generate(talker, prompt, max_new_tokens=5)
        assert (made.ids, made.prompt_ids) == ([token for token, *_ in expected], ids)


def test_the_steps_of_a_list_come_with_the_index_of_their_prompt(talker):
    prompts = ["and the 12", talker.tokenizer.encode("the"), "12 and"]
    expected = generate(talker, prompts, max_new_tokens=[2, 6, 3], batch_size=2)
    made = list(steps(talker, prompts, max_new_tokens=[2, 6, 3], batch_size=2))
    assert [index for index, _ in made[:4]] == [0, 1, 0, 1]
    texts = list(stream(talker, prompts, max_new_tokens=[2, 6, 3], batch_size=2))
    for i, one in enumerate(expected):
        assert [step.id for index, step in made if index == i] == one.ids
        assert "".join(text for index, text in texts if index == i) == one.text
        alone = generate(talker, prompts[i], max_new_tokens=[2, 6, 3][i])
        assert one == alone


def test_a_list_is_checked_when_it_is_given():
    for call in (generate, steps, stream):
        with pytest.raises(UsageError, match=r"^prompt 1: token 0: expected an id from 0 to 22, got 99$"):
            call(LM, [[3], [99]])


WRONG = [
    (None, "prompt: expected a text or a list of token ids, got None"),
    ({"text": "a"}, "prompt: expected a text or a list of token ids, got {'text': 'a'}"),
    (b"abc", "prompt: expected a text or a list of token ids, got b'abc'"),
    (5, "prompt: expected a text or a list of token ids, got 5"),
    (np.ones(3), r"prompt: expected a whole number as token 0, got 1\.0"),
    (np.ones((1, 1, 2), dtype=int), "prompt: expected a text or a list of token ids, got array"),
    ([1, "a"], "prompt: expected a whole number as token 1, got 'a'"),
    ([True], "prompt: expected a whole number as token 0, got True"),
    ([b"abc"], "prompt 0: prompt: expected a text or a list of token ids, got b'abc'"),
    ([[1], 2], "prompt 1: prompt: expected a text or a list of token ids, got 2"),
    ([[1], None], "prompt 1: prompt: expected a text or a list of token ids, got None"),
    ([[[1]]], r"prompt 0: prompt: expected a whole number as token 0, got \[1\]"),
    ([[]], "prompt 0: the prompt is empty"),
    ([], "the prompt is empty"),
]
WRONG_OPTIONS = [
    ({"use_cache": "yes"}, "use_cache: expected True or False, got 'yes'"),
    ({"progress": 1}, "progress: expected True or False, got 1"),
    ({"max_new_tokens": "5"}, "max_new_tokens: expected a whole number, got '5'"),
    ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
    ({"temperature": None}, r"temperature: expected 0 \(greedy\) or more, got None"),
    ({"stop": 5}, "stop: expected strings that are not empty, got 5"),
    ({"top_logprobs": True}, "top_logprobs: expected a whole number, got True"),
    ({"top_logprobs": -1}, "top_logprobs: expected 0 or more, or None, got -1"),
    ({"logits_processors": len}, "logits_processors: expected a list of functions"),
    ({"tap": "norm"}, "tap: expected a function"),
    ({"tokens": "lookup"}, "tokens: expected a function"),
    ({"cache": []}, "cache: expected a KV cache of this model"),
]


@pytest.fixture
def unchecked(monkeypatch):
    """Without the types' own checks, which the tests add: as a user calls."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "off", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("prompt", "message"), WRONG)
def test_a_prompt_of_another_type_is_refused_in_one_line(prompt, message):
    for call in (generate, steps, stream):
        with pytest.raises(UsageError, match=f"^{message}"):
            call(LM, prompt)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_an_option_of_another_type_is_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        generate(LM, IDS, **options)
    if "cache" not in options:
        with pytest.raises(UsageError, match=f"{message}"):
            generate(LM, [IDS, IDS], **options)
    for call in (steps, stream):
        if "progress" not in options:
            with pytest.raises(UsageError, match=f"^{message}"):
                call(LM, IDS, **options)


@pytest.mark.usefixtures("unchecked")
def test_another_model_is_refused():
    for call in (generate, steps, stream):
        for other in (None, "model", {}):
            with pytest.raises(UsageError, match=r"^lm: expected a model, as npllm\.load returns it, got"):
                call(other, IDS)


# The signatures


def test_every_public_call_spells_out_its_keywords():
    calls = [getattr(npllm, name) for name in npllm.__all__]
    calls = [call for call in calls if inspect.isfunction(call)]
    assert len(calls) > 10
    for call in calls:
        for parameter in inspect.signature(call).parameters.values():
            untyped = parameter.kind is parameter.VAR_KEYWORD and parameter.annotation in ("Any", inspect._empty)
            assert not untyped, f"{call.__name__}: {parameter}"
            assert parameter.annotation is not inspect._empty or parameter.name == "self"


def test_the_options_are_those_of_the_loop_in_its_order_with_its_defaults():
    own = dict(inspect.signature(loop.steps).parameters)
    del own["lm"], own["ids"]
    for call in (generate, steps, stream):
        found = dict(inspect.signature(call).parameters)
        assert [name for name in found if name not in ("lm", "prompt", "batch_size", "progress")] == [*own]
        assert {name: found[name].default for name in own} == {name: one.default for name, one in own.items()}
    assert [*Options.__annotations__] == [*own, "batch_size"]
    assert [*OptionsOfMany.__annotations__] == [*(name for name in own if name != "cache"), "batch_size"]


# Log-probabilities


def expected_logprobs(lm, ids, made):
    """The log-softmax of the logits at each new token, from one pass over the whole text."""
    logits = npllm.forward([*ids, *made], lm)[0][len(ids) - 1 : -1].astype(np.float64)
    below = logits - logits.max(axis=-1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=-1, keepdims=True))


def assert_logprobs(lm, ids, made, top):
    """Assert that a generation has the log-probabilities of its tokens."""
    expected = expected_logprobs(lm, ids, made.ids)
    np.testing.assert_allclose(made.logprobs, expected[range(len(made.ids)), made.ids], rtol=1e-4, atol=1e-4)
    for found, row in zip(made.top_logprobs, expected, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        np.testing.assert_allclose([logprob for _, logprob in found], row[best], rtol=1e-4, atol=1e-4)
        assert len({token for token, _ in found}) == len(found) == min(top, len(row))


def without_likeliest(ids, logits):
    logits[0, np.argmax(logits[0])] = -math.inf
    return logits


@pytest.mark.parametrize("name", WRITERS)
def test_logprobs_are_those_of_the_models_own_distribution(name):
    lm = random_lm(name)
    made = generate(lm, IDS, max_new_tokens=4, top_logprobs=3, logits_processors=[without_likeliest], **SAMPLED)
    assert_logprobs(lm, IDS, made, 3)


@pytest.mark.parametrize("source", ["plain", "lookup", "draft", "whole"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_way_to_make_tokens_has_them(source, temperature):
    tokens = {
        "plain": {},
        "lookup": {"tokens": prompt_lookup(4)},
        "draft": {"tokens": draft_model(random_lm("llama", seed=2), 3)},
        "whole": {"use_cache": False},
    }[source]
    made = generate(LM, [3, 1, 3, 1], max_new_tokens=9, temperature=temperature, seed=4, top_logprobs=30, **tokens)
    assert_logprobs(LM, [3, 1, 3, 1], made, 30)


def test_the_texts_of_a_batch_have_theirs():
    prompts = [IDS, [6], [5, 3, 5]]
    made = generate(LM, prompts, max_new_tokens=[5, 2, 4], top_logprobs=[2, 2, 2], temperature=1.0, seed=3)
    for prompt, one in zip(prompts, made, strict=True):
        assert_logprobs(LM, prompt, one, 2)
    assert [one.logprobs for one in generate(LM, prompts, max_new_tokens=2)] == [()] * 3


def test_a_step_has_a_logprob_and_the_likeliest_only_if_asked():
    plain = list(steps(LM, IDS, max_new_tokens=3))
    asked = list(steps(LM, IDS, max_new_tokens=3, top_logprobs=2))
    assert [step.logprob for step in plain] == [step.logprob for step in asked]
    assert all(isinstance(step.logprob, float) and step.logprob < 0 for step in plain)
    assert [step.top_logprobs for step in plain] == [[]] * 3
    assert [step.top_logprobs[0] for step in asked] == [(step.id, step.logprob) for step in asked]
    assert generate(LM, IDS, max_new_tokens=3) == (*generate(LM, IDS, max_new_tokens=3, top_logprobs=0)[:4], (), ())
    assert generate(LM, IDS, max_new_tokens=3, top_logprobs=0).logprobs == [step.logprob for step in plain]


def test_equal_logits_are_named_in_the_order_of_their_ids_and_none_that_is_minus_infinity():
    logits = np.array([1.0, 2.0, -math.inf, 2.0, 1.0, 1.0], dtype=np.float32)
    assert [token for token, _ in loop.likeliest(logits, 3)] == [1, 3, 0]
    assert loop.likeliest(logits, 99) == [(1, 2.0), (3, 2.0), (0, 1.0), (4, 1.0), (5, 1.0)]


def test_every_library_has_the_same_logprobs(writable_lib):
    lm = LM._replace(weights=writable_lib.tree(LM.weights))
    made = generate(lm, IDS, max_new_tokens=3, top_logprobs=4)
    expected = generate(LM, IDS, max_new_tokens=3, top_logprobs=4)
    np.testing.assert_allclose(made.logprobs, expected.logprobs, rtol=1e-4)
    assert [[token for token, _ in step] for step in made.top_logprobs] == [
        [token for token, _ in step] for step in expected.top_logprobs
    ]


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_logprobs_and_processors_are_those_of_transformers(tmp_path):
    import sweep
    import torch
    from transformers import AutoModelForCausalLM

    sweep.write_model(tmp_path / "m", "llama", sweep.base("llama", sweep.CAUSAL), sweep.CAUSAL)
    lm = npllm.load(tmp_path / "m", dtype="float32", kernels=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = list(sweep.TEXT)[:6]
    made = generate(
        lm, ids, max_new_tokens=8, top_logprobs=5, repetition_penalty=1.3, logits_processors=[without_likeliest]
    )

    def same(ids, scores):
        return torch.asarray(without_likeliest(ids.numpy(), scores.numpy().copy()))

    done = model.generate(
        torch.asarray([ids]),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        repetition_penalty=1.3,
        logits_processor=[same],
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    assert made.ids == done.sequences[0, len(ids) :].tolist()
    raw = model.compute_transition_scores(done.sequences, done.logits, normalize_logits=True)[0]
    np.testing.assert_allclose(made.logprobs, raw.numpy(), rtol=1e-4, atol=1e-4)
    for found, logits in zip(made.top_logprobs, done.logits, strict=True):
        best = torch.log_softmax(logits[0], -1).topk(5)
        assert [token for token, _ in found] == best.indices.tolist()
        np.testing.assert_allclose([logprob for _, logprob in found], best.values.numpy(), rtol=1e-4, atol=1e-4)
