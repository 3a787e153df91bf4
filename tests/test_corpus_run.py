"""Many records: each result is the one that its record gives alone, and a record that fails fails alone."""

import json
import math

import numpy as np
import pytest
from checkpoints import write_folder
from families import random_lm
from safetensors.numpy import load_file

import npllm
from npllm.corpus import records, work
from npllm.corpus.journal import Journal
from npllm.corpus.model_hash import model_hash
from npllm.corpus.records import Bad, Line, Task, job_of, parsed, seed_of
from npllm.corpus.run import Limits, RecordError, computed, run
from npllm.errors import ModelFileError, UsageError

LM = random_lm("llama")
CONTEXT = LM.config.max_position_embeddings
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5], [8, 9, 7, 9], [3, 1], [2, 7, 1, 8, 2, 8, 1, 8]]
RECORDS = [{"id": f"r{i}", "ids": ids, "max_new_tokens": 3 + i, "of": i} for i, ids in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, model_type="llama")
    return path


@pytest.fixture(scope="module")
def talker(folder):
    return npllm.load(folder, kernels=False)


def by_id(answers):
    return {answer["id"]: answer for answer in answers}


# generate


@pytest.mark.parametrize("how", [{}, {"batch_size": 1}, {"batch_size": 4}, {"window": 2}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_result_is_that_of_its_record_alone_however_it_is_batched(how, temperature):
    made = by_id(npllm.batch(LM, reversed(RECORDS), temperature=temperature, seed=7, **how))
    for record in RECORDS:
        options = {"temperature": temperature, "seed": seed_of(7, record["id"])}
        alone = npllm.generate(LM, record["ids"], max_new_tokens=record["max_new_tokens"], **options)
        assert made[record["id"]]["ids"] == alone.ids
        assert made[record["id"]]["finish_reason"] == alone.finish_reason
        assert made[record["id"]]["of"] == record["of"]


def test_the_cache_may_have_16_bits():
    made = by_id(npllm.batch(LM, RECORDS, cache_dtype="bfloat16", logprobs=0))
    scores = {}
    for kind in ("float32", "bfloat16"):
        [scored] = npllm.batch(LM, [{"ids": PROMPTS[0]}], "score", cache_dtype=kind)
        scores[kind] = scored["sum"]
    for record in RECORDS:
        alone = npllm.generate(
            LM, record["ids"], max_new_tokens=record["max_new_tokens"], cache_dtype="bfloat16", top_logprobs=0
        )
        assert made[record["id"]]["ids"] == alone.ids
        np.testing.assert_allclose(made[record["id"]]["logprobs"], alone.logprobs, rtol=1e-4)
    assert scores["bfloat16"] != scores["float32"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.05)
    with pytest.raises(UsageError, match="cache_dtype: --task embed has no such option"):
        npllm.batch(LM, [], "embed", tap="norm", cache_dtype="float16")
    for task in ("generate", "score"):
        [refused] = npllm.batch(LM, [{"ids": [1, 2], "cache_dtype": "float16"}], task)
        assert "cache_dtype: not an option of a record" in refused["error"]


def test_seeds_depend_on_the_id_and_the_run_s_seed_alone():
    assert seed_of(0, "a") == seed_of(0, "a")
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a"), seed_of(0, 1), seed_of(0, "1")}) == 5


def test_a_record_s_own_options_count_and_its_own_seed():
    task = Task(options={"temperature": 1.0, "top_k": 5}, seed=3)
    job = job_of(LM, {"id": 1, "ids": [1], "top_k": 2, "seed": 9}, 1, task)
    assert (job.options["temperature"], job.options["top_k"], job.options["seed"]) == (1.0, 2, 9)
    assert job_of(LM, {"id": 1, "ids": [1]}, 1, task).options["seed"] == seed_of(3, 1)


def test_new_tokens_end_with_the_context():
    [made] = npllm.batch(LM, [{"ids": [1] * (CONTEXT - 2)}])
    assert len(made["ids"]) == 2


def test_log_probabilities_are_those_of_generate():
    [made] = npllm.batch(LM, [{"ids": [3, 1, 4]}], max_new_tokens=3, logprobs=2)
    alone = npllm.generate(LM, [3, 1, 4], max_new_tokens=3, top_logprobs=2)
    assert made["logprobs"] == alone.logprobs
    assert made["top_logprobs"] == alone.top_logprobs


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"ids": []}, "the prompt is empty"),
        ({"prompt": "a"}, "no tokenizer.json"),
        ({}, "expected one of prompt, messages, ids, got none"),
        ({"ids": [1], "prompt": "a"}, "got prompt and ids"),
        ({"ids": [99]}, "token 0: expected an id from 0 to 22"),
        ({"ids": [1] * CONTEXT}, "the prompt is too long"),
        ({"ids": [1], "temperature": "warm"}, "temperature: expected"),
        ({"ids": [1], "logprobs": -1}, "logprobs: expected 0 to 100"),
        ({"ids": [1], "text": "mine"}, "text: reserved for results; rename this key"),
        ({"ids": [1], "error": "mine"}, "error: reserved for results"),
        ({"ids": [1], "id": 1.5}, "id: expected"),
    ],
)
def test_a_record_that_cannot_be_computed_becomes_an_error_and_the_rest_goes_on(record, message):
    if "id" in record:
        found = parsed(Line(4, json.dumps(record).encode()))
        assert isinstance(found, Bad)
        assert message in found.error
        return
    answers = list(npllm.batch(LM, [{"id": "good", "ids": [1]}, {"id": "bad", **record}], max_new_tokens=1))
    assert [answer["id"] for answer in answers if "error" not in answer] == ["good"]
    [bad] = [answer for answer in answers if "error" in answer]
    assert bad == {"id": "bad", "error": bad["error"], "line": 2}
    assert message in bad["error"]


def test_what_fails_in_the_middle_fails_alone(monkeypatch):
    steps_of_all = work.steps_of_all

    def failing(lm, requests, rows):
        for index, step in steps_of_all(lm, requests, rows):
            if requests[index].ids == PROMPTS[2] and step.finish_reason:
                raise ModelFileError("the logits are not finite")
            yield index, step

    expected = by_id(npllm.batch(LM, RECORDS))
    monkeypatch.setattr(work, "steps_of_all", failing)
    made = by_id(npllm.batch(LM, RECORDS, batch_size=3))
    assert made.pop("r2") == {"id": "r2", "error": "the logits are not finite", "line": 3}
    del expected["r2"]
    assert made == expected


@pytest.mark.parametrize(
    ("task", "how", "message"),
    [
        ("translate", {}, "task: expected one of generate, score, embed"),
        ("score", {"temperature": 1.0}, "temperature: --task score has no such option"),
        ("generate", {"tap": "norm"}, "tap: --task generate has no such option"),
        ("embed", {"tap": "norms"}, "tap: "),
        ("embed", {"tap": "layers.0.attention.weights"}, "tap: expected the name of one value"),
        ("embed", {"tap": "norm", "at": "first"}, "at: expected"),
        ("generate", {"window": 0}, "window: expected 1 or more"),
        ("generate", {"top_p": 2.0}, "top_p: expected"),
    ],
)
def test_wrong_arguments_are_refused_by_the_call(task, how, message):
    with pytest.raises(UsageError, match=message):
        npllm.batch(LM, [], task, **how)


# score


def log_softmax(made):
    logits = made[0]
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


@pytest.mark.parametrize("chunk", [512, 3])
def test_scores_are_the_log_probabilities_of_the_tokens(monkeypatch, chunk):
    monkeypatch.setattr(work, "PREFILL_CHUNK", chunk)
    monkeypatch.setattr(work, "ROWS", 2)
    [made] = npllm.batch(LM, [{"ids": PROMPTS[0], "of": 1}], "score")
    rows = log_softmax(npllm.forward(PROMPTS[0], LM))[:-1]
    expected = rows[np.arange(6), PROMPTS[0][1:]]
    np.testing.assert_allclose(made["logprobs"], expected, rtol=1e-5)
    assert made["sum"] == math.fsum(made["logprobs"])
    assert made["ids"] == PROMPTS[0][1:]
    assert (made["of"], made["bits_per_byte"], made["greedy"]) == (1, None, False)


def test_what_the_model_would_say_is_greedy(monkeypatch):
    monkeypatch.setattr(work, "ROWS", 1)
    alone = npllm.generate(LM, [3, 1], max_new_tokens=4)
    other = (alone.ids[0] + 1) % 23
    after = npllm.generate(LM, [3, 1, other], max_new_tokens=3)
    for ids, greedy in (
        (alone.ids, True),
        ([*alone.ids[:-1], (alone.ids[-1] + 1) % 23], False),
        ([other, *after.ids], False),
    ):
        job = job_of(LM, {"id": 1, "ids": [3, 1, *ids]}, 1, Task("score"))._replace(first=2)
        [result] = work.results(LM, [job], Task("score"))
        assert result.answer["greedy"] is greedy


def test_a_completion_is_scored_after_its_prompt(talker):
    record = {"prompt": "the cat", "completion": " and the end"}
    [made] = npllm.batch(talker, [record], "score")
    whole, start = talker.tokenizer.encode("the cat and the end"), len(talker.tokenizer.encode("the cat"))
    assert made["ids"] == whole[start:]
    rows = log_softmax(npllm.forward(whole, talker))
    np.testing.assert_allclose(made["logprobs"], rows[np.arange(start - 1, len(whole) - 1), made["ids"]], rtol=1e-4)
    assert made["bits_per_byte"] == pytest.approx(-made["sum"] / math.log(2) / len(" and the end"))


def test_a_text_of_one_token_has_nothing_to_score():
    [made] = npllm.batch(LM, [{"ids": [1]}], "score")
    assert "expected at least 2 tokens" in made["error"]


# embed


@pytest.mark.parametrize("at", ["last", "mean", "all"])
def test_vectors_are_the_values_of_a_pass(at):
    tap, seen = "layers.1.residual_after_feedforward", {}
    made = by_id(npllm.batch(LM, RECORDS, "embed", tap=tap, at=at))
    npllm.transform(PROMPTS[0], LM, tap=npllm.record(seen))
    value = seen[tap]
    expected = {"last": value[-1:], "mean": value.mean(axis=0, keepdims=True), "all": value}[at]
    np.testing.assert_allclose(made["r0"]["vectors"], expected, rtol=1e-6)
    assert made["r0"]["tokens"] == len(PROMPTS[0])


def test_a_value_of_each_head_keeps_its_axes():
    [made] = npllm.batch(LM, [{"ids": [1, 2, 3]}], "embed", tap="layers.0.attention.q", at="all")
    seen = {}
    npllm.transform([1, 2, 3], LM, tap=npllm.record(seen))
    np.testing.assert_array_equal(made["vectors"], np.moveaxis(seen["layers.0.attention.q"], -2, 0))


# The run


def lines_of(some):
    return [Line(number, json.dumps(record).encode()) for number, record in enumerate(some, 1)]


def here(records):
    return computed(LM, records, Task(), Limits(window=2))


def test_a_run_writes_every_record_once_and_then_none(tmp_path):
    some = [*lines_of([RECORDS[0], *RECORDS, {"id": "x", "ids": []}]), Line(99, b"{")]
    for again in (False, True):
        journal = Journal(tmp_path / "out.jsonl", {})
        results = list(run(some, here, journal))
        journal.close()
        assert len(results) == (0 if again else len(some))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(one["id"] for one in written if "error" not in one) == [one["id"] for one in RECORDS]
    assert {(one["id"], one["line"]) for one in written if "error" in one} == {(None, 2), ("x", 8), (None, 99)}


def test_a_result_is_that_of_another_order(tmp_path):
    outputs = []
    for name, some in (("a", RECORDS), ("b", RECORDS[::-1])):
        journal = Journal(tmp_path / name, {})
        outputs.append(by_id(result.answer for result in run(lines_of(some), here, journal)))
        journal.close()
    assert outputs[0] == outputs[1]


def test_results_come_in_the_order_of_the_input_if_asked_for(tmp_path):
    some = lines_of([*RECORDS[:3], {"id": "bad"}, *RECORDS[3:]])
    journal = Journal(tmp_path / "out.jsonl", {})
    results = list(run(some, here, journal, ordered=True))
    journal.close()
    assert [result.line for result in results] == list(range(1, 8))


def test_with_vectors_the_index_alone_is_in_the_order_of_the_input(tmp_path, monkeypatch):
    monkeypatch.setattr("npllm.corpus.vectors.ROWS", 2)
    task = Task("embed", tap="norm", at="last")
    with Journal(tmp_path / "out.jsonl", {"task": "embed"}) as journal:
        list(run(lines_of(RECORDS), lambda some: computed(LM, some, task, Limits()), journal, ordered=True))
    index = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["id"] for one in index] == [record["id"] for record in RECORDS]
    files = {one["file"]: load_file(tmp_path / one["file"])["vectors"] for one in index}
    assert len(files) == 3
    expected = by_id(npllm.batch(LM, RECORDS, "embed", tap="norm"))
    for one in index:
        np.testing.assert_array_equal(files[one["file"]][one["row"]], expected[one["id"]]["vectors"][0])


@pytest.mark.parametrize("one", ["abc", {"prompt": "abc"}])
def test_one_record_is_not_taken_for_several(one):
    with pytest.raises(UsageError, match="records: expected several dicts or texts, got one"):
        npllm.batch(LM, one)


def test_an_input_of_errors_alone(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", {})
    assert [result.line for result in run([Line(1, b"{"), Line(5, b"[]")], here, journal)] == [1, 5]
    journal.close()


def test_strict_stops_at_the_first_error(tmp_path):
    with (
        Journal(tmp_path / "out.jsonl", {}) as journal,
        pytest.raises(RecordError, match="line 1: the prompt is empty"),
    ):
        list(run(lines_of([{"ids": []}, *RECORDS]), here, journal, strict=True))
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_strict_refuses_an_output_with_errors(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", {})
    list(run(lines_of([{"ids": []}]), here, journal))
    journal.close()
    with Journal(tmp_path / "out.jsonl", {}) as journal, pytest.raises(RecordError, match="1 of its records failed"):
        list(run(lines_of([{"ids": []}]), here, journal, strict=True))


def test_strict_writes_the_vectors_before_the_error(tmp_path):
    def embedding(records):
        return computed(LM, records, Task("embed", tap="norm"), Limits(window=1))

    with Journal(tmp_path / "out.jsonl", {}) as journal, pytest.raises(RecordError, match="line 2"):
        list(run(lines_of([{"ids": [1]}, {"ids": []}, {"ids": [2]}]), embedding, journal, strict=True))
    assert json.loads((tmp_path / "out.jsonl").read_text())["row"] == 0


# From Python


def test_texts_are_prompts(talker):
    [text] = npllm.batch(talker, ["the cat"], max_new_tokens=3)
    [made] = npllm.batch(talker, [{"id": None, "prompt": "the cat"}], max_new_tokens=3)
    assert text == made
    assert made["id"] == 1
    with pytest.raises(UsageError, match="expected dicts or texts, got list as number 1"):
        list(npllm.batch(LM, [[1, 2]]))


def test_ids_from_python_are_those_of_a_file():
    some = [{"id": name, "ids": [1]} for name in (np.int64(3), "3", 3, None, 4, 1.5, True)]
    made = list(npllm.batch(LM, some, max_new_tokens=1))
    assert [one["id"] for one in made if "error" not in one] == [3, "3", 4]
    errors = {one["line"]: one for one in made if "error" in one}
    assert {one["id"] for one in errors.values()} == {None}
    assert "got 3, already used by line 1" in errors[3]["error"]
    assert errors[5]["error"].endswith("got 4, already used by line 4, whose number it is")
    assert errors[6]["error"] == "id: expected a text or a whole number, got 1.5"
    assert 7 in errors


# Which model


def test_a_hash_is_that_of_the_weights_the_config_and_the_dtype(folder, tmp_path):
    lm = npllm.load(folder)
    assert model_hash(lm) == model_hash(npllm.load(folder, kernels=False))
    write_folder(tmp_path / "other", model_type="llama", seed=1)
    write_folder(tmp_path / "theta", model_type="llama", rope_theta=500.0)
    others = [npllm.load(tmp_path / "other"), npllm.load(tmp_path / "theta"), npllm.load(folder, dtype="int8")]
    assert len({model_hash(one) for one in [lm, *others]}) == 4


def test_every_task_says_which_keys_mean_something():
    assert records.TASKS.keys() == records.ANSWERS.keys() == work.WORK.keys()
