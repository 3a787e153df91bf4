"""A decode step as one CUDA graph: all launches from the token id to the final norm, captured once and then replayed.

A graph saves the host's time: Phi-3-mini takes 291 launches per token, each an estimated 8 µs of Python. The arguments
of a captured launch are fixed. So all buffers stay where they are, and the position is counted in device memory.

The LM head follows outside the graph, as in every pass, and then the choice of the token.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10); the CUDA C++ programming guide, on graphs.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, Int, Weight, array_namespace
from ..attention import attention
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..linear import linear
from ..rope import rope_tables
from ..shapes import BlockWeights, Weights
from ..tap import Tap, untapped
from . import kernels
from .block import SAME_ATTENTION, block_step, buffers_for, check_capacity
from .fit import why_not_sizes, why_not_weights


class KernelWeight:
    """A weight whose product with a single vector is our kernel, in float32; all else is left to the weight itself.

    It is for the LM head, the one product of a decode step outside the captured step.
    """

    def __init__(self, weight: Weight, functions: ModuleType = kernels) -> None:
        self.weight, self.functions = weight, functions
        self.shape, self.dtype, self.nbytes = weight.shape, weight.dtype, weight.nbytes

    def matmul(self, x2d: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """x2d @ W.T"""
        if x2d.shape[0] != 1:
            return linear(x2d, self.weight)
        xp = array_namespace(x2d)
        y = xp.empty((1, self.shape[0]), dtype=xp.float32, device=device(x2d))
        self.functions.matvec(x2d[0, :], self.weight, None, None, y[0, :])
        return y

    def rows(self, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
        """W[ids]"""
        return embed(ids, self.weight)


class DecodeStep:
    """One decode step of a model with one cache, in buffers that stay where they are.

    graph : the captured step; None before the first run, and with the twins
    expected : the position in device memory; -1 if a step was interrupted and it is unknown
    tables : identifies the RoPE tables in `cos` and `sin`, see `tables_id`
    """

    def __init__(self, weights: Weights, config: Config, cache: Cache, functions: ModuleType = kernels) -> None:
        xp, like = array_namespace(weights.norm), weights.norm
        self.weights, self.config, self.functions = weights, config, functions
        self.keys, self.values = list(cache["keys"]), list(cache["values"])
        self.capacity = self.keys[0].shape[-2]
        self.ids = xp.zeros(1, dtype=xp.int64, device=device(like))
        self.position = xp.zeros(1, dtype=xp.int32, device=device(like))
        shape = self.capacity, config.rotary_dim // 2
        self.cos, self.sin = (xp.empty(shape, dtype=xp.float32, device=device(like)) for _ in range(2))
        self.x, self.hidden = (xp.empty(like.shape, dtype=xp.float32, device=device(like)) for _ in range(2))
        self.layers = cast(tuple[BlockWeights, ...], weights.layers)  # fit.py has checked their fields
        self.buffers = buffers_for(self.layers[0], config, self.capacity, like)
        self.graph: Any = None
        self.expected = -1
        self.tables = b""

    def is_for(self, weights: Weights, config: Config, cache: Cache) -> bool:
        """Whether it was made for these weights and this cache. `cache.grow` replaces the arrays."""
        pairs = zip((*self.keys, *self.values), (*cache["keys"], *cache["values"]), strict=True)
        return self.weights is weights and self.config is config and all(mine is theirs for mine, theirs in pairs)

    def set_tables(self, total_length: int) -> None:
        """Fill `cos` and `sin` for a text of `total_length` tokens, unless they hold the right values already.

        They are written in place, because the captured launches keep their addresses.
        """
        tables = tables_id(self.config, total_length)
        if tables == self.tables:
            return
        xp = array_namespace(self.cos)
        positions = xp.arange(self.capacity, device=device(self.cos))
        self.tables = b""
        self.cos[...], self.sin[...] = rope_tables(positions, self.config, total_length)
        self.tables = tables

    def launch(self) -> None:
        """Launch all kernels of the step, one after the other."""
        f, weights, config = self.functions, self.weights, self.config
        table = weights.embed_tokens
        f.embed(self.ids, table.weight if isinstance(table, KernelWeight) else table, self.x)
        for layer, of_block in enumerate(self.layers):
            keys, values = self.keys[layer], self.values[layer]
            where = self.cos, self.sin, self.position, config.window(layer), None
            block_step(self.x, of_block, config, *where, keys, values, self.buffers, self.x, f)
        f.rms_norm(self.x, weights.norm, config.rms_norm_eps, self.hidden)
        f.advance(self.position)

    def run(self, ids: Int[Array, "1"], past: int, total_length: int) -> Float[Array, "1 D"]:
        """The token's hidden state after the final norm. The first step is launched, then captured for the next ones.

        past : the number of tokens in the cache
        total_length : as in `model.transform`
        """
        xp = array_namespace(ids)
        self.set_tables(total_length)
        self.ids[...] = ids
        if self.expected != past:  # the first step, or the cache was rolled back
            self.position[...] = past
        self.expected = -1
        if self.graph is not None:
            self.graph.launch()
        else:
            self.launch()
            if self.functions is kernels:
                self.graph = captured(self.launch)
        self.expected = past + 1
        return xp.asarray(self.hidden, copy=True)[None, :]


def tables_id(config: Config, total_length: int) -> bytes:
    """An identifier of the RoPE tables for a text of this length: equal ones mean equal tables.

    It is cos and sin of position 1, computed on the host in 35 µs, so that no step waits for the GPU. They contain the
    frequency of every pair, and thereby whatever a scaling makes depend on the length.
    """
    cos, sin = rope_tables(np.asarray([1]), config, total_length)
    return cos.tobytes() + sin.tobytes()


def captured(launches: Callable[[], None]) -> Any:
    """The launches of a function as a CUDA graph. Nothing runs yet. The kernels must be compiled already."""
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
    """The same pass, with its decode steps replayed from a graph. `whole_pass` computes everything else.

    Everything else is: several tokens, no cache, a tap, an attention that the kernels do not replace, positions, a mask
    or a block from the caller, and weights that the kernels do not know. The step is in the cache, as cache["step"].
    """

    def transform(
        ids: Int[Array, "... T"],
        weights: Weights,
        config: Config,
        cache: Cache | None = None,
        *,
        total_length: int | None = None,
        attention: Callable[..., Float[Array, "... N T H"]] = attention,
        tap: Tap = untapped,
        **options: Any,
    ) -> tuple[Float[Array, "... T D"], Cache | None]:
        one_token = cache is not None and ids.shape == (1,) and not options
        if not one_token or tap is not untapped or attention not in SAME_ATTENTION:
            options |= {"total_length": total_length, "attention": attention, "tap": tap}
            return whole_pass(ids, weights, config, cache, **options)
        assert cache is not None
        past = cache["length"]
        check_capacity(past, cache["keys"][0].shape[-2])
        if "step" not in cache or not cache["step"].is_for(weights, config, cache):
            cache.pop("step", None)  # frees its buffers
            if why_not_weights(weights) or why_not_sizes(config):  # not those that the model was loaded with
                return whole_pass(ids, weights, config, cache, total_length=total_length, attention=attention, tap=tap)
            cache["step"] = DecodeStep(weights, config, cache, functions)
        hidden = cache["step"].run(ids, past, past + 1 if total_length is None else total_length)
        cache["length"] = past + 1
        return hidden, cache

    return transform
