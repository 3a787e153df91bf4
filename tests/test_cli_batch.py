"""The command batch: its inputs, its outputs, and what it says when it resumes."""

import json
import re

import numpy as np
import pytest
from command_line import fails
from safetensors.numpy import load_file

from npllm.cli import batch as module
from npllm.cli import engines
from npllm.corpus import run
from npllm.errors import NotEnoughMemoryError

RECORDS = [{"id": f"r{i}", "prompt": text, "mine": i} for i, text in enumerate(["the cat", "and", "in the end", "12"])]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def results(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_record_has_a_line_and_the_same_command_has_nothing_more_to_do(npllm, source, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ["batch", source, "-o", out, "-n", 3, "--ordered"]
    done = npllm(*command)
    assert (done.code, done.out) == (0, ""), done
    assert re.search(r"4 records in this process, with at most [\d.]+ [MG]B of memory", done.err)
    assert re.search(r"4 records, 0 failed; 4 in this run, \d+ tokens in", done.err)
    first = results(out)
    assert [(one["id"], one["mine"]) for one in first] == [(f"r{i}", i) for i in range(4)]
    done = npllm(*command)
    assert "4 of 4 records done; resuming" in done.err
    assert "0 in this run" in done.err
    assert results(out) == first
    with out.open("ab") as file:
        file.truncate(out.stat().st_size - 5)
    done = npllm(*command)
    assert "bytes of incomplete lines" in done.err
    assert results(out) == first


def test_records_that_fail_are_counted_by_the_exit_code(npllm, source, tmp_path):
    with source.open("a") as file:
        file.write('{"id": "r0", "prompt": "again"}\n\n{"id": "half\n')
    done = npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1)
    assert done.code == module.SOME_FAILED == 6
    assert "6 records, 2 failed" in done.err
    errors = [one for one in results(tmp_path / "out.jsonl") if "error" in one]
    assert [(one["id"], one["line"]) for one in errors] == [(None, 5), (None, 7)]
    assert "'r0', already used by line 1" in errors[0]["error"]
    done = npllm("batch", source, "-o", tmp_path / "strict.jsonl", "--strict")
    assert done.code == 6
    assert done.err.splitlines()[-1].startswith("npllm: error: line 5: id: expected a unique one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["-n", 2], "started with options="),
        (["--seed", 1], "started with seed=0, now seed=1"),
        (["--ordered"], "started with ordered=False, now ordered=True"),
        (["--no-kernels"], ""),
    ],
)
def test_other_options_are_refused(npllm, source, tmp_path, changes, message):
    npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1)
    done = npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1, *changes)
    if message:
        fails(done, 2, message)
    else:  # the tests' models run on NumPy in any case
        assert done.code == 0


def test_another_input_is_refused(npllm, source, tmp_path):
    npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1)
    source.write_text(source.read_text() + json.dumps({"prompt": "more"}) + "\n")
    fails(npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1), 2, "the input has changed")


def test_text_files_and_stdin_are_read(npllm, tmp_path):
    (tmp_path / "in.txt").write_bytes("the cat\r\n\nand ö\n".encode())
    assert npllm("batch", tmp_path / "in.txt", "-o", tmp_path / "a.jsonl", "--task", "score", "--ordered").code == 0
    lines = b'{"id": 1, "prompt": "the cat"}\n{"id": 3, "prompt": "and \xc3\xb6"}'
    done = npllm("batch", "-", "-o", tmp_path / "b.jsonl", "--task", "score", "--ordered", stdin=lines)
    assert done.code == 0
    first, second = results(tmp_path / "a.jsonl"), results(tmp_path / "b.jsonl")
    assert first == second
    assert [one["id"] for one in first] == [1, 3]
    assert all(one["sum"] < 0 for one in first)


@pytest.mark.extra
def test_parquet_is_read_where_pyarrow_is(npllm, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "in.parquet")
    assert npllm("batch", tmp_path / "in.parquet", "-o", tmp_path / "out.jsonl", "-n", 1).code == 0
    assert {one["id"] for one in results(tmp_path / "out.jsonl")} == {"r0", "r1", "r2", "r3"}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    fails(npllm("batch", tmp_path / "bad.parquet", "-o", tmp_path / "c.jsonl"), 2, "expected a parquet file")


def test_vectors_are_in_files_that_the_lines_name(npllm, source, tmp_path):
    tap = "layers.1.residual_after_feedforward"
    done = npllm("batch", source, "-o", tmp_path / "v.jsonl", "--task", "embed", "--tap", tap, "--at", "all")
    assert done.code == 0, done
    index = results(tmp_path / "v.jsonl")
    tensor = load_file(tmp_path / "v-00000.safetensors")["vectors"]
    assert {one["file"] for one in index} == {"v-00000.safetensors"}
    assert sum(one["tokens"] for one in index) == len(tensor)
    assert sorted(one["row"] for one in index) == [*np.cumsum([0] + [one["tokens"] for one in index])[:-1]]
    assert tensor.shape[1] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "spark"], "--engine: expected local or ray"),
        (["--address", "a:1"], "--address: expected together with --engine ray"),
        (["--memory", "-1"], "--memory: expected gigabytes, more than 0 and at most 1000000, got -1"),
        (["--memory", "1e7"], r"at most 1000000, got 1e\+07"),
        (["--workers", "0"], "--workers: expected"),
        (["--cache-dtype", "int8"], "--cache-dtype: expected"),
        (["--window", "0"], "--window: expected 1 or more"),
        (["--task", "translate"], "--task: expected generate or score or embed, got translate"),
        (["--task", "embed"], "--tap: required with --task embed"),
        (["--task", "embed", "--tap", "norm", "--at", "first"], "--at: expected last or mean or all, got first"),
        (["--at", "last"], "--at: expected together with --task embed"),
        (["--tap", "norm"], "--tap: expected together with --task embed"),
        (["--format", "parquet"], "--format: expected together with --task embed"),
        (["--task", "score", "--seed", "4"], "--seed: --task score has no such option"),
        (["--stop", "\udcff"], "stop"),
        (["--task", "score", "--top-k", "2"], "--top-k: --task score has no such option"),
        (["--logprobs", "999"], "--logprobs: expected 0 to 100"),
    ],
)
def test_wrong_arguments_are_named_before_the_model_is_loaded(npllm, source, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(module.options, "load_model", None)
    fails(npllm("batch", source, "-o", tmp_path / "out.jsonl", *words), 2, message)
    assert [*tmp_path.iterdir()] == [source]


def test_wrong_outputs_are_named_before_the_model_is_loaded(npllm, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module.options, "load_model", None)
    fails(npllm("batch", source, "-o", "-"), 2, "must be resumable")
    fails(npllm("batch", source, "-o", tmp_path / "no" / "out.jsonl"), 2, "expected an existing folder")
    fails(npllm("batch", source, "-o", tmp_path / "out.csv"), 2, "ends in .jsonl or .ndjson, got .csv")


def test_a_value_that_the_model_does_not_have_is_named(npllm, source, tmp_path):
    out = tmp_path / "out.jsonl"
    fails(npllm("batch", source, "-o", out, "--task", "embed", "--tap", "nothing"), 2, "--tap: ")


@pytest.mark.parametrize("words", [["--memory", "0.001"], ["--memory", "0.001", "--workers", "2"]])
def test_a_run_in_which_no_record_fits_is_refused_and_leaves_no_file(npllm, source, tmp_path, words):
    fails(npllm("batch", source, "-o", tmp_path / "out.jsonl", *words), 5, "x the model")
    assert [*tmp_path.iterdir()] == [source]


def test_failed_records_are_computed_again_if_asked_for(npllm, source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as short:
        short.setattr(run, "check_fits", no_memory)
        assert npllm("batch", source, "-o", out, "-n", 1).code == 6
    assert [one["error"] for one in results(out)] == ["1 GB for the record"] * 4
    done = npllm("batch", source, "-o", out, "-n", 1)
    assert done.code == 6
    assert "4 of 4 records done, of which 4 failed (see --retry-failed); resuming" in done.err
    done = npllm("batch", source, "-o", out, "-n", 1, "--retry-failed")
    assert done.code == 0
    assert "4 records that failed will be computed again" in done.err
    assert sorted(one["id"] for one in results(out) if "error" not in one) == ["r0", "r1", "r2", "r3"]


def no_memory(*_):
    raise NotEnoughMemoryError("1 GB for the record")


def test_strict_refuses_errors_of_an_earlier_run(npllm, tmp_path):
    done = npllm("batch", "-", "-o", tmp_path / "out.jsonl", stdin=b"{}")
    assert (done.code, "1 record, 1 failed" in done.err) == (6, True)
    done = npllm("batch", "-", "-o", tmp_path / "out.jsonl", "--strict", stdin=b"{}")
    fails(done._replace(err=done.err.splitlines()[-1] + "\n"), 6, "1 of its records failed")


def test_no_engine_is_started_for_nothing(npllm, source, tmp_path, monkeypatch):
    command = ["batch", source, "-o", tmp_path / "out.jsonl", "-n", 1]
    assert npllm(*command).code == 0
    for name in ("OnRay", "Processes"):
        monkeypatch.setattr(engines, name, None)
    for words in (["--engine", "ray"], ["--workers", "2"], ["--memory", "0.001"]):
        assert npllm(*command, *words).code == 0


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(npllm, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS", -1)
    done = npllm("batch", source, "-o", tmp_path / "out.jsonl", "-n", 1)
    assert re.findall(r"npllm: (\d) of 4 records, \d+ tokens/s", done.err) == ["1", "2", "3", "4"]


def test_inputs_that_are_none(npllm, tmp_path):
    out = tmp_path / "out.jsonl"
    fails(npllm("batch", tmp_path / "none.jsonl", "-o", out), 2, "none.jsonl")
    (tmp_path / "a.csv").write_text("a")
    fails(npllm("batch", tmp_path / "a.csv", "-o", out), 2, "expected a .jsonl")
    fails(npllm("batch", "-", "-o", out, terminal=True), 2, "expected records on stdin")
    (tmp_path / "empty.jsonl").write_text("")
    assert npllm("batch", tmp_path / "empty.jsonl", "-o", out).code == 0


def test_processes_are_started_where_there_is_work_and_memory_for_them(monkeypatch):
    monkeypatch.setattr(engines, "threads", lambda: 4)
    gigabyte, least = 10**9, 10**8
    assert engines.workers_for(10, 64 * gigabyte, gigabyte, least) == 1
    assert engines.workers_for(1000, 64 * gigabyte, gigabyte, least) == 4
    assert engines.workers_for(1000, 5 * gigabyte, gigabyte, least) == 2
    assert engines.workers_for(1000, gigabyte, gigabyte, least) == 1
    assert engines.workers_for(1000, 5 * gigabyte, gigabyte, gigabyte) == 2
    assert engines.workers_for(1000, 5 * gigabyte, gigabyte, 2 * gigabyte) == 1
