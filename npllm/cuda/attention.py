"""Attention on a GPU, with keys and values read where they lie in the KV cache.

`attention.attention` works on CuPy as it stands. But CuPy's product of more than two axes first copies both operands,
and widens them to float32: for each new token all keys and values of the text, in every layer. cuBLAS, which CuPy
calls, needs no copy: it takes matrices at equal distances in memory, and of float16 it sums the products in float32.
(Of a cache in 16 bits `cache.append` gives float32 copies; only the kernels read that one where it lies.)

Source: "How attention is calculated" (Figures 3-17 to 3-21); cuBLAS, cublasGemmStridedBatchedEx.
"""

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .. import attention as plain
from ..arrays import Array, Bool, Float
from ..tap import Tap, untapped


def on_cuda(whole_pass: Callable[..., Any]) -> Callable[..., Any]:
    """The same pass with `cuda_attention` where it had `attention.attention`. Other ways, such as flash, stay."""

    def transform(*arguments: Any, attention: Callable[..., Array] = plain.attention, **options: Any) -> Any:
        how = cuda_attention if attention is plain.attention else attention
        return whole_pass(*arguments, attention=how, **options)

    return transform


def cuda_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """What `attention.attention` gives. Queries and weights are rounded to the dtype of keys and values."""
    *batch, heads, new, width = q.shape
    # The queries that share a key head, one below the other.
    grouped = (*batch, k.shape[-3], heads // k.shape[-3] * new)
    scores = products((q / math.sqrt(width)).reshape(*grouped, width), k, transposed=True)
    scores = tap("scores", scores.reshape(*batch, heads, new, -1))
    weights = tap("weights", plain.attention_weights(scores, visible))
    mixed = products(weights.reshape(*grouped, -1), v, transposed=False)
    return tap("mixed", mixed.reshape(*batch, heads, new, width))


def products(a: Float[Array, "... M D"], b: Float[Array, "... rows columns"], transposed: bool) -> Array:
    """a @ b, or a @ b.T, for each of the matrices; b is read as it lies, a is small. float32 [..., M, columns or rows]

    cuBLAS counts columns where C counts rows: our row-major matrix is its transposed one. So it is asked for the
    transposed product, b.T @ a.T, of the operands in the other order.
    """
    import cupy
    from cupy.cuda import cublas

    a = cupy.ascontiguousarray(a, dtype=b.dtype)
    if not evenly_spaced(b):
        b = cupy.ascontiguousarray(b)
    count, (vectors, inner), (rows, columns) = prod(b.shape[:-2]), a.shape[-2:], b.shape[-2:]
    made = rows if transposed else columns
    y = cupy.empty((*a.shape[:-1], made), dtype=np.float32)
    kind = cupy.cuda.runtime.CUDA_R_16F if b.dtype == np.float16 else cupy.cuda.runtime.CUDA_R_32F
    factors = np.array([1, 0], dtype=np.float32)  # y = 1 · product + 0 · y
    cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(),
        cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
        cublas.CUBLAS_OP_N,
        made,
        vectors,
        inner,
        factors.ctypes.data,
        b.data.ptr,
        kind,
        max(columns, b.strides[-2] // b.itemsize if rows > 1 else 0),
        b.strides[-3] // b.itemsize if b.ndim > 2 else 0,
        a.data.ptr,
        kind,
        inner,
        vectors * inner,
        factors.ctypes.data + 4,
        y.data.ptr,
        cupy.cuda.runtime.CUDA_R_32F,
        made,
        vectors * made,
        count,
        cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return y


def evenly_spaced(b: Float[Array, "... rows columns"]) -> bool:
    """Whether the rows are whole in memory, at equal distances, and the matrices too."""
    *batch, rows, columns = b.shape
    *distances, row, number = b.strides
    even = all(far == near * size for far, near, size in zip(distances, distances[1:], batch[1:], strict=False))
    return even and (columns == 1 or number == b.itemsize) and (rows == 1 or row >= columns * b.itemsize)
