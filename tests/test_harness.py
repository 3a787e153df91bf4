"""npllm's models in lm-evaluation-harness: likelihoods and accuracies are those of transformers' through the same."""

import importlib
import json

import numpy as np
import pytest
from checkpoints import write_folder
from families import random_lm

import npllm
from npllm.errors import UnavailableError, UsageError
from npllm.harness import NpllmLM, generation_options

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
    found = []
    for model in (NpllmLM(npllm.load(tmp_path / "tiny"), prefix_token_id=theirs.prefix_token_id), theirs):
        made = lm_eval.simple_evaluate(model=model, tasks=tasks, log_samples=True, bootstrap_iters=0, verbosity="ERROR")
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
    monkeypatch.setattr("npllm.harness.INSTALLED", False)
    with pytest.raises(UnavailableError, match=r"npllm-reference\[eval\]"):
        NpllmLM(random_lm("llama"))


def test_the_harness_s_options_become_npllm_s():
    assert generation_options({"do_sample": True, "temperature": 0.7, "until": "\n", "top_p": 0.9}) == {
        "max_new_tokens": 256,
        "stop": ["\n"],
        "temperature": 0.7,
        "top_p": 0.9,
    }
    assert generation_options({"temperature": 0.7, "do_sample": False})["temperature"] == 0.0
    with pytest.raises(UsageError, match="generation_kwargs: num_beams: expected one of"):
        generation_options({"num_beams": 4})
