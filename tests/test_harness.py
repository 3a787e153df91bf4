"""npllm's models in lm-evaluation-harness: likelihoods and accuracies are those of transformers' through the same."""

import dataclasses
import importlib
import json
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from checkpoints import write_folder
from families import random_lm

import npllm
from npllm.corpus.model_hash import model_hash
from npllm.errors import UnavailableError, UsageError
from npllm.harness import NpllmLM
from npllm.harness.options import generation_options
from npllm.tokenizer import Tokenizer

LINES = [
    {
        "question": "the cat and",
        "choices": [" the end", " in", " her hat"],
        "answer": 0,
        "text": "the cat in the hat " * 30,
    },
    {"question": "1, 2, 3,", "choices": [" 12", " and"], "answer": 1, "text": "in the end"},
    {"question": "", "choices": ["an", "in her", "the"], "answer": 2, "text": "x"},
    {"question": "a " * 120, "choices": ["and the end of it", "12"], "answer": 0, "text": "12 and 12 " * 9},
]
TASKS = [
    {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    {
        "task": "rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    {
        "task": "until",
        "output_type": "generate_until",
        "doc_to_text": "{{question}} {{text}}",
        "doc_to_target": "the",
        "generation_kwargs": {"until": ["e", "zz"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_a_local_file_has_the_numbers_of_transformers(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
    pytest.importorskip("accelerate", reason="lm-evaluation-harness's own models need it")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_folder(tmp_path / "tiny", model_type="llama", max_position_embeddings=64)
    (tmp_path / "data.json").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.json")}}}
    tasks = [{**task, **data, "test_split": "test"} for task in TASKS]
    theirs = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=str(tmp_path / "tiny"), device="cpu", dtype="float32", batch_size=1, max_length=64
    )
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "in the hat"}]
    ours = NpllmLM(npllm.load(tmp_path / "tiny"), prefix_token_id=theirs.prefix_token_id)
    for length, opened in ((1, True), (2, False)):
        text = ours.apply_chat_template(chat[:length], add_generation_prompt=opened)
        assert text == theirs.apply_chat_template(chat[:length], add_generation_prompt=opened)
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    none = importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False)  # it would read all tasks
    found = []
    for model in (ours, theirs):
        made = lm_eval.simple_evaluate(
            model=model, tasks=tasks, task_manager=none, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
        )
        numbers = {
            task: [v for k, v in sorted(made["results"][task].items()) if isinstance(v, float)]
            for task in made["results"]
        }
        answers = [one["filtered_resps"] for task in ("choices", "rolling", "until") for one in made["samples"][task]]
        found.append((numbers, answers))
    (ours, our_answers), (expected, their_answers) = found
    assert ours.keys() == expected.keys() == {"choices", "rolling", "until"}
    for task in ours:
        np.testing.assert_allclose(ours[task], expected[task], rtol=1e-4)
    for mine, other in zip(our_answers, their_answers, strict=True):
        for one, two in zip(mine, other, strict=True):
            if isinstance(one, str):
                assert one == two
            else:
                np.testing.assert_allclose(np.ravel(one)[0], np.ravel(two)[0], rtol=1e-4)
                assert np.ravel(one)[1:].tolist() == np.ravel(two)[1:].tolist()


def test_without_the_harness_there_is_one_line(monkeypatch):
    monkeypatch.setattr("npllm.harness.adapter.INSTALLED", False)
    with pytest.raises(UnavailableError, match=r"npllm-reference\[eval\]"):
        NpllmLM(random_lm("llama"))


def test_the_harness_s_options_become_npllm_s():
    options = generation_options({"do_sample": True, "temperature": "0.7", "until": "\n", "top_p": 0.9, "num_beams": 1})
    assert {name: options[name] for name in ("max_new_tokens", "stop", "temperature", "top_p")} == {
        "max_new_tokens": 256,
        "stop": ["\n"],
        "temperature": 0.7,
        "top_p": 0.9,
    }
    assert generation_options({"max_tokens": "9", "top_k": "5", "until": None})["max_new_tokens"] == 9
    for given, temperature in [({"temperature": 0.7, "do_sample": False}, 0), ({"temperature": 0.7}, 0.7)]:
        assert generation_options(given)["temperature"] == temperature
    assert [generation_options(given)["temperature"] for given in ({}, {"do_sample": True})] == [0.0, 1.0]
    for given, message in [
        ({"num_beams": 4}, "generation_kwargs: expected one of .*, got num_beams: 4"),
        ({"temperature": "warm"}, "generation_kwargs: temperature: expected a number, got 'warm'"),
        ({"top_p": 2.0}, "top_p: expected"),
    ]:
        with pytest.raises(UsageError, match=message):
            generation_options(given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, model_type="llama", max_position_embeddings=64)
    return path


@pytest.fixture(scope="module")
def adapter(folder):
    pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
    return NpllmLM(npllm.load(folder))


class Asked(NamedTuple):
    """A request of the harness."""

    args: tuple


@pytest.mark.extra
def test_requests_without_a_number_are_refused_and_without_a_context_computed(adapter):
    prefix = adapter.prefix_token_id
    [(alone, _)] = adapter._loglikelihood_tokens([(None, [], [7, 9])], disable_tqdm=True)
    [(after, _)] = adapter._loglikelihood_tokens([(None, [prefix], [7, 9])], disable_tqdm=True)
    assert alone == after != 0
    for continuation in ([], [7] * 65):
        with pytest.raises(
            UsageError, match=f"request 0: expected a continuation of 1 to 64 .* got {len(continuation)}"
        ):
            adapter._loglikelihood_tokens([(None, [7], continuation)])
    with pytest.raises(UsageError, match="request 0: expected a continuation, got an empty text"):
        adapter.loglikelihood([Asked(("", ""))], disable_tqdm=True)
    [text] = adapter.generate_until([Asked(("", {"max_gen_toks": 3}))], disable_tqdm=True)
    assert text == npllm.generate(adapter.model, [prefix], max_new_tokens=3).text
    with pytest.raises(UsageError, match="max_gen_toks: expected less than the context of 64, got 64"):
        adapter.generate_until([Asked(("the", {"max_gen_toks": 64}))])


@pytest.mark.extra
def test_each_result_goes_into_the_harness_s_cache(adapter, monkeypatch):
    kept = {}
    hook = SimpleNamespace(add_partial=lambda kind, key, value: kept.update({(kind, str(key)): value}))
    monkeypatch.setattr(adapter, "cache_hook", hook)
    asked, text, how = ("the cat", " in"), ("the end",), ("the", {"max_gen_toks": 2})
    expected = {
        ("loglikelihood", str(asked)): adapter.loglikelihood([Asked(asked)], disable_tqdm=True)[0],
        ("loglikelihood_rolling", str(text)): adapter.loglikelihood_rolling([Asked(text)], disable_tqdm=True)[0],
        ("generate_until", str(how)): adapter.generate_until([Asked(how)], disable_tqdm=True)[0],
    }
    assert kept == expected
    assert adapter.tokenizer_name == f"npllm-{model_hash(adapter.model)}"


@pytest.mark.extra
def test_a_chat_becomes_the_ids_that_a_chat_has(adapter):
    messages = [{"role": "user", "content": "the cat"}]
    text = adapter.apply_chat_template(messages)
    assert adapter.tok_encode(text) == adapter.tokens.chat_ids(messages)
    begun = [*messages, {"role": "assistant", "content": "in the hat"}]
    assert adapter.apply_chat_template(begun, add_generation_prompt=False) == text + "in the hat"
    assert adapter.chat_template(True) == adapter.tokens.chat_template
    assert adapter.chat_template() is None
    with pytest.raises(UsageError, match="apply_chat_template: expected no name"):
        adapter.chat_template("rag")
    without = NpllmLM(random_lm("llama")._replace(tokenizer=Tokenizer(adapter.tokens.backend)))
    with pytest.raises(UsageError, match="apply_chat_template: expected a model with a chat template"):
        without.apply_chat_template(messages)


@pytest.mark.extra
def test_the_token_before_every_text_is_there_once(adapter):
    tokenizers = importlib.import_module("tokenizers")
    backend = tokenizers.Tokenizer.from_str(adapter.tokens.backend.to_str())
    start = adapter.eot_token_id
    piece = backend.id_to_token(start)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{piece} $A", special_tokens=[(piece, start)]
    )
    lm = NpllmLM(adapter.model._replace(tokenizer=Tokenizer(backend)))
    ids = adapter.tok_encode("the cat")
    assert lm.tok_encode("the cat") == lm.tok_encode(f"{piece}the cat") == [start, *ids]
    assert lm.tok_encode("the cat", add_special_tokens=False) == ids
    assert lm.prefix_token_id == start


@pytest.mark.extra
def test_the_end_of_a_text_is_the_configuration_s_first_or_must_be_given(adapter):
    def token(*ids):
        config = dataclasses.replace(adapter.model.config, eos_token_id=ids)
        lm = adapter.model._replace(config=config, generation_config={}, tokenizer=Tokenizer(adapter.tokens.backend))
        return NpllmLM(lm).eot_token_id

    assert token(9, 3) == 9
    with pytest.raises(UsageError, match=r"expected one token that ends a text, got .*: give prefix_token_id"):
        token()


@pytest.mark.extra
def test_the_harness_makes_a_model_by_name(folder):
    pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
    registered = importlib.import_module("lm_eval.api.registry").get_model("npllm")
    flags = {"batch_size": "auto", "max_batch_size": None, "device": "cuda:0"}
    made = registered.create_from_arg_string(f"pretrained={folder},dtype=float32,prefix_token_id=5", flags)
    assert (made.batch_size, made.prefix_token_id) == (32, 5)
    assert registered.create_from_arg_obj({"pretrained": str(folder)}, {"batch_size": "4"}).batch_size == 4
    with pytest.raises(UsageError, match=r"model_args: expected pretrained, .*, got trust_remote_code"):
        registered.create_from_arg_string(f"pretrained={folder},trust_remote_code=True")
