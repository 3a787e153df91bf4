"""The Transformer block for the one new token of a decode step, in our kernels: the same as `block.block`.

`cuda_block` is passed from above, as `transform(block=cuda_block)`. No module of the ground floor knows about it.

Source: "Inside the Transformer Block" (Figures 3-11, 3-12).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from array_api_compat import device

from ..arrays import Array, Bool, Float, Int, array_namespace
from ..attention import attention
from ..block import block
from ..cache import Cache
from ..config import Config
from ..errors import UsageError
from ..flash import flash_attention
from ..shapes import BlockWeights
from ..tap import Tap, untapped
from . import kernels
from .attention import cuda_attention
from .fit import why_not_block, why_not_sizes

SAME_ATTENTION = (attention, flash_attention, cuda_attention)  # all compute the same; a kernel may replace any of them


class Buffers(NamedTuple):
    """Intermediate results of a block. Allocated once, because a captured launch keeps their addresses."""

    normed: Float[Array, " D"]
    qkv: Float[Array, " QKV"]
    queries: Float[Array, " NH"]
    work: kernels.Work
    mixed: Float[Array, " NH"]
    between: Float[Array, " D"]  # the residual stream after attention
    activation: Float[Array, " F"]


def buffers_for(weights: BlockWeights, config: Config, capacity: int, like: Array) -> Buffers:
    """Buffers for blocks with these shapes and a KV cache of this capacity."""
    xp = array_namespace(like)
    heads, width = config.num_attention_heads, config.head_dim
    chunks = -(-capacity // kernels.CHUNK)

    def empty(*shape: int) -> Array:
        return xp.empty(shape, dtype=xp.float32, device=device(like))

    model_width, feedforward_width = weights.down_proj.shape
    return Buffers(
        normed=empty(model_width),
        qkv=empty(weights.qkv_proj.shape[0]),
        queries=empty(heads * width),
        work=kernels.Work(empty(heads, chunks), empty(heads, chunks), empty(heads, chunks, width)),
        mixed=empty(heads * width),
        between=empty(model_width),
        activation=empty(feedforward_width),
    )


def block_step(
    x: Float[Array, " D"],
    weights: BlockWeights,
    config: Config,
    cos: Float[Array, "rows R"],
    sin: Float[Array, "rows R"],
    past: int | Int[Array, "1"],
    window: int | None,
    visible: Bool[Array, " S"] | None,
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    buffers: Buffers,
    out: Float[Array, " D"],
    functions: ModuleType = kernels,
) -> None:
    """The block for one token, in nine launches. `out` may be x.

    functions : kernels.py, or twins.py, which runs without a GPU
    """
    f, b = functions, buffers
    f.rms_norm(x, weights.input_layernorm, config.rms_norm_eps, b.normed)
    f.matvec(b.normed, weights.qkv_proj, weights.qkv_proj_bias, None, b.qkv)
    f.rope_and_append(b.qkv, cos, sin, past, keys, values, b.queries)
    f.attention(b.queries, keys, values, past, window, visible, b.work, b.mixed)  # two launches
    f.matvec(b.mixed, weights.o_proj, weights.o_proj_bias, x, b.between)
    f.rms_norm(b.between, weights.post_attention_layernorm, config.rms_norm_eps, b.normed)
    f.swiglu(b.normed, weights.gate_up_proj, weights.gate_up_proj_bias, b.activation)
    f.matvec(b.activation, weights.down_proj, weights.down_proj_bias, b.between, out)


def cuda_block(
    x: Float[Array, "... T D"],
    weights: Any,
    config: Config,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
    functions: ModuleType = kernels,
) -> Float[Array, "... T D"]:
    """The output of `block.block`, computed by kernels if there is one new token and a cache. Parameters as there.

    With a tap, an attention that the kernels do not replace, or sizes that they do not support, it calls `block.block`.

    Raises
    ------
    UsageError : the weights are not those of `block.block`, so another block is needed
    """
    reason = why_not_block(weights)
    if reason is not None:
        raise UsageError(f"cuda_block: expected the weights of npllm.block.block ({reason}); use the model's own block")
    xp = array_namespace(x)
    one_token = cache is not None and all(size == 1 for size in x.shape[:-1])
    if not one_token or tap is not untapped or attention not in SAME_ATTENTION or why_not_sizes(config) is not None:
        return block(x, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=tap)
    assert cache is not None
    keys, values, past = cache["keys"][layer], cache["values"][layer], cache["length"]
    kv_heads, capacity, width = keys.shape[-3:]
    check_capacity(past, capacity)
    row = xp.reshape(x, (-1,))
    out = xp.empty(row.shape, dtype=row.dtype, device=device(x))
    block_step(
        row,
        weights,
        config,
        xp.reshape(cos, (1, -1)),
        xp.reshape(sin, (1, -1)),
        past,
        None,
        None if visible is None else xp.reshape(visible, (past + 1,)),
        xp.reshape(keys, (kv_heads, capacity, width), copy=False),
        xp.reshape(values, (kv_heads, capacity, width), copy=False),
        buffers_for(weights, config, past + 1, x),
        out,
        functions,
    )
    return xp.reshape(out, x.shape)


def check_capacity(past: int, capacity: int) -> None:
    """Raise ValueError if the cache is full, as `cache.append` does. A kernel would write past its end."""
    if past >= capacity:
        raise ValueError(f"KV cache: expected room for {past + 1} tokens, got {capacity}; see cache.grow")
