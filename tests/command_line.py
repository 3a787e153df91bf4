"""The command line as the tests run it: in-process, with a tiny model as the default."""

import importlib
import io
import re
import sys
from typing import NamedTuple

import pytest
from checkpoints import write_folder


class Done(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path)
    return path


class Stdin(io.TextIOWrapper):
    """Bytes as stdin, from a pipe or typed at a terminal."""

    def __init__(self, data: bytes, terminal: bool = False):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def npllm(capsys, monkeypatch, folder):
    """The command line, run in-process with the tiny model as the default."""
    monkeypatch.setenv("NPLLM_MODEL", str(folder))
    monkeypatch.delenv("NPLLM_DEVICE", raising=False)
    monkeypatch.delenv("NPLLM_DEBUG", raising=False)
    main = importlib.import_module("npllm.cli.main").main  # not at the top: conftest.py loads before jaxtyping's hook

    def run(*argv, stdin=b"", terminal=False) -> Done:
        monkeypatch.setattr(sys, "stdin", None if stdin is None else Stdin(stdin, terminal))
        code = main([str(word) for word in argv])
        return Done(code, *capsys.readouterr())

    return run


def fails(done: Done, code: int, message: str) -> None:
    """Assert that a command ended with this exit code and one error line that matches the pattern."""
    assert done.code == code, done
    assert re.fullmatch(r"npllm: error: [^\n]+\n", done.err), done.err
    assert re.search(message, done.err), done.err
