"""Choosing the device that holds the arrays: NumPy on the CPU, CuPy on a CUDA GPU.

The math asks an array for its namespace, and is the same for both. Only loading, and the wings cuda and storage, depend
on which one it is.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array

from ..arrays import Array
from ..errors import NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from .memory import available_bytes
from .units import format_bytes

INSTALL = "pip install 'cupy-cuda12x[ctk]'"  # [ctk] adds the CUDA libraries, so only the driver must exist


class Device(NamedTuple):
    """A place for arrays."""

    name: str  # "cpu", "cuda:0"
    xp: Any  # the array library: numpy or cupy
    why: str = ""  # for "auto": which device it chose and why, in one sentence


def pick(name: str) -> Device:
    """The device of that name: "cpu", "cuda", "cuda:1", or "auto" for CUDA if it works and otherwise the CPU.

    A CUDA device becomes the current device of this thread, on which CuPy allocates.

    Raises
    ------
    UsageError : an unknown name
    UnavailableError : CUDA was requested, and CuPy, the driver, a library or the device with that index is missing
    NotEnoughMemoryError : CUDA was requested, and other programs hold all of the GPU's memory
    """
    if name == "cpu":
        return Device("cpu", np)
    if name == "auto":
        try:
            device = pick("cuda")
        except NpllmError as error:
            return Device("cpu", np, f"device: cpu, because there is no usable GPU ({error})")
        found = gpu_name(device)
        return device._replace(why=f"device: {device.name}, because CuPy found a GPU that works ({found})")
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:<index>, got {name!r}")
    index = int(match[1] or 0)
    return Device(f"cuda:{index}", working_cupy(index))


def working_cupy(index: int) -> Any:
    """The cupy module, after a small product on the GPU has shown that it works.

    CuPy raises its own errors, those of the CUDA libraries and those of the dynamic loader, with no common base class.
    So the step that fails shows what is missing: the import, the query of the driver, or the product.
    """
    where = f"device cuda:{index}"
    try:
        import cupy  # not at the top of the module: most machines have no CuPy
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{where}: CuPy is not installed ({first_line(error)}); {INSTALL}") from error
    except ImportError as error:  # CuPy's own message is a page long; its cause names the library
        cause = first_line(error.__cause__ or error)
        raise UnavailableError(f"{where}: CuPy is installed, but cannot be imported ({cause}); {INSTALL}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise UnavailableError(
            f"{where}: CuPy found no GPU with a working driver ({first_line(error)}); install or update NVIDIA's"
            " driver, until nvidia-smi lists the GPU"
        ) from error
    if index >= count:
        raise UnavailableError(f"{where}: expected an index below {count}, the number of GPUs")
    try:
        cupy.cuda.Device(index).use()
        ones = cupy.ones((2, 2), dtype=cupy.float16)
        (ones @ ones + ones).sum().item()  # uses the compiler (NVRTC), its headers, and cuBLAS
    except Exception as error:
        if isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in str(error):
            raise NotEnoughMemoryError(
                f"{where}: other programs hold its memory ({first_line(error)}); nvidia-smi lists them"
            ) from error
        raise UnavailableError(
            f"{where}: the driver works, but a CUDA library does not ({type(error).__name__}: {first_line(error)});"
            f" {INSTALL}"
        ) from error
    return cupy


def gpu_name(device: Device) -> str:
    """The GPU's product name and the size of its memory."""
    properties = device.xp.cuda.runtime.getDeviceProperties(int(device.name.removeprefix("cuda:")))
    return f"{properties['name'].decode()}, {format_bytes(properties['totalGlobalMem'])}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message. Some libraries add pages to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def free_bytes(array: Array) -> int | None:
    """The memory that can still be allocated on the device of an array, in bytes; None if unknown.

    On a GPU that is its free memory, within the limit of CuPy's pool, and the unused part of the pool.
    """
    if not is_cupy_array(array):
        return available_bytes()
    import cupy

    pool = cupy.get_default_memory_pool()
    free, limit = cupy.cuda.runtime.memGetInfo()[0], pool.get_limit()
    if limit:
        free = min(free, limit - pool.total_bytes())
    return max(0, free) + pool.free_bytes()


def to_host(array: Array) -> np.ndarray:
    """The array as a NumPy array, from any library and device."""
    if is_cupy_array(array):
        return array.get()
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    return np.from_dlpack(array)  # torch, array-api-strict; some of their devices refuse np.asarray
