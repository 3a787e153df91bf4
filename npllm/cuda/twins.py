"""What the CUDA kernels of kernels.py compute, said in array functions: the definition that they are tested against.

Each function here has a kernel of the same name and signature. They work on the one new token of a decode step, so
vectors have one axis and T is 1; each writes its result to `out`, which the caller allocated once for all steps. They
run on any array library: the second block (cuda_block.py) can be executed with them, without a GPU.

`past` is how many tokens the KV cache holds already, which is also the position of the new one: a whole number, or an
array with that number in the device's memory, so that a captured step can go on counting without the host.
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
    """A whole weight in float32, of whatever storage: the kernels widen number by number, in registers."""
    xp = array_namespace(like)
    if is_packed(weight):
        return weight.rows(xp.arange(weight.shape[0], device=like.device))
    return xp.astype(weight, xp.float32)


def number(past: int | Int[Array, "1"]) -> int:
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
    """out = silu(gate) · up, where W x + bias is gate and up, one below the other."""
    gate_up = linear(x, widened(weight, x), bias)
    width = gate_up.shape[-1] // 2
    out[...] = plain_swiglu(gate_up[:width], gate_up[width:])


def recall(
    x: Float[Array, " D"],
    weight: Weight,
    known: Float[Array, " D"],
    product: Float[Array, " F"],
    out: Float[Array, " F"],
) -> None:
    """out = W x, which is `product` if x is `known`, and computed if not."""
    if array_namespace(x).all(x == known):
        out[...] = product
    else:
        matvec(x, weight, None, None, out)


def rope_and_append(
    qkv: Float[Array, " QKV"],
    cos: Float[Array, "rows R"],
    sin: Float[Array, "rows R"],
    past: int | Int[Array, "1"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    out: Float[Array, " NH"],
) -> None:
    """Rotate queries and keys; keys and values go to slot `past` of the cache, the queries to out.

    cos, sin : a row for each position, or only the one of the new token
    """
    xp = array_namespace(qkv)
    kv_heads, _, width = keys.shape
    heads, slot = out.shape[0] // width, number(past)
    row = 0 if cos.shape[0] == 1 else slot
    turned = xp.reshape(qkv, (-1, 1, width))  # [heads of all, T, H]
    k_and_q = apply_rope(turned[: heads + kv_heads, :, :], cos[row : row + 1, :], sin[row : row + 1, :])
    out[...] = xp.reshape(k_and_q[:heads, :, :], (-1,))
    keys[:, slot, :] = k_and_q[heads:, 0, :]
    values[:, slot, :] = turned[heads + kv_heads :, 0, :]


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
    """The new token attends to the last `window` of the cached tokens and itself, of which it sees only `visible`.

    work : memory for the kernels' partial results; not used here
    """
    xp = array_namespace(q)
    length, width = number(past) + 1, keys.shape[-1]
    first = 0 if window is None else max(0, length - window)
    k, v = (xp.astype(side[:, first:length, :], xp.float32) for side in (keys, values))
    seen = None if visible is None else visible[None, first:length]
    out[...] = xp.reshape(plain_attention(xp.reshape(q, (-1, 1, width)), k, v, seen), (-1,))


def advance(past: Int[Array, "1"]) -> None:
    """past += 1: the step is over, the cache holds one token more."""
    past += 1
