"""The threads that run a loop together, and compiling. Without Numba there is one thread, and nothing is compiled."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from npllm.compiled import jit as compiling
from npllm.compiled.jit import COMPILES, as_bfloat16, as_float16, bfloat16, float16, jit, power_of_two, view
from npllm.compiled.team import Team, await_all, count, wait

needs_numba = pytest.mark.skipif(not COMPILES, reason="the loops need Numba (pip install -e '.[fast]')")

F32 = np.float32(0)
EACH = 1 if COMPILES else 97  # as plain Python, fewer numbers


@jit
def number_all(thread, threads, out, who, counters):
    while True:
        i = count(counters, 0)
        if i >= len(out):
            break
        out[i] += 1
        who[i] = thread
    wait(counters, 1, threads)
    if thread == 0:
        who[-1] = out.sum()  # of what all have written


@jit
def in_turn(thread, threads, values, counters):
    for phase in range(100):
        values[thread] += 1
        wait(counters, 2 * phase, threads)
        if values.min() != phase + 1:
            values[-1] = -1000
        wait(counters, 2 * phase + 1, threads)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_piece_is_given_to_one_thread(threads):
    out, who = np.zeros(5000, np.int64), np.zeros(5001, np.int64)
    Team(threads).run(number_all, 2, out, who)
    assert (out == 1).all()
    assert who[-1] == 5000
    assert 0 <= who[:-1].min() <= who[:-1].max() < threads


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nobody_goes_on_before_all_have_come(threads):
    values = np.zeros(threads, np.int64)
    Team(threads).run(in_turn, 200, values)
    assert (values == 100).all()


@needs_numba
def test_a_thread_that_sleeps_is_woken():
    team, values = Team(2), np.zeros(2, np.int64)
    for round_ in range(1, 4):
        values[:] = 0
        time.sleep(0.01)
        team.run(in_turn, 200, values)
        assert (values == 100).all(), round_


def fails_in(where):
    def function(thread, threads, counters):
        if thread == where:
            raise KeyboardInterrupt if where == 0 else ValueError("here")
        wait(counters, 0, threads)

    return function


@needs_numba
@pytest.mark.parametrize(("where", "error"), [(0, KeyboardInterrupt), (1, ValueError)])
def test_a_call_that_is_given_up_leaves_nobody_waiting(where, error):
    team = Team(2)
    with pytest.raises(error):
        team.run(fails_in(where), 1)
    values = np.zeros(2, np.int64)
    team.run(in_turn, 200, values)
    assert (values == 100).all()


@needs_numba
def test_ctrl_c_while_the_others_are_awaited(monkeypatch):
    team, calls = Team(2), []

    def interrupted(state, number):
        calls.append(number)
        if len(calls) == 1:
            raise KeyboardInterrupt
        await_all(state, number)

    monkeypatch.setattr("npllm.compiled.team.await_all", interrupted)
    values = np.zeros(2, np.int64)
    with pytest.raises(KeyboardInterrupt):
        team.run(in_turn, 200, values)
    assert (values == 100).all()
    assert calls == [1, 1]


@needs_numba
def test_two_callers_take_turns():
    team, wrong = Team(2), []

    def call():
        for _ in range(30):
            values = np.zeros(2, np.int64)
            team.run(in_turn, 200, values)
            if not (values == 100).all():
                wrong.append(values)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    team, values = Team(2), np.zeros(2, np.int64)
    team.run(in_turn, 200, values)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            values[:] = 0
            team.run(in_turn, 200, values)
            code = int((values != 100).any())
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


# Casts


@jit
def widened(codes, half, out):
    for i in range(len(codes)):
        out[i] = float16(codes[i]) if half else bfloat16(codes[i])


@jit
def narrowed(numbers, half, out):
    for i in range(len(numbers)):
        out[i] = as_float16(numbers[i]) if half else as_bfloat16(numbers[i])


@jit
def powers(exponents, out):
    for i in range(len(exponents)):
        out[i] = power_of_two(exponents[i])


@jit
def copied(address, shape, out):
    out[:] = view(address, shape, F32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_widening_is_exact(dtype):
    import ml_dtypes

    codes = np.arange(0, 2**16, EACH, dtype=np.uint16)
    numbers = codes.view(np.float16 if dtype == "float16" else ml_dtypes.bfloat16).astype(np.float32)
    out = np.empty(len(codes), np.float32)
    widened(codes, dtype == "float16", out)
    assert np.array_equal(out, numbers, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrowing_rounds_to_the_nearest_and_ties_to_even(dtype):
    import ml_dtypes

    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    bits = np.random.default_rng(0).integers(0, 2**32, 100000 // EACH, dtype=np.uint32)
    numbers = np.concatenate([bits.view(np.float32), np.arange(1, 1.01, 2**-12, dtype=np.float32)])
    numbers = numbers[np.isfinite(numbers) & (np.abs(numbers) < (65000 if dtype == "float16" else 3e38))]
    out = np.empty(len(numbers), np.uint16)
    narrowed(numbers, dtype == "float16", out)
    assert np.array_equal(out, numbers.astype(kind).view(np.uint16))


def test_powers_of_two():
    exponents, out = np.arange(-126, 128, dtype=np.int32), np.empty(254, np.float32)
    powers(exponents, out)
    assert np.array_equal(out, np.float32(2) ** exponents)


def test_a_view_is_the_array_at_the_address():
    array, out = np.arange(12, dtype=np.float32).reshape(3, 4), np.empty((3, 4), np.float32)
    copied(np.uint64(array.ctypes.data), (3, 4), out)
    assert np.array_equal(out, array)


# Compiled code on disk


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_numba
def test_without_a_folder_that_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    code = "from npllm.compiled.jit import FOLDER, is_compiled; print(FOLDER, is_compiled(is_compiled))"
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")) == "None False"


def test_a_function_is_on_disk_if_numba_has_an_index_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "FOLDER", tmp_path)
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "team.count-29.py311.nbi").touch()
    assert compiling.is_compiled(count)
    assert not compiling.is_compiled(wait)


@needs_numba
def test_compiling_is_announced_once(capsys, monkeypatch):
    def nothing(thread, threads, counters):
        pass

    monkeypatch.setattr("npllm.compiled.team.is_compiled", lambda function: False)
    team = Team(1)
    for _ in range(2):
        team.run(jit(nothing), 0)
    assert capsys.readouterr().err == "compiling the loops for this processor, once: about half a minute\n"


@pytest.mark.slow
def test_the_index_appears_when_a_function_is_compiled(tmp_path):
    code = """
import numpy as np
from npllm.compiled.jit import COMPILES, is_compiled
from npllm.compiled.team import count, wait
if COMPILES:
    count(np.zeros(16, dtype=np.int64), 0)
print(is_compiled(count) == COMPILES, is_compiled(wait))
"""
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)) == "True False"


@needs_numba
def test_the_folder_belongs_to_these_sources(tmp_path):
    code = "from npllm.compiled.jit import FOLDER; print(FOLDER)"
    folder = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert folder.startswith(str(tmp_path / "npllm" / "compiled-"))
    assert compiling.FOLDER is None or folder.endswith(compiling.FOLDER.name)


@needs_numba
def test_numba_s_own_setting_is_left_alone():
    import numba

    assert str(compiling.FOLDER) != numba.config.CACHE_DIR
