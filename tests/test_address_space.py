"""The address space that a limit leaves, checked before NumPy is imported."""

import subprocess
import sys

import pytest
from command_line import Done, fails

from npllm.devices import address_space
from npllm.devices.address_space import EACH_OTHER, ONE_CORE, address_space_bytes, check_imports
from npllm.errors import NotEnoughMemoryError


def test_without_a_limit_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(address_space, "address_space_bytes", lambda: None)
    check_imports()


@pytest.mark.parametrize(
    ("cores", "threads", "others"), [(1, "", 0), (8, "", 7), (8, "1", 0), (8, "4", 3), (8, "9", 7), (8, "0", 7)]
)
def test_what_importing_numpy_takes_depends_on_the_cores(monkeypatch, cores, threads, others):
    monkeypatch.setattr(address_space.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    needed = ONE_CORE + others * EACH_OTHER
    monkeypatch.setattr(address_space, "address_space_bytes", lambda: needed)
    check_imports()
    monkeypatch.setattr(address_space, "address_space_bytes", lambda: needed - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"address space: .* available .*; raise the limit \(ulimit -v\)"):
        check_imports()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and RLIMIT_AS as Linux has them")
def test_the_limit_less_what_is_in_use(monkeypatch):
    resource = address_space.resource
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert address_space_bytes() is None
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**46, 0))
    assert 2**40 < address_space_bytes() < 2**46


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc and RLIMIT_AS as Linux has them")
@pytest.mark.parametrize("megabytes", [50, 100, 150, 200, 250, 300, 350])
@pytest.mark.parametrize("command", [["generate", "Hello"], ["selftest"]], ids=lambda c: c[0])
def test_a_small_limit_is_one_line_and_exit_code_5(start, folder, command, megabytes):
    limit = ["bash", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "-"]
    process = start(*command, folder=folder, prefix=limit, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    fails(Done(process.returncode, out.decode(), err.decode()), 5, "address space")
