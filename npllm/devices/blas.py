"""How long BLAS's threads spin. This module imports neither NumPy nor anything that does.

After a product, OpenBLAS's threads spin for 2**26 cycles, in case another one follows. The threads that share a packed
weight (workers.py) need the same cores. OpenBLAS reads the setting once, when NumPy is imported.
"""

import os
import sys
import warnings


def short_spin() -> bool:
    """True if the time that OpenBLAS's threads spin after a product is set: to 2**20 cycles, unless the environment has
    another value. False, with a warning, if it is too late to set it.

    Call it before the first import of NumPy, in a program that runs 16-bit or quantized weights on the CPU. The command
    line does. `import npllm` does not, because it changes the environment: it sets OPENBLAS_THREAD_TIMEOUT to 20, for
    this process and those that it starts. A value that is set already stays.

    >>> from npllm.devices.blas import short_spin  # first of all
    >>> short_spin()  # doctest: +SKIP
    True
    >>> import npllm
    """
    if "OPENBLAS_THREAD_TIMEOUT" in os.environ:
        return True
    if "numpy" in sys.modules:
        warnings.warn(
            "short_spin: too late, NumPy is imported already and OpenBLAS has read its settings; call it first, or set"
            " OPENBLAS_THREAD_TIMEOUT=20 in the environment",
            stacklevel=2,
        )
        return False
    os.environ["OPENBLAS_THREAD_TIMEOUT"] = "20"
    return True
