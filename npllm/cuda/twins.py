"""What the CUDA kernels compute, as array functions: the definition that the tests compare them with.

Each function has a kernel of the same name and signature in kernels.py. All of them work on the one new token of a
decode step: T is 1, and vectors have one axis. Each writes its result to `out`, which the caller has allocated. They
run on any array library, so block.py and step.py can be executed without a GPU.

`past` is the number of tokens in the KV cache, and so the position of the new one. It is an int, or an array of one
element in device memory, which a captured step advances without the host.
"""

from typing import Any

from ..arrays import Array, Bool, Float, Int, Packed, Weight, array_namespace, is_packed
from ..attention import attention as plain_attention
from ..embedding import embed as plain_embed
from ..feedforward import swiglu as plain_swiglu
from ..linear import linear
from ..norm import rms_norm as plain_rms_norm
from ..rope import apply_rope


def widened(weight: Weight, like: Array) -> Float[Array, "F D"]:
    """The whole weight in float32. (The kernels widen element by element, in registers.)"""
    xp = array_namespace(like)
    if is_packed(weight):
        return weight.rows(xp.arange(weight.shape[0], device=like.device))
    return xp.astype(weight, xp.float32)


def as_int(past: int | Int[Array, "1"]) -> int:
    """`past` on the host."""
    return past if isinstance(past, int) else int(past[0])


def embed(ids: Int[Array, "1"], weight: Weight, out: Float[Array, " D"]) -> None:
    """out = W[id]"""
    out[...] = plain_embed(ids, weight)[0, :]


def rms_norm(x: Float[Array, " D"], weight: Float[Array, " D"], eps: float, out: Float[Array, " D"]) -> None:
    """out = x / sqrt(mean(x²) + eps) · weight"""
    out[...] = plain_rms_norm(x, weight, eps)


def matvec(
    x: Float[Array, " D"],
    weight: Weight,
    bias: Float[Array, " F"] | None,
    residual: Float[Array, " F"] | None,
    out: Float[Array, " F"],
) -> None:
    """out = W x + bias + residual. `residual` and `out` may be the same array."""
    y = linear(x, widened(weight, x), bias)
    out[...] = y if residual is None else residual + y


def swiglu(
    x: Float[Array, " D"],
    weight: Float[Array, "F2 D"] | Packed,
    bias: Float[Array, " F2"] | None,
    out: Float[Array, " F"],
) -> None:
    """out = silu(gate) · up, where [gate; up] = W x + bias"""
    gate_up = linear(x, widened(weight, x), bias)
    width = gate_up.shape[-1] // 2
    out[...] = plain_swiglu(gate_up[:width], gate_up[width:])


def rope_and_append(
    qkv: Float[Array, " QKV"],
    cos: Float[Array, "rows R"],
    sin: Float[Array, "rows R"],
    past: int | Int[Array, "1"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    out: Float[Array, " NH"],
) -> None:
    """Rotate queries and keys; write the key and the value to slot `past` of the cache, the queries to out.

    cos, sin : one row per position, or only the row of the new token
    """
    xp = array_namespace(qkv)
    kv_heads, _, width = keys.shape
    heads, slot = out.shape[0] // width, as_int(past)
    row = 0 if cos.shape[0] == 1 else slot
    qkv_heads = xp.reshape(qkv, (-1, 1, width))  # [N + 2K, T, H]
    rotated = apply_rope(qkv_heads[: heads + kv_heads, :, :], cos[row : row + 1, :], sin[row : row + 1, :])
    out[...] = xp.reshape(rotated[:heads, :, :], (-1,))
    keys[:, slot, :] = rotated[heads:, 0, :]
    values[:, slot, :] = qkv_heads[heads + kv_heads :, 0, :]


def attention(
    q: Float[Array, " NH"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    past: int | Int[Array, "1"],
    window: int | None,
    visible: Bool[Array, " S"] | None,
    work: Any,
    out: Float[Array, " NH"],
) -> None:
    """Attention of the new token over itself and the cached tokens, within `window` and the mask `visible`.

    work : buffers for the kernels' partial results; not used here
    """
    xp = array_namespace(q)
    length, width = as_int(past) + 1, keys.shape[-1]
    first = 0 if window is None else max(0, length - window)
    k, v = (xp.astype(side[:, first:length, :], xp.float32) for side in (keys, values))
    mask = None if visible is None else visible[None, first:length]
    out[...] = xp.reshape(plain_attention(xp.reshape(q, (-1, 1, width)), k, v, mask), (-1,))


def advance(past: Int[Array, "1"]) -> None:
    """past += 1: the cache now holds one more token."""
    past += 1
