"""The KV cache: the keys and values of tokens already computed, so that a new token is the only work of a step.

A cache is a plain dict:

    {"keys":   [L arrays [..., K, C, H]],   after RoPE, ready for scoring
     "values": [L arrays [..., K, C, H]],
     "length": number of tokens held,       slots 0..length-1 of C are filled
     "step":   a DecodeStep}                only with our GPU kernels: the captured decode step, see cuda/step.py

"step" is a graph with the addresses of the arrays above, and the buffers it works in. It holds no result that a later
pass reads. The next decode step replaces it if the arrays are others (after `grow`) or the model is another; otherwise
it lives as long as the cache. It may be deleted at any time.

The blocks write slots length..length+T-1; `transform` moves `length` on only after the last block, so a pass that is
interrupted leaves the cache as it was. Lowering `length` forgets the last tokens.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10).
"""

from typing import Any

from array_api_compat import device

from .arrays import Array, Float, array_namespace
from .config import Config

Cache = dict[str, Any]
CACHE_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}  # the bytes of one number


def kv_cache_bytes(config: Config, tokens: int, bytes_each: int = 4) -> int:
    """The memory of a KV cache for that many tokens: 2 (keys, values) · L · K · H · bytes_each for each token."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * bytes_each


def empty_cache(config: Config, capacity: int, batch: tuple[int, ...] = (), *, like: Array, dtype: Any = None) -> Cache:
    """A cache with room for `capacity` tokens, on the device of the array `like`.

    dtype : float32 by default. A type of 16 bits takes half the memory; attention gets float32 of it again, so nothing
        else changes. bfloat16 keeps 8 bits of a number; float16 keeps 11, but turns what is above 65,504 into infinity
    """
    xp = array_namespace(like)
    dtype = xp.float32 if dtype is None else dtype
    shape = (*batch, config.num_key_value_heads, capacity, config.head_dim)

    def rooms() -> list[Array]:
        return [xp.zeros(shape, dtype=dtype, device=device(like)) for _ in range(config.num_hidden_layers)]

    return {"keys": rooms(), "values": rooms(), "length": 0}


def append(
    cache: Cache, layer: int, k: Float[Array, "... K T H"], v: Float[Array, "... K T H"]
) -> tuple[Float[Array, "... K S H"], Float[Array, "... K S H"]]:
    """Write the new keys and values of a layer behind the cached ones; return all of them, as views (16 bits: widened).

    Raises ValueError when the cache has no room for them (see `grow`).
    """
    xp, keys, values = array_namespace(k), cache["keys"][layer], cache["values"][layer]
    past, total = cache["length"], cache["length"] + k.shape[-2]
    if total > keys.shape[-2]:
        raise ValueError(f"KV cache: expected room for {total} tokens, got {keys.shape[-2]}; see cache.grow")
    keys[..., past:total, :] = k
    values[..., past:total, :] = v
    keys, values = keys[..., :total, :], values[..., :total, :]
    return xp.astype(keys, k.dtype, copy=False), xp.astype(values, v.dtype, copy=False)


def grow(cache: Cache, capacity: int) -> None:
    """Give the cache room for `capacity` tokens, keeping what it holds. Copies it: double, rather than add a little."""
    for name in ("keys", "values"):
        for layer, old in enumerate(cache[name]):
            if capacity > old.shape[-2]:
                xp = array_namespace(old)
                new = xp.zeros((*old.shape[:-2], capacity, old.shape[-1]), dtype=old.dtype, device=device(old))
                new[..., : cache["length"], :] = old[..., : cache["length"], :]
                cache[name][layer] = new
