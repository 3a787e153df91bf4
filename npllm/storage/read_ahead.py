"""Reading several tensors at once, in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

READERS = min(4, os.cpu_count() or 1)  # threads; copying into fresh memory keeps a core busy, and so does quantizing
T = TypeVar("T")


def read_ahead(read: Callable[[T], Any], items: Iterable[T], waiting: int) -> Generator[Any]:
    """map(read, items), computed ahead by READERS threads; close it at the end.

    Closing waits for the items that are being read and starts no others.

    waiting : how many results may be started before they are asked for
    """
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="npllm-read")
    queue: deque[Future[Any]] = deque()
    try:
        for item in items:
            queue.append(pool.submit(read, item))
            if len(queue) > waiting:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
