"""Records: whatever a line holds becomes a job or an error, and the keys mean what they seem to."""

import json
import math
import warnings

import numpy as np
import pytest
from checkpoints import write_folder
from families import random_lm

import npllm
from npllm.corpus import names
from npllm.corpus.records import KNOWN, MAKERS, TASKS, Bad, Job, Line, Task, job_of, parsed
from npllm.corpus.run import Limits, computed
from npllm.errors import UsageError

LM = random_lm("llama")


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, model_type="llama")
    return npllm.load(path, kernels=False)


def line(text, number=7):
    return Line(number, text.encode())


def job(record, task=Task(), lm=LM):  # noqa: B008 - a tuple
    found = parsed(line(json.dumps(record)))
    return found if isinstance(found, Bad) else job_of(lm, found, 7, task)


VALUES = [
    *("null", "true", "0", "-1", "1.0", "1.5", "1e300", "1e-320", "1e999", "NaN", "-Infinity", "1" + "0" * 400),
    *("1" + "0" * 5000, '""', '"a"', '"\\ud800"', '"\\u0000"', "[]", "[1]", "[1.0]", "[1e999]", '["a"]', "[[1]]"),
    *("[null]", "[{}]", "{}", '{"a": 1}', '[{"role": "user", "content": "the"}]', '[{"role": "user"}]'),
    *('[{"role": 5, "content": "a"}]', '["role", "content"]', '[["role", "content"]]', "[" * 60 + "]" * 60),
]
KEYS = sorted({*KNOWN, "x", "file", "line", "text", "error", "sum", "tokens", ""})


@pytest.mark.parametrize("task", [Task(), Task("score"), Task("embed", tap="norm")], ids=lambda task: task.name)
def test_every_value_in_every_key_becomes_a_job_or_an_error(talker, task):
    for key in KEYS:
        for value in VALUES:
            prompt = '"y": 1' if key in ("prompt", "messages", "ids") else '"prompt": "the cat"'
            found = parsed(line(f'{{{prompt}, "{key}": {value}}}'))
            found = found if isinstance(found, Bad) else job_of(talker, found, 7, task)
            if isinstance(found, Bad):
                assert len(json.dumps(found.result(), allow_nan=False)) < 400
            else:
                assert isinstance(found, Job)
                json.dumps(found.extra, allow_nan=False)


def test_every_accepted_value_can_be_computed_and_written(talker):
    some = [f'{{"prompt": "the", "max_new_tokens": 2, "{key}": {value}}}' for key in KEYS for value in VALUES]
    found = [(number, parsed(line(text, number))) for number, text in enumerate(some, 1)]
    good = [(number, one) for number, one in found if not isinstance(one, Bad)]
    results = list(computed(talker, good, Task(options={"temperature": 1.0, "logprobs": 2}), Limits()))
    assert {result.line for result in results} == {number for number, _ in good}
    for result in results:
        json.dumps(result.answer, allow_nan=False)
    assert sum("error" not in result.answer for result in results) > 100


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[[-1e999]]", '{"a": NaN}'])
def test_what_json_cannot_write_is_refused(value):
    found = parsed(line(f'{{"prompt": "a", "x": {value}}}'))
    assert found == Bad(7, None, "the record: expected finite numbers, got NaN or one beyond float64")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the record: expected a JSON object, got list"),
        ('{"a": ', "the record: expected JSON, got Expecting value: line 1 column 7 (char 6)"),
        ("[" + "{}," * 3_000_000 + "{}]", "the record: expected JSON that takes at most"),
        ('{"id": true}', "id: expected a text or a whole number, got True"),
        ('{"id": 1.5}', "id: expected a text or a whole number, got 1.5"),
        ('{"id": 1e300}', "id: expected a text or a whole number, got 1e+300"),
    ],
)
def test_a_line_that_is_no_record_says_so_without_advice_for_models(text, message):
    found = parsed(line(text))
    assert found.id is None
    assert found.error.startswith(message)
    assert "download" not in found.error


def test_null_is_as_good_as_nothing_but_the_user_s_own_is_kept():
    nothing = dict.fromkeys(KNOWN - {"ids", "completion"})
    found = job({**nothing, "ids": [1], "mine": None})
    assert found == job({"ids": [1], "mine": None})
    assert (found.id, found.extra) == (7, {"mine": None})
    assert "completion: expected a text" in job({"ids": [1, 2], "completion": None}, Task("score")).error


def test_whole_floats_are_whole_numbers_in_their_keys_alone():
    found = job({"id": 3.0, "ids": [1], "max_new_tokens": 5.0, "top_k": 2.0, "seed": 1.0, "logprobs": 0.0, "mine": 1.0})
    assert (found.id, type(found.id)) == (3, int)
    assert [found.options[name] for name in ("max_new_tokens", "top_k", "seed", "top_logprobs")] == [5, 2, 1, 0]
    assert isinstance(found.extra["mine"], float)
    assert "max_new_tokens: expected a whole number, got 5.5" in job({"ids": [1], "max_new_tokens": 5.5}).error
    assert isinstance(job({"id": 2.0**53, "ids": [1]}), Bad)  # 2^53 + 1 would be the same float


def test_numpy_s_values_count_as_python_s():
    found = job_of(LM, {"id": np.int64(4), "ids": np.array([1, 2]), "top_k": np.int8(3)}, 7, Task())
    assert (found.id, found.ids, found.options["top_k"]) == (4, [1, 2], 3)
    assert type(found.id) is int
    assert job_of(LM, {"ids": [1], "id": np.array([1])}, 7, Task()).id is None
    assert job_of(LM, {"ids": [1], "id": None}, 7, Task()).id == 7


# Keys


@pytest.mark.parametrize("name", names.FOREIGN)
def test_another_library_s_options_are_refused_where_they_would_count(name):
    assert job({"id": "a", "ids": [1], name: 1}).error.startswith(f"{name}: not an npllm option; ")
    assert job({"ids": [1, 2], name: 1}, Task("score")).extra == {name: 1}
    assert names.FOREIGN[name] is None or names.FOREIGN[name].partition(",")[0] in TASKS["generate"]


def test_misspelt_keys_are_warned_of_once():
    names.warn_of_name.cache_clear()
    record = {"ids": [1], "temprature": 1, "Top-K": 2, "message": 1, "source": 3}
    with pytest.warns(UserWarning, match="copied to the results") as found:
        assert [job(record).extra["source"] for _ in range(2)] == [3, 3]
    assert sorted(str(one.message) for one in found) == [
        f"{name}: copied to the results as your own key; did you mean {near}?"
        for name, near in (("Top-K", "top_k"), ("message", "messages"), ("temprature", "temperature"))
    ]


@pytest.mark.parametrize("name", ["topic", "n", "title", "x", "source", "label", "step", "temp", "ids_from", "key"])
def test_other_keys_are_the_user_s_own(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert job_of(LM, {"ids": [1], name: 1}, 7, Task()).extra == {name: 1}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("score", seed=4), "seed: --task score has no such option"),
        (Task("embed", tap="norm", seed=4), "seed: --task embed has no such option"),
        (Task("generate", at="mean"), "at: --task generate has no such option"),
        (Task("score", at="bogus"), "at: --task score has no such option"),
        (
            Task("embed"),
            "tap: expected the name of a value with --task embed, such as layers.3.residual_after_feedforward",
        ),
    ],
)
def test_options_that_a_task_ignores_are_refused(task, message):
    with pytest.raises(UsageError, match=message):
        npllm.corpus.records.check_task(task, LM)


def test_every_task_makes_its_jobs():
    assert MAKERS.keys() == TASKS.keys()


# Scores


def test_bits_per_byte_count_the_bytes_of_scored_tokens_alone(talker):
    text = "the cat and the end"
    first = len(talker.tokenizer.decode(talker.tokenizer.encode(text)[:1]).encode())
    assert first > 0
    for record in ({"prompt": text}, {"prompt": "", "completion": text}, {"ids": [], "completion": text}):
        found = job(record, Task("score"), talker)
        assert (found.first, found.size) == (1, len(text) - first)
    [made] = npllm.batch(talker, [{"prompt": text}], "score")
    assert made["bits_per_byte"] == -made["sum"] / math.log(2) / (len(text) - first)
    assert job({"prompt": "a", "completion": text}, Task("score"), talker).size == len(text)


def test_bits_per_byte_count_all_bytes_after_bos(talker, monkeypatch):
    encode = talker.tokenizer.encode
    monkeypatch.setattr(talker.tokenizer, "encode", lambda text: [1, *encode(text)])
    for record in ({"prompt": "the cat"}, {"prompt": "", "completion": "the cat"}):
        assert job(record, Task("score"), talker).size == len("the cat")


def test_bits_per_byte_are_unknown_where_the_first_token_is_part_of_a_character(talker, monkeypatch):
    monkeypatch.setattr(talker.tokenizer, "decode", lambda ids: "\ufffd")
    [made] = npllm.batch(talker, [{"prompt": "ö the cat"}], "score")
    assert made["bits_per_byte"] is None
