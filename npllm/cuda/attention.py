"""Attention on a GPU that reads keys and values in place, from the KV cache.

`attention.attention` runs on CuPy unchanged. But CuPy's product of arrays with more than two axes first copies both
operands in float32: for every new token, all keys and values of the text in every layer. cuBLAS itself needs no copy.
It takes a batch of matrices at a constant stride, and accumulates float16 products in float32. (From a 16-bit cache
`cache.append` returns float32 copies. Only the kernels read such a cache in place.)

Source: "How attention is calculated" (Figures 3-17 to 3-21); cuBLAS, cublasGemmStridedBatchedEx.
"""

import inspect
import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .. import attention as plain
from ..arrays import Array, Bool, Float
from ..tap import Tap, untapped


def on_cuda(whole_pass: Callable[..., Any]) -> Callable[..., Any]:
    """The same pass, with `cuda_attention` in place of `attention.attention`.

    Any other attention is left alone: `flash_attention`, one that the caller passes, and the default of a pass that has
    an attention of its own.
    """
    parameter = inspect.signature(whole_pass).parameters.get("attention")
    replaceable = parameter is not None and parameter.default is plain.attention

    def transform(*arguments: Any, **options: Any) -> Any:
        if replaceable and options.get("attention", plain.attention) is plain.attention:
            options["attention"] = cuda_attention
        return whole_pass(*arguments, **options)

    return transform


def cuda_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """The output of `attention.attention`. Queries and weights are rounded to the dtype of keys and values."""
    *batch, heads, new, width = q.shape
    # The queries that share a key head are stacked.
    grouped = (*batch, k.shape[-3], heads // k.shape[-3] * new)
    scores = products((q / math.sqrt(width)).reshape(*grouped, width), k, transposed=True)
    scores = tap("scores", scores.reshape(*batch, heads, new, -1))
    weights = tap("weights", plain.attention_weights(scores, visible))
    mixed = products(weights.reshape(*grouped, -1), v, transposed=False)
    return tap("mixed", mixed.reshape(*batch, heads, new, width))


def products(a: Float[Array, "... M D"], b: Float[Array, "... rows columns"], transposed: bool) -> Array:
    """a @ b or a @ b.T for each matrix of the batch, in float32: [..., M, columns] or [..., M, rows].

    a is small and may be copied; b is read in place. cuBLAS is column-major: our row-major matrices are transposed in
    its eyes. So it computes the transposed product, with the operands in the other order.
    """
    import cupy
    from cupy.cuda import cublas

    a = cupy.ascontiguousarray(a, dtype=b.dtype)
    if not evenly_spaced(b):
        b = cupy.ascontiguousarray(b)
    count, (vectors, inner), (rows, columns) = prod(b.shape[:-2]), a.shape[-2:], b.shape[-2:]
    width = rows if transposed else columns
    y = cupy.empty((*a.shape[:-1], width), dtype=np.float32)
    kind = cupy.cuda.runtime.CUDA_R_16F if b.dtype == np.float16 else cupy.cuda.runtime.CUDA_R_32F
    factors = np.array([1, 0], dtype=np.float32)  # y = 1 · product + 0 · y
    cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(),
        cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
        cublas.CUBLAS_OP_N,
        width,
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
        width,
        vectors * width,
        count,
        cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return y


def evenly_spaced(b: Float[Array, "... rows columns"]) -> bool:
    """Whether the rows are contiguous, at a constant stride, and the matrices at a constant stride too."""
    *batch, rows, columns = b.shape
    *outer, row, element = b.strides
    even = all(far == near * size for far, near, size in zip(outer, outer[1:], batch[1:], strict=False))
    return even and (columns == 1 or element == b.itemsize) and (rows == 1 or row >= columns * b.itemsize)
