"""The command line as the tests run it: in-process with a tiny model as the default, or in a process of its own."""

import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from checkpoints import write_folder

ROOT = Path(__file__).parent.parent

unix = pytest.mark.skipif(os.name != "posix", reason="pipes, signals and devices as Unix has them")


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


@pytest.fixture
def start():
    """A function that starts the command line in a separate process. Whatever still runs after the test is killed."""
    processes = []

    def run(*argv, folder=None, prefix=(), **how) -> subprocess.Popen:
        ours = {"PYTHONPATH": str(ROOT), "NPLLM_MODEL": str(folder or ""), "NPLLM_DEVICE": "", "NPLLM_DEBUG": ""}
        ours["OPENBLAS_NUM_THREADS"] = "1"  # threads stall on a busy machine, and tiny models need none
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        command = [*prefix, sys.executable, "-m", "npllm", *argv]
        processes.append(subprocess.Popen(command, env=os.environ | ours, **how))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        with process:  # closes its pipes and waits for it
            pass


def fails(done: Done, code: int, message: str) -> None:
    """Assert that a command ended with this exit code and one error line that matches the pattern."""
    assert done.code == code, done
    assert re.fullmatch(r"npllm: error: [^\n]+\n", done.err), done.err
    assert re.search(message, done.err), done.err
