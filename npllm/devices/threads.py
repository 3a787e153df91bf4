"""The threads that share a product with a packed weight, one for each core, each with scratch of its own.

A packed weight is widened to float32 tile by tile. NumPy does that on one core; only its matrix products use all of
them. So the rows are shared out: every thread widens and multiplies its own, with BLAS held to one thread meanwhile.
Handing work to another thread takes 50 to 100 µs, which a weight of less than `SHARED_FROM` numbers is not worth.

A thread that is woken up often starts on the core of the one that woke it, while the other core is idle. So each stays
on a core of its own.
"""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController

TILE = 2**20  # numbers that are widened at once; 2**17 was up to 1.6 times slower, 2**19 1.2 times
SHARED_FROM = 2**20


class Workers:
    """As many threads as BLAS may use (OPENBLAS_NUM_THREADS and the like), the calling one among them.

    All packed weights of a model share one of these, and its scratch: of two products at the same time one waits.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.blas = ThreadpoolController().select(user_api="blas")
        limits = [library.num_threads for library in self.blas.lib_controllers]
        self.threads = threads or max(limits, default=1)
        self.cores = own_cores(self.threads)
        self.tiles = [np.empty(TILE + TILE // 8, dtype=np.float32) for _ in range(self.threads)]
        self.start()

    def start(self) -> None:
        """Begin with threads of this process; they are made when they are needed."""
        others = iter([[core] for core in self.cores[1:]])
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), "npllm", lambda: stay_on(next(others, ())))
        self.lock, self.process = Lock(), os.getpid()

    @property
    def nbytes(self) -> int:
        """The scratch of all threads."""
        return sum(tile.nbytes for tile in self.tiles)

    def share(self, count: int, numbers: int, work: Callable[[int, int, np.ndarray], None]) -> None:
        """Call work(first, last, scratch) so that the calls together cover range(count).

        numbers : of all that is to be widened, which decides whether it is worth sharing
        scratch : float32 [TILE], and room for TILE / 2 bytes behind it; what it holds is anybody's
        """
        if self.process != os.getpid():  # a fork has our memory, but not our threads
            self.start()
        if numbers < SHARED_FROM or self.threads == 1:
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
                    other.result()  # an error in it becomes one here
            except BaseException:  # Ctrl-C perhaps, while the others are still at work in their scratch: it is theirs
                self.tiles = [np.empty_like(tile) for tile in self.tiles]
                raise


def own_cores(threads: int) -> list[int]:
    """A core for each of several threads, if there are as many of both: of fewer cores some could be halves of one.

    None on a system that does not let a thread stay on a core.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == threads > 1 else []


@contextmanager
def staying_on(cores: Collection[int]) -> Iterator[None]:
    """Keep the calling thread on these cores meanwhile; with none, wherever it is."""
    before = os.sched_getaffinity(0) if cores else ()  # of this thread, not of the process
    try:
        stay_on(cores)
        yield
    finally:
        stay_on(before)


def stay_on(cores: Collection[int]) -> None:
    """Keep the calling thread on these cores from now on; with none, wherever it is."""
    if cores:
        with suppress(OSError):  # a core was taken away from us: then it is only slower
            os.sched_setaffinity(0, cores)
