"""The threads that share a product with a packed weight, one for each core, each with scratch of its own.

A packed weight is widened to float32 tile by tile. NumPy does that on one core; only its matrix products use all of
them. So the rows are shared out: every thread widens and multiplies its own, with BLAS held to one thread meanwhile.
Handing work to another thread takes about 50 µs, which a weight of less than `SHARED_FROM` numbers is not worth.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
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
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="npllm")

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
        with self.lock, self.blas.limit(limits=1):
            others = [self.pool.submit(work, *part) for part in parts[1:]]
            try:
                work(*parts[0])
            finally:  # also when Ctrl-C came: the scratch is theirs until they are done
                wait(others)
        for other in others:
            other.result()  # an error in it becomes one here
