"""Installing the loops in a loaded model: products, decode steps in one compiled call, and prompts."""

import copy
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from ..arrays import Float, Int, Weight, is_packed
from ..attention import attention
from ..cache import Cache, empty_cache
from ..config import Config
from ..devices.threads import threads
from ..embedding import embed
from ..families.work import arrays_in
from ..flash import flash_attention
from ..linear import linear
from ..lm import LM
from ..masks import aligned_mask
from ..rope import rope_tables
from ..storage.columns import Columns
from ..storage.packed import Groups, Half
from ..tap import Tap, untapped
from .fit import MATRICES, Recipe, other_shapes, recipe_for, unknown_weights
from .jit import COMPILES
from .layers import CHUNK
from .many import multiply, one_thread
from .prefill import prefill
from .products import product_alone
from .records import FLOAT32, HALVES, WEIGHT, Unsupported, address, describe, vector
from .step import BLOCK, LARGEST, MODEL, PHASES, TOKEN, step
from .team import Team

SAME_ATTENTION = (attention, flash_attention)  # the step may replace either
TEAM: list[Team] = []
LOCK = Lock()


def team() -> Team:
    """The team of this process, with as many threads as are set now."""
    with LOCK:
        if not TEAM or TEAM[0].asked != threads():
            TEAM[:] = [Team(threads())]
        return TEAM[0]


class Compiled:
    """A weight with its products in loops. The record is made when it is first needed."""

    shape: tuple[int, int]
    record: Any = None

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        if x2d.dtype != np.float32 or x2d.shape[1] != self.shape[1]:
            return super().matmul(x2d)  # type: ignore[misc]
        if self.record is None:
            record = np.zeros(1, WEIGHT)
            try:
                self.kept = describe(record[0], self)
            except Unsupported:
                return super().matmul(x2d)  # type: ignore[misc]
            self.record = record  # complete, for other threads
        y = np.empty((len(x2d), self.shape[0]), dtype=np.float32)
        if len(x2d) > LARGEST:
            with one_thread():
                team().run(multiply, 1, x2d, self, self.record[0], None, y)
        else:
            team().run(product_alone, 1, self.record[0], np.ascontiguousarray(x2d), y)
        return y

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the weight has its numbers at other addresses."""
        return {name: value for name, value in self.__dict__.items() if name not in ("record", "kept")}


class CompiledHalf(Compiled, Half):
    """A matrix in 16 bits."""


class CompiledGroups(Compiled, Groups):
    """A matrix in 8 or 4 bits."""


class Plain:
    """A plain matrix as `arrays.Packed`."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.shape, self.dtype, self.nbytes = weight.shape, weight.dtype, weight.nbytes

    def matmul(self, x2d: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T F"]:
        """x2d @ W.T"""
        return linear(x2d, self.weight)

    def rows(self, ids: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T D"]:
        """W[ids]"""
        return embed(ids, self.weight)


class CompiledPlain(Compiled, Plain):
    """A plain matrix: the LM head, the one product of a decode step outside the blocks."""


COMPILED = {Half: CompiledHalf, Groups: CompiledGroups}


def compiled(weight: Any) -> Any:
    """The same weight, its products in loops if it is packed. Arrays are shared."""
    kind = COMPILED.get(type(weight))
    if kind is None:
        return weight
    new = copy.copy(weight)
    new.__class__ = kind
    return new


def compiled_tree(weights: Any, done: dict[int, Any]) -> Any:
    """All packed weights of a (nested) tuple `compiled`; one that occurs twice stays one. `done`: so far, by id."""
    if isinstance(weights, tuple):
        items = [compiled_tree(item, done) for item in weights]
        return type(weights)(*items) if hasattr(weights, "_fields") else tuple(items)
    return done.setdefault(id(weights), compiled(weights))


class Tables:
    """A model's weights and the arrays of a cache as records, for `step` and `prefill`."""

    def __init__(self, weights: Any, config: Config, cache: Cache, recipe: Recipe) -> None:
        self.weights, self.config = weights, config
        self.keys, self.values = list(cache["keys"]), list(cache["values"])
        self.kept: list[Any] = []
        if unknown := unknown_weights(weights, recipe):
            raise Unsupported(f"the loops do not know the weights {', '.join(unknown)}")
        if wrong := other_shapes(weights, config, cache, recipe):
            raise Unsupported(f"the loops do no bounds checks, and these have other shapes: {', '.join(wrong)}")
        self.blocks = np.zeros(len(weights.layers), BLOCK)
        for layer, (record, of_block) in enumerate(zip(self.blocks, weights.layers, strict=True)):
            for name in MATRICES:
                bias = getattr(of_block, f"{name}_bias", None)
                self.kept.append(describe(record[name], getattr(of_block, name), bias))
            for place, field in recipe.norms.items():
                weight = getattr(of_block, field)
                weight = (1.0 + weight).astype(np.float32) if recipe.plus_one else weight
                self.kept.append(weight)
                record[place] = vector(weight)
            window = config.window(layer)
            record["window"], record["tables"] = window or 0, bool(recipe.local and window)
            record["keys"], record["values"] = address(self.keys[layer]), address(self.values[layer])
        kind = self.keys[0].dtype
        if kind != np.float32 and kind not in HALVES:
            raise Unsupported(f"there are no loops for a cache in {kind}")
        model = np.zeros(1, MODEL)[0]
        model["heads"], model["kv_heads"] = config.num_attention_heads, config.num_key_value_heads
        model["head_dim"], model["eps"] = config.head_dim, config.rms_norm_eps
        model["scale"], model["cap"], model["gelu"] = recipe.scale(config), recipe.cap(config), recipe.gelu
        model["cache"] = FLOAT32 if kind == np.float32 else HALVES[kind]
        model["capacity"] = self.keys[0].shape[-2]
        self.model = model

    def is_for(self, weights: Any, config: Config, cache: Cache) -> bool:
        """Whether it was made for these weights and this cache. `cache.grow` replaces the arrays."""
        mine, theirs = [*self.keys, *self.values], [*cache["keys"], *cache["values"]]
        same = len(mine) == len(theirs) and all(one is other for one, other in zip(mine, theirs, strict=True))
        return self.weights is weights and self.config is config and same

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy is None: the copies of the arrays are at other addresses."""
        return type(None), ()


class CompiledPass:
    """The pass of a family in loops, with a cache; up to 32 tokens (a decode step) in one compiled call.

    A call computes tokens of one text, or one token of each text of a batch aligned at its ends (apps/batches.py).
    `whole_pass` computes everything else: no cache, other batches, a tap, another attention, block or mask.
    """

    def __init__(self, whole_pass: Callable[..., Any], recipe: Recipe) -> None:
        self.whole_pass, self.recipe = whole_pass, recipe

    def __call__(
        self,
        ids: Int[np.ndarray, "... T"],
        weights: Any,
        config: Config,
        cache: Cache | None = None,
        *,
        total_length: int | None = None,
        attention: Callable[..., Float[np.ndarray, "... N T H"]] = attention,
        tap: Tap = untapped,
        **options: Any,
    ) -> tuple[Float[np.ndarray, "... T D"], Cache | None]:
        """Parameters as in `model.transform`."""
        ours = tap is untapped and attention in SAME_ATTENTION
        tokens = tokens_of(ids, config, cache, options) if ours and cache is not None else None
        step_of = None if tokens is None or cache is None else self.tables(weights, config, cache)
        if step_of is None or tokens is None or cache is None:
            options |= {"total_length": total_length, "attention": attention, "tap": tap}
            return self.whole_pass(ids, weights, config, cache, **options)
        total = cache["length"] + ids.shape[-1]
        hidden = self.run(ids, weights, config, step_of, tokens, total if total_length is None else total_length)
        cache["length"] = total
        return hidden, cache

    def tables(self, weights: Any, config: Config, cache: Cache) -> Tables | None:
        """The records for a step; None if the loops do not compute it."""
        found = cache.get("step")
        if isinstance(found, Unsupported):
            return None
        if not isinstance(found, Tables) or not found.is_for(weights, config, cache):
            try:
                cache["step"] = found = Tables(weights, config, cache, self.recipe)
            except Unsupported as error:
                cache["step"] = error.with_traceback(None)  # so that the next step need not find out again
                return None
        return found

    def run(
        self,
        ids: Int[np.ndarray, "... T"],
        weights: Any,
        config: Config,
        tables: Tables,
        tokens: np.ndarray,
        total_length: int,
    ) -> Float[np.ndarray, "... T D"]:
        """The hidden states of new tokens, whose records are `tokens`."""
        new, recipe, blocks = len(tokens), self.recipe, tables.blocks
        slots = int(tokens["slot"][-1]) + 1
        positions = tokens["slot"] - tokens["first"]
        pairs = [rope_tables(positions, config, total_length)]
        if recipe.local:
            pairs.append(rope_tables(positions, recipe.local(config), slots))
        cos, sin = (np.stack(side) for side in zip(*pairs, strict=True))
        x = recipe.embed(ids, weights.embed_tokens).reshape(new, -1)
        x = np.ascontiguousarray(x, dtype=np.float32)
        if new > LARGEST:
            caches = zip(tables.keys, tables.values, strict=True)
            prefill(team().run, weights.layers, tables.model, blocks, caches, tokens, x, cos, sin)
            return recipe.norm(x, weights.norm, config.rms_norm_eps)
        heads, width = config.num_attention_heads, config.head_dim
        first: Any = blocks[0]

        def shared(*shape: int) -> np.ndarray:
            return np.empty(shape, np.float32)

        team().run(
            step,
            PHASES * len(blocks),
            tables.model,
            blocks,
            tokens,
            x,
            cos,
            sin,
            shared(new, int(first["qkv_proj"]["height"])),
            shared(new, heads, -(-slots // CHUNK), width + 2),
            shared(2, *x.shape),
            shared(new, int(first["gate_up_proj"]["height"])),
        )
        return recipe.norm(x, weights.norm, config.rms_norm_eps).reshape(*ids.shape, -1)


def tokens_of(ids: Int[np.ndarray, "... T"], config: Config, cache: Cache, options: dict[str, Any]) -> Any:
    """The records of the new tokens, for `step`. None if the loops do not compute them, or the cache is full."""
    past, new, batch = cache["length"], ids.shape[-1], cache["keys"][0].shape[:-3]
    if not ids.size or past + new > cache["keys"][0].shape[-2] or ids.shape[:-1] != batch:
        return None
    tokens = np.zeros(ids.size, TOKEN)
    if not batch:
        tokens["slot"] = np.arange(past, past + new)
        return None if options else tokens
    if options.keys() != {"positions", "visible"} or options["positions"].shape != ids.shape:
        return None
    if ids.shape[1:] != (1,) or len(ids) > LARGEST:
        return None
    tokens["text"], tokens["slot"] = np.arange(len(ids)), past
    tokens["first"] = past - options["positions"][:, 0]
    return tokens if are_aligned(tokens["first"], past, config, options["visible"]) else None


def are_aligned(first: Int[np.ndarray, " B"], past: int, config: Config, visible: Any) -> bool:
    """Whether the masks of all layers are those of texts that begin in these slots, and end in slot `past`."""
    if (
        not isinstance(visible, list)
        or len(visible) != config.num_hidden_layers
        or first.min() < 0
        or first.max() > past
    ):
        return False
    keys = np.arange(past + 1) - first[:, None]
    masks = {window: aligned_mask(keys, window) for window in {None, config.sliding_window}}
    different = {(id(mask), config.window(layer)): mask for layer, mask in enumerate(visible)}
    return all(np.array_equal(mask, masks[window]) for (_, window), mask in different.items())


def path_of(lm: LM) -> str | None:
    """What computes a model's passes on a CPU, for reports; None on a GPU."""
    blocks = list(arrays_in(lm.weights.layers))
    if not any(isinstance(array, np.ndarray) for array in blocks):
        return None
    if isinstance(lm.transform, CompiledPass):
        cache = empty_cache(lm.config, 1, like=lm.weights.norm)
        if lm.transform.tables(lm.weights, lm.config, cache) is not None:
            return "compiled loops"
    products = any(isinstance(array, Compiled) for array in blocks)
    return "compiled products, the rest in NumPy" if products else "NumPy"


def on_cpu(lm: LM, kernels: bool = True) -> LM:
    """The model with its products and passes in loops, where Numba compiles them; otherwise the same model."""
    return with_loops(lm) if kernels and COMPILES else lm


def with_loops(lm: LM) -> LM:
    """The model with its products and passes in loops, compiled or not."""
    weights = compiled_tree(lm.weights, {})
    if (weights.lm_head is not None and not is_packed(weights.lm_head)) or isinstance(weights.lm_head, Columns):
        head = CompiledPlain(weights.lm_head)
        tied = weights.lm_head is weights.embed_tokens
        weights = weights._replace(lm_head=head, embed_tokens=head if tied else weights.embed_tokens)
    recipe = recipe_for(lm)
    transform = lm.transform if recipe is None else CompiledPass(lm.transform, recipe)
    return lm._replace(weights=weights, transform=transform)
