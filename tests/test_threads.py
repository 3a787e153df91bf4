"""The number of threads: the call, the flag, the environment, the cores; and BLAS has as many."""

import os
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_info

from npllm.devices import threads as module
from npllm.devices.threads import MOST, cores, set_threads, threads
from npllm.errors import UsageError


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """No number is chosen yet; afterwards BLAS has its own again."""
    monkeypatch.setattr(module, "CHOSEN", [])
    monkeypatch.delenv("NPLLM_THREADS", raising=False)
    with module.blas().limit(limits=1):
        yield


def of_blas():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_call_comes_before_the_environment_and_that_before_the_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 1)
    monkeypatch.setenv("NPLLM_THREADS", "2")
    assert (threads(), of_blas()) == (2, {2})
    set_threads(3)
    assert (threads(), of_blas()) == (3, {3})
    module.CHOSEN.clear()
    monkeypatch.setenv("NPLLM_THREADS", "")
    assert (threads(), of_blas()) == (1, {1})


def test_blas_may_have_fewer_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    with module.blas().limit(limits=2):
        assert threads() == 2


@pytest.mark.parametrize("count", [0, -1, MOST + 1, True])
def test_no_number_of_threads(count):
    with pytest.raises(UsageError, match="threads: expected a number from 1 to 1024, got "):
        set_threads(count)
    assert module.CHOSEN == []


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "99999"])
def test_no_number_in_the_environment(monkeypatch, text, npllm, folder):
    monkeypatch.setenv("NPLLM_THREADS", text)
    with pytest.raises(UsageError, match=f"NPLLM_THREADS: expected a number from 1 to 1024, got '{text}'"):
        threads()
    done = npllm("show", "-m", folder)
    assert done.code == 2
    assert "NPLLM_THREADS: expected" in done.err


@pytest.mark.parametrize(
    ("value", "says"), [("0", "--threads: expected a number from 1"), ("x", "--threads: invalid int")]
)
def test_an_invalid_flag(npllm, value, says):
    done = npllm("generate", "--threads", value, "a")
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_the_flag_comes_first_and_the_statistics_show_it(npllm, folder, monkeypatch):
    monkeypatch.setenv("NPLLM_THREADS", "3")
    shown = []
    for flag in (["--threads", 2], []):
        module.CHOSEN.clear()
        done = npllm("generate", "-m", folder, "--stats", "-n", 1, *flag, "and")
        shown += [line.split()[-1] for line in done.err.splitlines() if line.startswith("threads:")]
        assert of_blas() == {threads()}
    assert shown == ["2", "3"]


def test_hardware_threads_of_one_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 9}, raising=False)
    for number, siblings in ((0, "0,4"), (1, "1,5"), (4, "0,4")):  # 9 is not described
        (tmp_path / f"cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}/topology/thread_siblings_list").write_text(siblings)
    quota = tmp_path / "cpu.max"
    assert cores(tmp_path, quota) == 3
    for text, expected in (("max 100000", 3), ("200000 100000", 2), ("10000 100000", 1), ("800000 100000", 3)):
        quota.write_text(text)
        assert cores(tmp_path, quota) == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == (os.cpu_count() or 1)


def test_importing_npllm_leaves_blas_alone():
    program = (
        "import numpy, threadpoolctl as t; before = t.threadpool_info(); import npllm.loop, npllm.checkpoint.load;"
        " print(before == t.threadpool_info())"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"
