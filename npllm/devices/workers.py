"""The threads that share a product with a packed weight.

A packed weight is widened to float32 tile by tile. NumPy does that on one core; only its matrix products use all of
them. So the rows are divided among threads. Each widens and multiplies its own rows, with BLAS limited to one thread.
Handing work to another thread takes 50 to 100 µs, too long for a weight of fewer than `SHARED_FROM` elements.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Lock

import numpy as np

from . import threads as setting

TILE = 2**20  # elements widened at a time; 2**17 was up to 1.6 times slower, 2**19 up to 1.2 times
SHARED_FROM = 2**20


class Workers:
    """As many threads as `devices.threads` says, including the calling thread.

    All packed weights of a model share one `Workers`. Of two concurrent products, one waits.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or setting.threads()
        self.blas = setting.blas()
        self.start()

    def start(self) -> None:
        """Create the thread pool of this process. The threads start when they are first needed."""
        # Each thread has its own error state: `np.errstate` around a call does not reach it.
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), "npllm", lambda: np.seterr(all="ignore"))
        self.lock, self.process = Lock(), os.getpid()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """A copy of a model, or one that is sent to another process, gets threads of its own."""
        return Workers, (self.threads,)

    @property
    def nbytes(self) -> int:
        """The size of the tiles that exist at a time, in bytes."""
        return 4 * TILE * self.threads

    def share(self, count: int, elements: int, work: Callable[[int, int], None]) -> None:
        """Call work(first, last) in all threads, so that the calls together cover range(count).

        elements : how many elements are to be widened; few are not shared
        """
        if elements < SHARED_FROM or self.threads == 1:
            work(0, count)
            return
        if self.process != os.getpid():  # a forked process has our memory, but not our threads
            self.start()
        bounds = [count * i // self.threads for i in range(self.threads + 1)]
        with self.lock, self.blas.limit(limits=1):
            first, *rest = pairwise(bounds)
            others = [self.pool.submit(work, *part) for part in rest]
            work(*first)
            for other in others:
                other.result()  # re-raises its exception
