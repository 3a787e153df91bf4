"""How many threads compute on the CPU: one number for compiled loops, for packed weights and for BLAS.

Two hardware threads of one core share its arithmetic units and its cache, so a second one gains nothing here. And a
thread that waits for a core holds up all others. Hence as many threads as cores, and not as many as hardware threads.
"""

import os
from pathlib import Path

from threadpoolctl import ThreadpoolController

from ..errors import UsageError

MOST = 1024
CHOSEN: list[int] = []  # empty until the first call of `threads` or `set_threads`


def threads() -> int:
    """The number of threads that compute on the CPU.

    It is what `set_threads` was given, or else NPLLM_THREADS of the environment, or else the number of cores that this
    process may use, but no more than BLAS may (OPENBLAS_NUM_THREADS and the like). The first call settles it, and gives
    BLAS as many.

    Raises
    ------
    UsageError : NPLLM_THREADS is not a number of threads
    """
    if not CHOSEN:
        text = os.environ.get("NPLLM_THREADS")
        if not text:
            set_threads(min([cores(), *(library.num_threads for library in blas().lib_controllers)]))
        elif text.isdecimal() and 1 <= int(text) <= MOST:
            set_threads(int(text))
        else:
            raise UsageError(f"NPLLM_THREADS: expected a number from 1 to {MOST}, got {text!r}")
    return CHOSEN[0]


def set_threads(count: int) -> None:
    """Compute with this many threads from now on, in the whole process: in npllm, and in all other uses of BLAS.

    A computation that runs in another thread may still end with the former number.

    Raises
    ------
    UsageError : it is not a number of threads
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
        raise UsageError(f"threads: expected a number from 1 to {MOST}, got {count!r}")
    CHOSEN[:] = [count]
    blas().limit(limits=count)


def blas() -> ThreadpoolController:
    """The BLAS libraries that are loaded: NumPy's, and perhaps others."""
    return ThreadpoolController().select(user_api="blas")


def cores(root: Path = Path("/sys/devices/system/cpu"), quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many physical cores this process may use: hardware threads of one core count once.

    On Linux it is also at most the time that a container may take, in cores. Other systems do not tell which hardware
    threads belong together; there all of them count.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = [root / f"cpu{number}/topology/thread_siblings_list" for number in os.sched_getaffinity(0)]
    count = len({path.read_text() if path.exists() else str(path) for path in siblings})
    allowed, period = quota.read_text().split() if quota.exists() else ("max", "")
    return count if allowed == "max" else max(1, min(count, round(int(allowed) / int(period))))
