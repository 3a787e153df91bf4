"""The threads that share a product with a packed weight: one per core, each with its own scratch buffer.

A packed weight is widened to float32 tile by tile. NumPy does that on one core; only its matrix products use all of
them. So the rows are divided among threads. Each widens and multiplies its own rows, with BLAS limited to one thread.
Handing work to another thread takes 50 to 100 µs, too long for a weight of fewer than `SHARED_FROM` elements.

A thread that is woken often starts on the core of the thread that woke it, while another core is idle. So each thread
is pinned to a core.
"""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock

import numpy as np

from . import threads as setting

TILE = 2**20  # elements widened at a time; 2**17 was up to 1.6 times slower, 2**19 up to 1.2 times
SHARED_FROM = 2**20


class Workers:
    """As many threads as `devices.threads` says, including the calling thread.

    All packed weights of a model share one `Workers` and its scratch buffers. Of two concurrent products, one waits.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or setting.threads()
        self.blas = setting.blas()
        self.cores = own_cores(self.threads)
        self.tiles = [np.empty(TILE + TILE // 8, dtype=np.float32) for _ in range(self.threads)]
        self.start()

    def start(self) -> None:
        """Create the thread pool of this process. The threads start when they are first needed."""
        others = iter([[core] for core in self.cores[1:]])

        def begin() -> None:
            np.seterr(all="ignore")  # in each thread: `np.errstate` around a call does not reach it
            stay_on(next(others, ()))

        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), "npllm", begin)
        self.lock, self.process = Lock(), os.getpid()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """A copy of a model, or one that is sent to another process, gets threads of its own."""
        return Workers, (self.threads,)

    @property
    def nbytes(self) -> int:
        """The size of all scratch buffers, in bytes."""
        return sum(tile.nbytes for tile in self.tiles)

    def share(self, count: int, elements: int, work: Callable[[int, int, np.ndarray], None]) -> None:
        """Call work(first, last, scratch) in all threads, so that the calls together cover range(count).

        elements : how many elements are to be widened; few are not shared
        scratch : float32 [TILE], followed by TILE / 2 bytes; its contents are undefined
        """
        if self.process != os.getpid():  # a forked process has our memory, but not our threads
            self.start()
        if elements < SHARED_FROM or self.threads == 1:
            with self.lock:
                work(0, count, self.tiles[0])
            return
        bounds = [count * i // self.threads for i in range(self.threads + 1)]
        with self.lock, self.blas.limit(limits=1):
            parts = list(zip(bounds[:-1], bounds[1:], self.tiles, strict=True))
            try:
                others = [self.pool.submit(work, *part) for part in parts[1:]]
                with staying_on(self.cores[:1]):
                    work(*parts[0])
                for other in others:
                    other.result()  # re-raises its exception
            except BaseException:  # such as Ctrl-C: other threads may still be using their buffers
                self.tiles = [np.empty_like(tile) for tile in self.tiles]
                raise


def own_cores(threads: int) -> list[int]:
    """One core per thread, if there are as many threads as cores; otherwise, and for one thread, an empty list.

    With fewer threads than cores, two of them could land on the two hardware threads of one core. The list is also
    empty on systems that cannot pin a thread.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == threads > 1 else []


@contextmanager
def staying_on(cores: Collection[int]) -> Iterator[None]:
    """Pin the calling thread to these cores within the `with` block; without cores, do nothing."""
    before = os.sched_getaffinity(0) if cores else ()  # those of this thread, not of the process
    try:
        stay_on(cores)
        yield
    finally:
        stay_on(before)


def stay_on(cores: Collection[int]) -> None:
    """Pin the calling thread to these cores from now on; without cores, do nothing."""
    if cores:
        with suppress(OSError):  # the core is no longer ours: slower, but correct
            os.sched_setaffinity(0, cores)
