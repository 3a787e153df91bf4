"""The threads that share a product with a packed weight, one for each core, each with scratch of its own.

A packed weight is widened to float32 tile by tile. NumPy does that on one core; only its matrix products use all of
them. So the rows are shared out: every thread widens and multiplies its own, with BLAS held to one thread meanwhile.
Handing work to another thread takes about 50 µs, which a weight of less than `SHARED_FROM` numbers is not worth.
"""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
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
        self.lock = Lock()
        self.tiles = [np.empty(TILE + TILE // 8, dtype=np.float32) for _ in range(self.threads)]
        self.cores = own_cores(self.threads)
        others = iter([[core] for core in self.cores[1:]])
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), "npllm", lambda: stay_on(next(others, ())))

    @property
    def nbytes(self) -> int:
        """The scratch of all threads."""
        return sum(tile.nbytes for tile in self.tiles)

    def share(self, count: int, numbers: int, work: Callable[[int, int, np.ndarray], None]) -> None:
        """Call work(first, last, scratch) so that the calls together cover range(count).

        numbers : of all that is to be widened, which decides whether it is worth sharing
        scratch : float32 [TILE], and room for TILE / 2 bytes behind it; what it holds is anybody's
        """
        if numbers < SHARED_FROM or self.threads == 1:
            with self.lock:
                work(0, count, self.tiles[0])
            return
        bounds = [count * i // self.threads for i in range(self.threads + 1)]
        parts = list(zip(bounds[:-1], bounds[1:], self.tiles, strict=True))
        with self.lock, self.blas.limit(limits=1), staying_on(self.cores[:1]):
            others = [self.pool.submit(work, *part) for part in parts[1:]]
            try:
                work(*parts[0])
            finally:  # also when Ctrl-C came: the scratch is theirs until they are done
                wait(others)
        for other in others:
            other.result()  # an error in it becomes one here


def own_cores(threads: int) -> list[int]:
    """A core for each thread to stay on; none where the system has no such call, or there are fewer threads than cores.

    A thread that is woken up often starts on the core of the one that woke it, while the other core is idle: one
    product in three took up to twice as long.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == threads > 1 else []


@contextmanager
def staying_on(cores: Collection[int]) -> Iterator[None]:
    """Keep the calling thread on these cores meanwhile; with none, wherever it is."""
    before = stay_on(cores)
    try:
        yield
    finally:
        stay_on(before)


def stay_on(cores: Collection[int]) -> Collection[int]:
    """Keep the calling thread on these cores from now on; where it was allowed to be before."""
    if not cores:
        return ()
    before = os.sched_getaffinity(0)  # of this thread, not of the process
    with suppress(OSError):  # the core was taken away from us meanwhile: then it is only slower
        os.sched_setaffinity(0, cores)
    return before
