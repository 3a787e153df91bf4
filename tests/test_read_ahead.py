"""Reading with several threads: in order, not too far ahead, and not at all after closing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from npllm.errors import ModelFileError
from npllm.storage.read_ahead import READERS, read_ahead


def test_reading_ahead_keeps_the_order_and_does_not_run_away():
    taken = []
    items = (taken.append(item) or item for item in range(100))
    with closing(read_ahead(lambda item: item * item, items, waiting=3)) as results:
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert list(results) == [item * item for item in range(1, 100)]


def test_an_error_while_reading_ahead_comes_in_its_turn():
    def read(item):
        if item == 2:
            raise ModelFileError("the third")
        return item

    got = []
    with pytest.raises(ModelFileError, match="the third"), closing(read_ahead(read, range(50), waiting=50)) as results:
        got.extend(results)
    with closing(read_ahead(read, range(50), waiting=50)) as results:
        assert [next(results), next(results)] == [0, 1]


def test_nothing_is_begun_after_closing(monkeypatch):
    begun, closed, shutdown = [], threading.Event(), ThreadPoolExecutor.shutdown

    def read(item):
        begun.append(item)
        if item > 0:
            closed.wait()
        return item

    def tell(pool, wait=True, *, cancel_futures=False):
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        closed.set()
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", tell)
    results = read_ahead(read, range(100), waiting=99)
    assert next(results) == 0
    results.close()
    assert len(begun) <= 1 + READERS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("npllm-read")]
