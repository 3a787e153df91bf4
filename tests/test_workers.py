"""The threads that share a product: each row once, in this process or a forked one, and their errors."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import WORKERS, matrix, pack

from npllm.devices import workers
from npllm.devices.workers import Workers


def test_an_error_in_a_thread_is_an_error_of_the_product(monkeypatch):
    monkeypatch.setattr(workers, "SHARED_FROM", 1)

    def work(first, last):
        if first > 0:
            raise ArithmeticError("in the last thread")

    with pytest.raises(ArithmeticError, match="in the last thread"):
        WORKERS[1].share(10, 10, work)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:os.fork")  # from jax, if another test has imported it
def test_a_fork_makes_threads_of_its_own():
    """It does not inherit its parent's threads, and waiting for them would hang."""
    some_workers = Workers(2)
    some_workers.share(2, 2**30, lambda first, last: None)
    child = multiprocessing.get_context("fork").Process(
        target=some_workers.share, args=(2, 2**30, lambda first, last: None)
    )
    child.start()
    child.join(5)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def covered(count, some_workers):
    """The rows that the threads process."""
    seen = []
    some_workers.share(count, 2**30, lambda first, last: seen.extend(range(first, last)))
    return sorted(seen)


@given(count=st.integers(0, 20))
def test_the_threads_cover_every_row_once(count):
    assert covered(count, Workers(3)) == list(range(count))


def test_products_at_the_same_time_leave_blas_its_threads(monkeypatch):
    """Each limits BLAS to one thread while it runs."""
    monkeypatch.setattr(workers, "SHARED_FROM", 0)
    some_workers = Workers(2)
    with some_workers.blas.limit(limits=2):
        before = some_workers.blas.info()
        weights = [pack(matrix(300, 320, seed), "int8", some_workers) for seed in range(2)]
        x = matrix(1, 320, seed=9)
        expected = [weight.matmul(x) for weight in weights]
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda i: weights[i % 2].matmul(x), range(100)))
        assert some_workers.blas.info() == before
    for i, y in enumerate(made):
        np.testing.assert_array_equal(y, expected[i % 2])
