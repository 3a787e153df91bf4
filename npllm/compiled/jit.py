"""Compiling loops with Numba, and what plain Python lacks: arrays at an address, casts of bits, counters of threads.

A loop is a plain Python function over arrays. `jit` compiles it where Numba is installed (the extra `fast`); otherwise,
and with NUMBA_DISABLE_JIT=1, the same function runs as Python, thousands of times slower, which is how the tests step
through it.

Compiled code is kept on disk, so that only the first run compiles. Numba looks for changes only in a function's own
file. Therefore the name of the folder has a hash of all files here, of the one constant from elsewhere that is compiled
in, and of the CPU.

Source: https://numba.readthedocs.io/en/stable/user/performance-tips.html (fastmath), .../extending/high-level.html
"""

import ctypes
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from ..storage.groups import ROWS

try:
    numba: Any = importlib.import_module("numba")
    llvm: Any = importlib.import_module("llvmlite.binding")
except ImportError:  # without the extra `fast`
    numba = None

Function = TypeVar("Function", bound=Callable[..., Any])
COMPILES = numba is not None and not numba.config.DISABLE_JIT
# Sums may be split over the lanes of a vector register, and a product and a sum may be one instruction.
FASTMATH = {"reassoc", "contract", "nsz"}


def cache_folder() -> Path | None:
    """The folder for compiled code; None if none can be written: then every process compiles anew."""
    parts = [np.__version__, numba.__version__, llvm.get_host_cpu_name(), ROWS]
    version = hashlib.sha256(" ".join(map(str, parts)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        version.update(path.read_bytes())
    try:
        version.update(llvm.get_host_cpu_features().flatten().encode())
        home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "npllm", f"compiled-{version.hexdigest()[:16]}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home, or the CPU's features are not known
        return None


FOLDER = cache_folder() if COMPILES else None


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether the machine code of a function is on disk already. Then the code of the functions it calls is, too."""
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}-*.nbi"  # Numba's index of the function
    return FOLDER is not None and any(FOLDER.rglob(name))


def jit(function: Function) -> Function:
    """The function, compiled when it is first called. It must not use Python objects. It runs without Python's lock."""
    function = inspect.unwrap(function)  # without the checks of shapes that the tests add
    if not COMPILES:
        return function
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": FASTMATH, "cache": FOLDER is not None}
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(FOLDER or "")
    try:
        compiled: Function = numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def view(address: Any, shape: tuple[Any, ...], like: Any) -> np.ndarray:
    """The array [shape] at an address, with the dtype of the number `like`."""
    dtype = np.dtype(type(like))
    count = int(np.prod(shape))
    buffer: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(address))
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


def bfloat16(bits: Any) -> Any:
    """The number with these bits in bfloat16, as float32: they are its upper half."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def float16(bits: Any) -> Any:
    """The number with these bits in float16, as float32."""
    return np.float32(np.uint16(bits).view(np.float16))


def widened(code: Any) -> Any:
    """A stored number as float32: uint16 has a bfloat16's bits, int16 a float16's; others are themselves."""
    if isinstance(code, np.uint16):
        return bfloat16(code)
    return float16(code) if isinstance(code, np.int16) else np.float32(code)


def as_bfloat16(number: Any) -> Any:
    """The bits of a number in bfloat16, rounded to the nearest, ties to even."""
    return np.float32(number).astype(ml_dtypes.bfloat16).view(np.uint16)


def as_float16(number: Any) -> Any:
    """The bits of a number in float16."""
    return np.float32(number).astype(np.float16).view(np.uint16)


def power_of_two(exponent: Any) -> Any:
    """2 to the power of an integer from -126 to 127, as float32: the integer goes into the bits of the exponent."""
    return np.uint32((np.int32(exponent) + np.int32(127)) << np.int32(23)).view(np.float32)


def take(counters: np.ndarray, i: int) -> int:
    """counters[i], which is then one more: each number is given to one thread only."""
    counters[i] += 1
    return int(counters[i]) - 1


def current(counters: np.ndarray, i: int) -> int:
    """counters[i], with all that other threads wrote before they raised it."""
    return int(counters[i])


def pause() -> None:
    """Let another thread have the core, if one wants it."""


if COMPILES:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, overload

    # The same operations for compiled code. LLVM has them as single instructions.
    yield_core = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(builder.zext(args[0], ir.IntType(64)), ir.IntType(8).as_pointer())

        return types.voidptr(address), code

    @intrinsic
    def bits_to_float(typing: Any, bits: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.FloatType())

        return types.float32(types.uint32), code

    @intrinsic
    def float_to_bits(typing: Any, number: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.IntType(32))

        return types.uint32(types.float32), code

    @intrinsic
    def half_to_float(typing: Any, bits: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.uint16), code

    @intrinsic
    def float_to_half(typing: Any, number: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

        return types.uint16(types.float32), code

    def address_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.gep(array.data, [args[1]])

    @intrinsic
    def add_one(typing: Any, counters: Any, i: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = address_of(context, builder, signature, args)
            return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "seq_cst")

        return types.int64(counters, types.int64), code

    @intrinsic
    def load(typing: Any, counters: Any, i: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load_atomic(address_of(context, builder, signature, args), "seq_cst", 8)

        return types.int64(counters, types.int64), code

    @overload(view, inline="always")
    def _(address, shape, like):
        dtype = numba.np.numpy_support.as_dtype(like)
        return lambda address, shape, like: numba.carray(pointer(np.uint64(address)), shape, dtype)

    @overload(bfloat16)
    def _(bits):
        return lambda bits: bits_to_float(np.uint32(bits) << np.uint32(16))

    @overload(float16)
    def _(bits):
        return lambda bits: half_to_float(np.uint16(bits))

    @overload(widened)
    def _(code):
        if code == types.uint16:
            return lambda code: bfloat16(code)
        return (lambda code: float16(code)) if code == types.int16 else lambda code: np.float32(code)

    @overload(as_float16)
    def _(number):
        return lambda number: float_to_half(np.float32(number))

    @jit
    def rounded(bits):
        """The upper half of these bits, rounded to the nearest, ties to even."""
        even = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))

    @overload(as_bfloat16)
    def _(number):
        return lambda number: rounded(float_to_bits(np.float32(number)))

    @overload(power_of_two)
    def _(exponent):
        return lambda exponent: bits_to_float(np.uint32((np.int32(exponent) + np.int32(127)) << np.int32(23)))

    @overload(take)
    def _(counters, i):
        return lambda counters, i: add_one(counters, i)

    @overload(current)
    def _(counters, i):
        return lambda counters, i: load(counters, i)

    @overload(pause)
    def _():
        return lambda: yield_core()
