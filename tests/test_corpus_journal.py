"""The output of a corpus: resumed after any interruption, refused for anything else."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import ROOT, unix
from safetensors.numpy import load_file

from npllm.corpus import journal as module
from npllm.corpus import vectors
from npllm.corpus.journal import Journal
from npllm.corpus.vectors import check_format, indexed
from npllm.corpus.work import Result
from npllm.errors import UnavailableError, UsageError

MADE_FROM = {"input": "abc", "options": {"top_k": 3}}


def opened(path, **changes):
    return Journal(path, MADE_FROM | changes)


def wrote(path, *results):
    journal = opened(path)
    journal.write([*results])
    journal.close()


def test_what_is_written_is_known_again(tmp_path):
    out = tmp_path / "out.jsonl"
    wrote(out, {"id": "a", "text": "ö\n\u2028"}, {"id": 7}, {"id": None, "error": "no", "line": 3})
    journal = opened(out)
    assert (journal.done, journal.failed, journal.cut) == ({"a", 7}, {3}, 0)
    journal.close()
    assert json.loads(out.read_text(encoding="utf-8").split("\n")[0]) == {"id": "a", "text": "ö\n\u2028"}


@pytest.mark.parametrize("tail", [b'{"id": "b", "te', b'{"id": "b"}', b"\0\0\0\0\n", b'{"id": "b"}\n\0\n[]\n{"i'])
def test_incomplete_lines_at_the_end_are_removed(tmp_path, tail):
    out = tmp_path / "out.jsonl"
    wrote(out, {"id": "a"})
    with out.open("ab") as file:
        file.write(tail)
    journal = opened(out)
    whole = {"a", "b"} if tail.startswith(b'{"id": "b"}\n') else {"a"}
    assert journal.done == whole
    assert journal.cut == len(tail) - 12 * (len(whole) - 1)
    journal.write([{"id": "d"}])
    journal.close()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [*sorted(whole), "d"]


@pytest.mark.parametrize("bad", [b"\0\n", b'{"id": "b\n', b'{"text": 1}\n', b"[" * 5000 + b"\n"])
def test_an_incomplete_line_among_results_is_refused_and_nothing_is_removed(tmp_path, bad):
    out = tmp_path / "out.jsonl"
    wrote(out, {"id": "a"})
    before = out.read_bytes() + bad + b'{"id": "c"}\n'
    out.write_bytes(before)
    with pytest.raises(UsageError, match="line 2: not a result"):
        opened(out)
    assert out.read_bytes() == before


def test_the_limits_of_a_model_s_file_are_not_those_of_a_result(tmp_path):
    wrote(tmp_path / "out.jsonl", {"id": "a", "deep": json.loads("[" * 60 + "]" * 60)}, {"id": "b"})
    journal = opened(tmp_path / "out.jsonl")
    assert (journal.done, journal.cut) == ({"a", "b"}, 0)
    journal.close()


def test_a_user_s_key_file_is_no_file_of_vectors(tmp_path):
    wrote(tmp_path / "out.jsonl", {"id": "a", "file": ["x"]}, {"id": "b", "file": "y-00004.safetensors"})
    journal = opened(tmp_path / "out.jsonl")
    assert journal.files == 0
    journal.close()


def test_failed_records_are_removed_to_be_computed_again(tmp_path):
    out = tmp_path / "out.jsonl"
    wrote(
        out,
        {"id": "a"},
        {"id": "b", "error": "no memory", "line": 2},
        {"id": None, "error": "no", "line": 3},
        {"id": "d"},
    )
    with Journal(out, MADE_FROM, retry_failed=True) as journal:
        assert (journal.done, journal.failed, journal.removed) == ({"a", "d"}, set(), 2)
        if os.name == "posix":
            with pytest.raises(UsageError, match="another npllm batch is writing it"):
                opened(out).close()
        journal.write([{"id": "b"}])
    assert out.read_text() == '{"id": "a"}\n{"id": "d"}\n{"id": "b"}\n'


def test_a_run_that_fails_before_its_first_result_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), opened(tmp_path / "out.jsonl"):
        raise KeyError
    assert not [*tmp_path.iterdir()]
    journal = opened(tmp_path / "out.jsonl")
    with pytest.raises(KeyError), journal:
        raise KeyError(journal.write([{"id": "a"}]))
    assert len([*tmp_path.iterdir()]) == 2
    with opened(tmp_path / "empty.jsonl"):
        pass
    assert (tmp_path / "empty.jsonl").read_bytes() == b""


@pytest.mark.parametrize("name", ["out.jsonl.run", "out-00003.safetensors", "out-00000.parquet"])
@pytest.mark.parametrize("text", ["my own notes", "[]", "{}"])
def test_files_of_the_user_s_are_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        opened(tmp_path / "out.jsonl", task="embed")
    assert (tmp_path / name).read_text() == text


def test_an_interrupted_run_replaces_its_own_vectors(tmp_path):
    opened(tmp_path / "out.jsonl", task="embed").close()
    (tmp_path / "out-00000.safetensors").write_text("written, but not yet named in the output")
    opened(tmp_path / "out.jsonl", task="embed").close()
    with pytest.raises(UsageError, match="out-00000"):
        opened(tmp_path / "out.jsonl", task="embed", tap="other")


@pytest.mark.parametrize(
    ("name", "message"), [("-", "must be resumable"), ("out.parquet", "ends in .jsonl or .ndjson")]
)
def test_names_that_say_something_else_are_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        Journal(name, MADE_FROM)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"input": "other"}, "the input has changed; choose another output name"),
        ({"model": "other"}, "the model differs"),
        ({"options": {}}, "started with options={'top_k': 3}, now options={}; choose"),
        ({"x": 1}, "started with x=None, now x=1; choose"),
    ],
)
def test_another_input_or_other_options_are_refused(tmp_path, changes, named):
    wrote(tmp_path / "out.jsonl", {"id": "a"})
    with pytest.raises(UsageError, match=named):
        opened(tmp_path / "out.jsonl", **changes)


def test_a_file_of_the_user_s_is_refused(tmp_path):
    (tmp_path / "out.jsonl").write_text("my own notes\n")
    with pytest.raises(UsageError, match="already exists and was not written by npllm batch"):
        opened(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "my own notes\n"


@pytest.mark.parametrize("ordered", [False, True])
def test_the_vectors_of_an_index_that_was_moved_are_not_replaced(tmp_path, ordered):
    made_from = {"task": "embed", "ordered": ordered}
    Journal(tmp_path / "out.jsonl", made_from).close()
    (tmp_path / "out-00000.safetensors").touch()
    Journal(tmp_path / "out.jsonl", made_from).close()  # it was killed before the first line
    (tmp_path / "out-00001.safetensors").touch()
    if ordered:  # whose lines may wait for another
        Journal(tmp_path / "out.jsonl", made_from).close()
    else:
        with pytest.raises(UsageError, match=r"out-00001\.safetensors: already exists"):
            Journal(tmp_path / "out.jsonl", made_from)


def test_bytes_that_were_cut_are_counted_before_failed_records_are_removed(tmp_path):
    wrote(tmp_path / "out.jsonl", {"id": "a"}, {"id": None, "error": "no", "line": 2})
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write('{"id')
    with Journal(tmp_path / "out.jsonl", MADE_FROM, retry_failed=True) as journal:
        assert (journal.cut, journal.removed) == (4, 1)


def test_a_broken_side_file_is_named(tmp_path):
    wrote(tmp_path / "out.jsonl", {"id": "a"})
    (tmp_path / "out.jsonl.run").write_text("{")
    with pytest.raises(UsageError, match=r"out\.jsonl\.run"):
        opened(tmp_path / "out.jsonl")


@unix
def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path):
    code = f"from npllm.corpus.journal import Journal; j = Journal({str(tmp_path / 'out.jsonl')!r}, {MADE_FROM!r})"
    code += "; print('open', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match="another npllm batch is writing it"):
            opened(tmp_path / "out.jsonl")
        other.kill()
    opened(tmp_path / "out.jsonl").close()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    journal = opened(tmp_path / "out.jsonl")
    journal.write([{"id": "a"}])
    file, journal.file = journal.file, None

    class Full:
        def write(self, data):
            if len(data) < 9:
                raise OSError(28, "No space left on device")
            return file.write(data[:8])

        def truncate(self, size):
            return file.truncate(size)

    journal.file = Full()
    with pytest.raises(UsageError, match="No space left on device"):
        journal.write([{"id": "b"}])
    journal.file = file
    journal.close()
    assert (tmp_path / "out.jsonl").read_text() == '{"id": "a"}\n'


def test_lines_reach_the_disk_within_a_second(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "SYNC", -1)
    monkeypatch.setattr(os, "fsync", synced.append)
    journal = opened(tmp_path / "out.jsonl")
    synced.clear()
    journal.write([{"id": "a"}])
    assert len(synced) == 1
    journal.close()


@unix
def test_an_output_that_cannot_be_resumed_is_refused():
    with pytest.raises(UsageError, match="expected a regular file"):
        Journal("/dev/null", MADE_FROM)


# Vectors


def results(*rows):
    value = iter(range(100))
    return [
        Result(i, {"id": i}, np.array([[next(value)] * 2 for _ in range(n)], np.float32)) if n else Result(i, {"id": i})
        for i, n in enumerate(rows)
    ]


def test_the_index_names_the_file_and_the_row_of_each_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "ROWS", 3)
    groups = list(indexed(results(1, 2, 0, 4, 1, 0), tmp_path / "out.jsonl", 5))
    answers = [result.answer for group in groups for result in group]
    places = [(one.get("file"), one.get("row")) for one in answers]
    files = [f"out-0000{number}.safetensors" for number in (5, 6, 7)]
    assert places == [(files[0], 0), (files[0], 1), (None, None), (files[1], 0), (files[2], 0), (None, None)]
    tensors = [load_file(tmp_path / name)["vectors"] for name in files]
    assert [[int(row[0]) for row in tensor] for tensor in tensors] == [[0, 1, 2], [3, 4, 5, 6], [7]]


def test_a_file_without_a_line_in_the_index_is_written_again(tmp_path):
    journal = opened(tmp_path / "out.jsonl", task="embed")
    assert journal.files == 0
    [group] = indexed(results(2, 1), journal.path, journal.files)
    [group] = indexed(results(2, 1), journal.path, journal.files)  # the process was killed before the lines
    journal.write([result.answer for result in group])
    journal.close()
    journal = opened(tmp_path / "out.jsonl", task="embed")
    assert journal.files == 1
    journal.close()


class Stop(BaseException):
    """As Ctrl-C or a signal."""


@pytest.mark.parametrize("error", [UsageError("the disk"), Stop])
def test_an_interruption_writes_the_vectors_that_are_finished(tmp_path, error):
    def interrupted():
        yield from results(1, 2)
        raise error

    groups = indexed(interrupted(), tmp_path / "out.jsonl", 0)
    assert [one.answer["row"] for one in next(groups)] == [0, 1]
    with pytest.raises(error if isinstance(error, type) else UsageError):
        next(groups)
    assert len(load_file(tmp_path / "out-00000.safetensors")["vectors"]) == 3


def test_a_file_is_written_after_some_seconds_however_small_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "time", SimpleNamespace(monotonic=partial(next, count(0, 20))))
    groups = list(indexed(results(1, 1, 1, 1), tmp_path / "out.jsonl", 0))
    assert [[one.answer["row"] for one in group] for group in groups] == [[0, 1], [0, 1]]


@pytest.mark.extra
@pytest.mark.parametrize("width", [(3,), (2, 3)])
def test_vectors_in_parquet_files_have_their_ids(tmp_path, width):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    draw = np.random.default_rng(0)
    some = [Result(i, {"id": name}, draw.random((i + 1, *width), np.float32)) for i, name in enumerate(["a", 7])]
    [group] = indexed(some, tmp_path / "out.jsonl", 0, "parquet")
    assert [one.answer for one in group] == [
        {"id": name, "file": "out-00000.parquet", "row": row} for name, row in (("a", 0), (7, 1))
    ]
    table = parquet.read_table(tmp_path / "out-00000.parquet").to_pydict()
    assert table["id"] == ["a", "7", "7"]
    np.testing.assert_array_equal(table["vector"], np.concatenate([one.vectors for one in some]))


def test_parquet_needs_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UnavailableError, match="pip install pyarrow"):
        check_format("parquet")
