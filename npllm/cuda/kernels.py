"""Launchers for the CUDA kernels of a decode step: one new token, so every product is a matrix times a vector.

The kernels are optional. The array functions in twins.py define what they compute (one function covers `attend` and
`merge`). The CUDA source is in the .cu files next to this one; their comments say what a block and a thread do, and
what they read from memory. Decoding is limited by memory bandwidth, so each weight, key and value is read once, in its
own dtype, and widened to float32 in registers. All sums are float32.

NVRTC compiles a kernel at its first launch, for the dtypes and sizes passed as `options`. CuPy caches the result on
disk.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2023, "Flash-Decoding for
long-context inference"; the CUDA C++ programming guide, on warp shuffles and coalesced access.
"""

import functools
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Bool, Float, Int
from ..storage.rows import RowGroups

ROWS = 4  # warps per block of a matrix-vector product; each computes one row
NORM_THREADS = 1024
CHUNK = 128  # keys per block of `attend`
ATTEND_THREADS = 256

TYPES = {"float16": "__half", "float32": "float", "int8": "signed char", "uint8": "unsigned char"}
SCALARS: dict[type, Any] = {int: np.int32, float: np.float32}  # how a Python number is passed to a kernel


@functools.cache
def read(name: str) -> str:
    """The text of a CUDA source file in this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def compiled(source: str, name: str, options: tuple[str, ...]) -> Any:
    """The kernel of that name. CuPy compiles it at its first launch."""
    import cupy  # not at the top of the module: most machines have no CuPy

    return cupy.RawKernel(source, name, options=options)


def launch(
    name: str, row: str, options: tuple[str, ...], blocks: tuple[int, ...], threads: int, arguments: tuple[Any, ...]
) -> None:
    """Put a kernel on the current stream, without waiting for it.

    name : the kernel, and the .cu file that holds it
    row : the file with the functions that read a row of a weight; "" for kernels without a weight
    options : compiler options: the dtypes and sizes that the source leaves open
    arguments : arrays on the device; None for a null pointer; Python numbers are passed as int32 and float32
    """
    source = read("common.cuh") + (read(row) if row else "") + read(f"{name}.cu")
    kernel = compiled(source, name, options)
    kernel(blocks, (threads,), tuple(SCALARS[type(x)](x) if type(x) in SCALARS else x for x in arguments))


def checked(array: Array, size: int, *dtypes: str) -> Array:
    """The array itself, after checking dtype, size, layout and alignment: a kernel gets only its address."""
    dtypes = dtypes or ("float32",)
    aligned = getattr(array.data, "ptr", 0) % 16 == 0
    if str(array.dtype) not in dtypes or array.size != size or not array.flags.c_contiguous or not aligned:
        expected = f"{size} elements of {' or '.join(dtypes)}, contiguous and aligned to 16 bytes"
        raise TypeError(f"kernel: expected {expected}, got {array.dtype} {array.shape}, strides {array.strides}")
    return array


class Storage(NamedTuple):
    """A weight in the form that the kernels take."""

    row: str  # the file with the functions that read a row
    options: tuple[str, ...]
    arrays: tuple[Array, Array | None, Array | None]  # codes, scale, minimum


def storage(weight: Array | RowGroups) -> Storage:
    """The weight in the form that the kernels take."""
    if not isinstance(weight, RowGroups):
        height, width = weight.shape
        checked(weight, height * width, "float16", "float32")
        options: tuple[str, ...] = (f"-DNUMBER={TYPES[str(weight.dtype)]}", "-DSCALE=float")
        return Storage("plain_row.cuh", options, (weight, None, None))
    number = TYPES[str(checked(weight.codes, weight.codes.size, "int8", "uint8").dtype)]
    options = (
        f"-DNUMBER={number}",
        f"-DFOUR={'char4' if number == 'signed char' else 'uchar4'}",
        f"-DSCALE={'float' if weight.scale.dtype == np.float32 else 'unsigned short'}",
        f"-DBITS={weight.bits}",
        f"-DGROUP={weight.group}",
        f"-DOFFSET={float(weight.offset)}f",
    )
    return Storage("groups_row.cuh", options, (weight.codes, weight.scale, weight.minimum))


def embed(ids: Int[Array, "1"], weight: Array | RowGroups, out: Float[Array, " D"]) -> None:
    """out = W[id]"""
    width, stored = weight.shape[1], storage(weight)
    arguments = (*stored.arrays, checked(ids, 1, "int64"), checked(out, width), width)
    launch("embed", stored.row, stored.options, (-(-width // 256),), 256, arguments)


def matvec(
    x: Float[Array, " D"],
    weight: Array | RowGroups,
    bias: Float[Array, " F"] | None,
    residual: Float[Array, " F"] | None,
    out: Float[Array, " F"],
) -> None:
    """out = W x + bias + residual"""
    (height, width), stored = weight.shape, storage(weight)
    added = (None if y is None else checked(y, height) for y in (bias, residual))
    arguments = (*stored.arrays, checked(x, width), *added, checked(out, height), height, width)
    launch("matvec", stored.row, stored.options, (-(-height // ROWS),), 32 * ROWS, arguments)


def swiglu(
    x: Float[Array, " D"], weight: Array | RowGroups, bias: Float[Array, " F2"] | None, out: Float[Array, " F"]
) -> None:
    """out = silu(gate) · up, where [gate; up] = W x + bias"""
    height, width, stored = weight.shape[0] // 2, weight.shape[1], storage(weight)
    added = None if bias is None else checked(bias, 2 * height)
    arguments = (*stored.arrays, checked(x, width), added, checked(out, height), height, width)
    launch("swiglu", stored.row, stored.options, (-(-height // ROWS),), 32 * ROWS, arguments)


def rms_norm(x: Float[Array, " D"], weight: Float[Array, " D"], eps: float, out: Float[Array, " D"]) -> None:
    """out = x / sqrt(mean(x²) + eps) · weight"""
    width = x.shape[0]
    threads = min(NORM_THREADS, -(-width // 32) * 32)
    arguments = checked(x, width), checked(weight, width), eps, checked(out, width), width
    launch("rms_norm", "", (), (1,), threads, arguments)


def host_and_device(past: int | Array) -> tuple[int, Array | None]:
    """`past` as two kernel arguments: an integer, and an address that is null if the integer is to be used."""
    return (past, None) if isinstance(past, int) else (0, checked(past, 1, "int32"))


def rope_and_append(
    qkv: Float[Array, " QKV"],
    cos: Float[Array, "rows R"],
    sin: Float[Array, "rows R"],
    past: int | Int[Array, "1"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    out: Float[Array, " NH"],
) -> None:
    """Rotate queries and keys; write the key and the value to slot `past` of the cache, the queries to out."""
    kv_heads, capacity, width = keys.shape
    heads, (rows, pairs) = out.shape[0] // width, cos.shape
    vectors = checked(qkv, (heads + 2 * kv_heads) * width), checked(cos, rows * pairs), checked(sin, rows * pairs)
    cache = checked(keys, keys.size, "float16", "float32"), checked(values, keys.size, str(keys.dtype))
    sizes = heads, kv_heads, pairs, capacity
    arguments = (*vectors, rows, *host_and_device(past), *cache, checked(out, heads * width), *sizes)
    launch("rope_and_append", "", cache_type(keys), (heads + 2 * kv_heads,), width, arguments)


def cache_type(keys: Array) -> tuple[str, ...]:
    """The compiler option for the dtype of the KV cache."""
    return (f"-DCACHE={TYPES[str(keys.dtype)]}",)


class Work(NamedTuple):
    """Buffers from `attend` to `merge`: the unnormalized softmax of each query head and chunk of the cache."""

    largest: Float[Array, "N chunks"]
    totals: Float[Array, "N chunks"]
    mixed: Float[Array, "N chunks H"]


def attention(
    q: Float[Array, " NH"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    past: int | Int[Array, "1"],
    window: int | None,
    visible: Bool[Array, " S"] | None,
    work: Work,
    out: Float[Array, " NH"],
) -> None:
    """Attention of the new token over itself and the cached tokens, within `window` and the mask `visible`."""
    kv_heads, capacity, width = keys.shape
    heads, chunks = work.largest.shape
    sizes = {"WIDTH": width, "SHARING": heads // kv_heads, "PARTS": ATTEND_THREADS // width, "CHUNK": CHUNK}
    options = (*cache_type(keys), *(f"-D{name}={size}" for name, size in sizes.items()))
    cache = checked(keys, keys.size, "float16", "float32"), checked(values, keys.size, str(keys.dtype))
    mask = None if visible is None else checked(visible, visible.size, "bool")
    place = (*host_and_device(past), window or 0)
    attend = (checked(q, heads * width), *cache, mask, *place, capacity, *work)
    launch("attend", "", options, (kv_heads, chunks), ATTEND_THREADS, attend)
    merge = (*work, *place, chunks, checked(out, heads * width))
    launch("merge", "", (f"-DCHUNK={CHUNK}",), (heads,), width, merge)


def advance(past: Int[Array, "1"]) -> None:
    """past += 1: the cache now holds one more token."""
    launch("advance", "", (), (1,), 1, (checked(past, 1, "int32"),))
