"""The second block: the same as `block.block`, by kernels of our own, for the one new token of a decode step.

It enters from above and nothing below knows of it. `cuda_block` is passed as `transform(block=cuda_block)`; and
`with_kernels` gives an LM a `transform` of its own, which captures a step as a CUDA graph: all launches of one step,
from the token's id to the logits, recorded once, and from then on handed to the GPU together. Who looks inside (a tap),
or computes more than one token, gets the plain functions; the captured step is also left for them by a mask or
positions of one's own.

`transform` returns the vector after the final norm, as every one does. The logits wait in the LM head's weight (see
`KernelHead`), and the choice of the token is the loop's, by whatever its caller asked for.

Source: "Inside the Transformer Block"; "Speeding Up Generation by Caching Keys and Values"; the CUDA C++ programming
guide, on graphs.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, cast

from array_api_compat import device

from ..arrays import Array, Bool, Float, Int, Weight, array_namespace
from ..attention import attention
from ..block import block
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..flash import flash_attention
from ..linear import linear
from ..lm import LM
from ..rope import rope_tables
from ..shapes import BlockWeights, Weights
from ..tap import Tap, untapped
from . import kernels
from .attention import cuda_attention

KNOWN = (attention, flash_attention, cuda_attention)  # ways to compute the same, which the kernels may replace


class Buffers(NamedTuple):
    """What a block computes on its way, in memory allocated once: a captured launch keeps its addresses."""

    normed: Float[Array, " D"]
    qkv: Float[Array, " QKV"]
    queries: Float[Array, " NH"]
    work: kernels.Work
    mixed: Float[Array, " NH"]
    between: Float[Array, " D"]  # the residual stream after attention
    activation: Float[Array, " F"]


def buffers_for(weights: BlockWeights, config: Config, capacity: int, like: Array) -> Buffers:
    """Buffers for blocks of these shapes, and a cache of that capacity."""
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

    functions : the kernels, or kernel_twins, which run without a GPU
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
    weights: BlockWeights,
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
    """`block.block`, by kernels where there is one new token and a cache. Parameters as there.

    With a tap, or an attention that is not one of ours, it is `block.block` itself.
    """
    xp = array_namespace(x)
    if cache is None or any(size != 1 for size in x.shape[:-1]) or tap is not untapped or attention not in KNOWN:
        return block(x, weights, config, cos, sin, visible, cache, layer, attention=attention, tap=tap)
    keys, values, past = cache["keys"][layer], cache["values"][layer], cache["length"]
    kv_heads, capacity, width = keys.shape[-3:]
    check_room(past, capacity)
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


def check_room(past: int, capacity: int) -> None:
    """What `cache.append` checks, and a kernel cannot: it would write behind the cache."""
    if past >= capacity:
        raise ValueError(f"KV cache: expected room for {past + 1} tokens, got {capacity}; see cache.grow")


class KernelHead:
    """A weight, the LM head's, of which a single vector's product is a kernel of ours and comes out in float32.

    A captured step ends with this product, and leaves it here for `lm_head`, which is called only after the step.
    Whether it is asked for that very vector is found out on the device, by comparing the numbers (`kernels.recall`):
    for another vector, or one that was changed in place, the product is computed. Only the weight is not looked at:
    who writes to it between a step and `lm_head` gets the logits of before.

    made : the vector of the last step and its product, in buffers that the next step writes to; None: there is none
    """

    def __init__(self, weight: Weight, functions: ModuleType = kernels) -> None:
        self.weight, self.functions = weight, functions
        self.shape, self.dtype, self.nbytes = weight.shape, weight.dtype, weight.nbytes
        self.made: tuple[Float[Array, " D"], Float[Array, " F"]] | None = None

    def matmul(self, x2d: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """x2d @ W.T, always in memory of its own."""
        if x2d.shape[0] != 1:
            return linear(x2d, self.weight)
        xp, made = array_namespace(x2d), self.made
        y = xp.empty((1, self.shape[0]), dtype=xp.float32, device=device(x2d))
        if made is None:
            self.functions.matvec(x2d[0, :], self.weight, None, None, y[0, :])
        else:
            self.functions.recall(x2d[0, :], self.weight, *made, y[0, :])
        return y

    def rows(self, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
        """W[ids]"""
        return embed(ids, self.weight)


def inner(weight: Weight) -> Any:
    """The weight's own storage."""
    return weight.weight if isinstance(weight, KernelHead) else weight


class DecodeStep:
    """One step of a model and a cache, from the token's id to the logits, on buffers that stay where they are.

    The host says the id. The position counts on in the device's memory: a captured launch has its arguments fixed.

    head : the LM head; None where the model classifies, or the head is a plain array: the step ends at the final norm
    graph : the captured step, once there is one
    expected : the position that the device will have at the next step; -1: unknown, because a step was interrupted
    """

    def __init__(self, weights: Weights, config: Config, cache: Cache, functions: ModuleType = kernels) -> None:
        xp, like = array_namespace(weights.norm), weights.norm
        self.weights, self.config, self.functions = weights, config, functions
        self.keys, self.values = list(cache["keys"]), list(cache["values"])
        capacity = self.keys[0].shape[-2]
        self.ids = xp.zeros(1, dtype=xp.int64, device=device(like))
        self.position = xp.zeros(1, dtype=xp.int32, device=device(like))
        self.cos, self.sin = rope_tables(xp.arange(capacity, device=device(like)), config, total_length=capacity)
        self.x, self.hidden = (xp.empty(like.shape, dtype=xp.float32, device=device(like)) for _ in range(2))
        self.head = weights.lm_head if isinstance(weights.lm_head, KernelHead) else None
        if self.head is not None:
            self.logits = xp.empty(self.head.shape[0], dtype=xp.float32, device=device(like))
        self.layers = cast(tuple[BlockWeights, ...], weights.layers)  # `with_kernels` looks
        self.buffers = buffers_for(self.layers[0], config, capacity, like)
        self.graph: Any = None
        self.expected = -1

    def is_for(self, weights: Weights, cache: Cache) -> bool:
        """Whether these are the arrays whose addresses were captured. `cache.grow` makes others."""
        pairs = zip((*self.keys, *self.values), (*cache["keys"], *cache["values"]), strict=True)
        return self.weights is weights and all(mine is theirs for mine, theirs in pairs)

    def launch(self) -> None:
        """All kernels of the step, one after the other."""
        f, weights, config = self.functions, self.weights, self.config
        f.embed(self.ids, inner(weights.embed_tokens), self.x)
        for layer, of_block in enumerate(self.layers):
            keys, values = self.keys[layer], self.values[layer]
            where = self.cos, self.sin, self.position, config.window(layer), None
            block_step(self.x, of_block, config, *where, keys, values, self.buffers, self.x, f)
        f.rms_norm(self.x, weights.norm, config.rms_norm_eps, self.hidden)
        if self.head is not None:
            f.matvec(self.hidden, self.head.weight, None, None, self.logits)
        f.advance(self.position)

    def run(self, ids: Int[Array, "1"], past: int) -> Float[Array, "1 D"]:
        """The token's vector after the final norm. The first step is launched as it is, and captured for the next."""
        xp = array_namespace(ids)
        self.ids[...] = ids
        if self.expected != past:  # the first step, or the cache was shortened
            self.position[...] = past
        if self.head is not None:
            self.head.made = None  # until the step is whole: the buffers are written to
        self.expected = -1
        if self.graph is not None:
            self.graph.launch()
        else:
            self.launch()
            if self.functions is kernels:
                self.graph = captured(self.launch)
        self.expected = past + 1
        if self.head is not None:
            self.head.made = (self.hidden, self.logits)
        return xp.asarray(self.hidden, copy=True)[None, :]


def captured(launches: Callable[[], None]) -> Any:
    """What the function launches, as a CUDA graph: nothing runs now. The kernels must have been compiled before."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            launches()
        finally:
            graph = stream.end_capture()
    return graph


def replayed(whole_pass: Callable[..., Any], functions: ModuleType = kernels) -> Callable[..., Any]:
    """The same pass, in which a step with one new token is a captured one. All else goes to `whole_pass`.

    The step is kept in the cache, as cache["step"], because it holds its arrays. After `cache.grow` it is made anew.
    """

    def transform(
        ids: Int[Array, "... T"],
        weights: Weights,
        config: Config,
        cache: Cache | None = None,
        *,
        attention: Callable[..., Float[Array, "... N T H"]] = attention,
        tap: Tap = untapped,
        **options: Any,
    ) -> tuple[Float[Array, "... T D"], Cache | None]:
        if cache is None or ids.shape != (1,) or options or tap is not untapped or attention not in KNOWN:
            return whole_pass(ids, weights, config, cache, attention=attention, tap=tap, **options)
        past = cache["length"]
        check_room(past, cache["keys"][0].shape[-2])
        if "step" not in cache or not cache["step"].is_for(weights, cache):
            cache.pop("step", None)  # with the arrays that it holds
            cache["step"] = DecodeStep(weights, config, cache, functions)
        hidden = cache["step"].run(ids, past)
        cache["length"] = past + 1
        return hidden, cache

    return transform


def with_kernels(lm: LM, functions: ModuleType = kernels) -> LM:
    """The same model, whose decode steps are made of kernels; unchanged where they do not fit it (see kernels.fits)."""
    weights, config = lm.weights, lm.config
    if not isinstance(weights.layers[0], BlockWeights) or not kernels.fits(config):
        return lm
    embed_tokens, head = weights.embed_tokens, weights.lm_head
    if head is not None:
        tied, head = head is embed_tokens, KernelHead(head, functions)
        embed_tokens = head if tied else embed_tokens
    weights = weights._replace(embed_tokens=embed_tokens, lm_head=head)
    return lm._replace(weights=weights, transform=replayed(lm.transform, functions))
