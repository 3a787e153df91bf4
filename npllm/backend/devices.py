"""Choosing where the arrays live, and moving them there and back: NumPy on the CPU, CuPy on a CUDA GPU.

Everything above the arrays is one source; it asks an array for its namespace. Only this module and its neighbours
know that there are two.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array

from ..errors import UnavailableError, UsageError
from ..shapes import Array
from .memory import available_bytes


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
    """
    if name == "cpu":
        return Device("cpu", np)
    if name == "auto":
        try:
            device = pick("cuda")
        except UnavailableError as error:
            return Device("cpu", np, f"device: cpu, because there is no usable GPU ({error})")
        return device._replace(why=f"device: {device.name}, because CuPy found a GPU that works")
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:<index>, got {name!r}")
    index = int(match[1] or 0)
    return Device(f"cuda:{index}", working_cupy(index))


def working_cupy(index: int) -> Any:
    """The cupy module, after a small product on the GPU has shown that all it needs is there."""
    try:
        import cupy  # here, because most machines have none
    except ImportError as error:
        raise UnavailableError(
            f"device cuda: CuPy cannot be imported ({first_line(error)}); pip install 'cupy-cuda12x[ctk]'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        if index < count:
            cupy.cuda.Device(index).use()
            ones = cupy.ones((2, 2), dtype=cupy.float16)
            (ones @ ones + ones).sum().item()  # needs the driver, the compiler (NVRTC) and cuBLAS
    # CuPy raises errors of its own, of the CUDA libraries and of the dynamic loader, with no common base.
    except Exception as error:
        raise UnavailableError(
            f"device cuda:{index}: CuPy is installed but does not work ({type(error).__name__}: {first_line(error)});"
            " check the driver with nvidia-smi, then pip install 'cupy-cuda12x[ctk]'"
        ) from error
    if index >= count:
        raise UnavailableError(f"device cuda:{index}: expected an index below {count}, the number of GPUs here")
    return cupy


def first_line(error: BaseException) -> str:
    """An error's message without the pages that some libraries add to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def free_bytes(array: Array) -> int | None:
    """The memory that can still be allocated on the device of an array, in bytes; None where unknown."""
    if not is_cupy_array(array):
        return available_bytes()
    import cupy

    return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()


def to_device(array: np.ndarray, device: Device, dtype: Any = None) -> Array:
    """A NumPy array on a device, as `dtype` if one is given. On the CPU, the array itself where nothing changes."""
    return device.xp.asarray(array if dtype is None else array.astype(dtype, copy=False))


def to_host(array: Array) -> np.ndarray:
    """An array of any library and device as a NumPy array."""
    if is_cupy_array(array):
        return array.get()
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    return np.from_dlpack(array)  # torch, array-api-strict: also from a device of theirs that refuses np.asarray
