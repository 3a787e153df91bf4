"""The threads that share a product: each row once, each thread on its own core, no scratch buffer used twice."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import WORKERS, matrix, pack

from npllm.devices import workers
from npllm.devices.workers import Workers, own_cores


def test_an_error_in_a_thread_is_an_error_of_the_product(monkeypatch):
    monkeypatch.setattr(workers, "SHARED_FROM", 1)

    def work(first, last, scratch):
        if first > 0:
            raise ArithmeticError("in the last thread")

    with pytest.raises(ArithmeticError, match="in the last thread"):
        WORKERS[1].share(10, 10, work)


def test_each_thread_has_a_core_of_its_own_while_they_share(monkeypatch):
    """Checked by the calls to the system, so it works on any number of cores."""
    cores, asked = {3, 5, 8}, []
    allowed = threading.local()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: getattr(allowed, "cores", cores), raising=False)

    def stay(_, where):
        allowed.cores = set(where)
        asked.append((threading.current_thread(), set(where)))

    monkeypatch.setattr(os, "sched_setaffinity", stay, raising=False)
    some_workers, at_work = Workers(3), {}
    everybody_is_there = threading.Barrier(3, timeout=60)

    def work(first, last, scratch):
        at_work[threading.current_thread()] = os.sched_getaffinity(0)
        everybody_is_there.wait()

    for _ in range(2):
        some_workers.share(3, 2**30, work)
        assert sorted(map(list, at_work.values())) == [[3], [5], [8]]
    main = threading.current_thread()
    assert [where for thread, where in asked if thread is main] == [{3}, cores] * 2, "it is free again"


def test_fewer_threads_than_cores_go_where_they_like(monkeypatch):
    """Two of the logical cores may share a physical one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert own_cores(3) == []
    assert own_cores(4) == [0, 1, 2, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2})
    assert own_cores(1) == []
    monkeypatch.delattr(os, "sched_getaffinity")
    assert own_cores(4) == []


def test_after_an_interruption_nobody_gets_scratch_that_is_in_use():
    """Ctrl-C in the calling thread while another is still working."""
    some_workers, in_use = Workers(2), []
    at_work, may_end = threading.Event(), threading.Event()

    def work(first, last, scratch):
        if first == 0:
            at_work.wait(60)
            raise KeyboardInterrupt
        in_use.append(scratch)
        at_work.set()
        may_end.wait(60)

    with pytest.raises(KeyboardInterrupt):
        some_workers.share(2, 2**30, work)
    assert len(in_use) == 1
    assert not any(np.shares_memory(tile, in_use[0]) for tile in some_workers.tiles)
    may_end.set()
    assert covered(5, some_workers) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:os.fork")  # from jax, if another test has imported it
def test_a_fork_makes_threads_of_its_own():
    """It does not inherit its parent's threads, and waiting for them would hang."""
    some_workers = Workers(2)
    some_workers.share(2, 2**30, lambda first, last, scratch: None)
    child = multiprocessing.get_context("fork").Process(
        target=some_workers.share, args=(2, 2**30, lambda first, last, scratch: None)
    )
    child.start()
    child.join(10)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def covered(count, some_workers):
    """The rows that the threads process."""
    seen = []
    some_workers.share(count, 2**30, lambda first, last, scratch: seen.extend(range(first, last)))
    return sorted(seen)


@given(count=st.integers(0, 20))
def test_the_threads_cover_every_row_once(count):
    assert covered(count, Workers(3)) == list(range(count))


def test_products_at_the_same_time_do_not_mix(monkeypatch):
    """Two threads that use one model share the scratch buffer, so they must wait for each other."""
    monkeypatch.setattr(workers, "SHARED_FROM", 2**30)
    weights = [pack(matrix(300, 320, seed), "int8", WORKERS[0]) for seed in range(2)]
    x = matrix(1, 320, seed=9)
    expected = [weight.matmul(x) for weight in weights]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda i: weights[i % 2].matmul(x), range(400)))
    for i, y in enumerate(made):
        np.testing.assert_array_equal(y, expected[i % 2])
