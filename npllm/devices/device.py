"""Choosing where the arrays live, and moving them there and back: NumPy on the CPU, CuPy on a CUDA GPU.

Everything above the arrays is one source; it asks an array for its namespace. Only this module and its neighbours
know that there are two.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array

from ..arrays import Array
from ..errors import NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from .memory import available_bytes, format_bytes

INSTALL = "pip install 'cupy-cuda12x[ctk]'"  # [ctk]: with the CUDA libraries, so that only the driver must be there


class Device(NamedTuple):
    """A place for arrays."""

    name: str  # "cpu", "cuda:0"
    xp: Any  # the array library: numpy or cupy
    why: str = ""  # where "auto" was asked for: what it took and why, in one sentence


def pick(name: str) -> Device:
    """The device of that name: "cpu", "cuda", "cuda:1", or "auto" for CUDA where it works and the CPU where not.

    A CUDA device becomes the current one of this thread: what CuPy allocates from then on lies there.

    Raises
    ------
    UsageError : no such name
    UnavailableError : CUDA was asked for, and CuPy, the driver, a library or the device with that index is missing
    NotEnoughMemoryError : CUDA was asked for, and others have taken all of the GPU's memory
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
    """The cupy module, after a small product on the GPU has shown that all it needs is there.

    CuPy raises errors of its own, of the CUDA libraries and of the dynamic loader, with no common base. So what is
    missing is told by the step that failed: the import, asking the driver, or the product.
    """
    where = f"device cuda:{index}"
    try:
        import cupy  # here, because most machines have none
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{where}: CuPy is not installed ({first_line(error)}); {INSTALL}") from error
    except ImportError as error:  # its own message is a page, and says little; its cause names the library
        cause = first_line(error.__cause__ or error)
        raise UnavailableError(f"{where}: CuPy is installed, but cannot be imported ({cause}); {INSTALL}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise UnavailableError(
            f"{where}: CuPy found no GPU with a driver that works ({first_line(error)}); install or update NVIDIA's"
            " driver, until nvidia-smi lists the GPU"
        ) from error
    if index >= count:
        raise UnavailableError(f"{where}: expected an index below {count}, the number of GPUs here")
    try:
        cupy.cuda.Device(index).use()
        ones = cupy.ones((2, 2), dtype=cupy.float16)
        (ones @ ones + ones).sum().item()  # needs the compiler (NVRTC), its headers, and cuBLAS
    except Exception as error:
        if isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in str(error):
            raise NotEnoughMemoryError(
                f"{where}: its memory is taken by other programs ({first_line(error)}); nvidia-smi lists them"
            ) from error
        raise UnavailableError(
            f"{where}: the driver works, but not a CUDA library ({type(error).__name__}: {first_line(error)});"
            f" {INSTALL}"
        ) from error
    return cupy


def gpu_name(device: Device) -> str:
    """What the GPU calls itself, and its memory."""
    properties = device.xp.cuda.runtime.getDeviceProperties(int(device.name.removeprefix("cuda:")))
    return f"{properties['name'].decode()}, {format_bytes(properties['totalGlobalMem'])}"


def first_line(error: BaseException) -> str:
    """An error's message without the pages that some libraries add to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def free_bytes(array: Array) -> int | None:
    """The memory that can still be allocated on the device of an array, in bytes; None where unknown.

    On a GPU that is what nobody has, and what CuPy's pool has and does not use, within the pool's own limit.
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
    """An array of any library and device as a NumPy array."""
    if is_cupy_array(array):
        return array.get()
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    return np.from_dlpack(array)  # torch, array-api-strict: also from a device of theirs that refuses np.asarray
