"""Lines on stderr, which may be closed, full, or without a reader."""

import io
import os
import sys

import pytest

from npllm.text.stderr import note


def test_a_note_is_one_line_without_controls(capsys):
    note("a\n\x1b[31m" + "x" * 1000)
    line = capsys.readouterr().err
    assert line.startswith("a \\u001b[31mx")
    assert len(line) == 501


def test_without_stderr_nothing_is_written_to_stdout(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    note("a")
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes as Unix has them")
def test_a_reader_that_is_gone_changes_nothing(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(io.FileIO(writing, "w"), line_buffering=True) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        note("a")
        note("b")  # and closing the stream does not try again
