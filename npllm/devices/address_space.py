"""The address space that a limit (`ulimit -v`) leaves to this process. This module does not import NumPy.

Importing NumPy with too little ends in an ImportError, in another error that does not name the cause, or in OpenBLAS,
which ends the process itself. So the command line checks beforehand.
"""

import os
import sys
from pathlib import Path

from ..errors import NotEnoughMemoryError
from .units import format_bytes

if sys.platform != "win32":
    import resource

# Measured on Linux with NumPy 2.4: `npllm generate` with a tiny model reserves 388 MB on one core, and uses 62: each of
# our threads reserves 64 MB. OpenBLAS takes 40 MB more for each further core.
ONE_CORE, EACH_OTHER = 390_000_000, 40_000_000


def address_space_bytes() -> int | None:
    """The address space that is left, in bytes; None if it is unlimited or unknown."""
    statm = Path("/proc/self/statm")
    if sys.platform == "win32" or not statm.exists():
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - int(statm.read_text().split()[0]) * resource.getpagesize()


def check_imports() -> None:
    """Raise NotEnoughMemoryError if the address space is too small to import NumPy and the other libraries."""
    left = address_space_bytes()
    cores, chosen = os.cpu_count() or 1, os.environ.get("OPENBLAS_NUM_THREADS", "")
    threads = min(int(chosen), cores) if chosen.isdecimal() and int(chosen) else cores
    needed = ONE_CORE + (threads - 1) * EACH_OTHER
    if left is not None and left < needed:
        raise NotEnoughMemoryError(
            f"address space: NumPy and its threads ({threads}) need about {format_bytes(needed)}, available"
            f" {format_bytes(max(0, left))}; raise the limit (ulimit -v), or set OPENBLAS_NUM_THREADS=1"
        )
