"""The KV cache: the keys and values of earlier tokens, so that a decode step only computes the new token.

A cache is a plain dict:

    {"keys":   [L arrays [..., K, C, H]],   after RoPE, ready for scoring
     "values": [L arrays [..., K, C, H]],
     "length": number of cached tokens,     slots 0..length-1 of C are filled
     "ids":    the text,                    only from the loop, which so notices when another text uses the cache
     "long_factors": True or False,         only in generation: which of LongRoPE's factors rotated the keys
     "step":   a DecodeStep, Tables, or why there are none}    only with kernels: cuda/step.py, compiled/cpu.py

"step" holds buffers and the addresses of the arrays above, but no result that a later pass reads: it may be deleted at
any time. The next decode step replaces it if the arrays (after `grow`) or the model have changed.

The blocks write slots length..length+T-1. `transform` advances `length` only after the last block, so an interrupted
pass leaves the cache as it was. Lowering `length` drops the last tokens.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10).
"""

import warnings
from typing import Any

from array_api_compat import device

from .arrays import Array, Float, array_namespace
from .config import Config
from .rope import needs_long_factors

Cache = dict[str, Any]
CACHE_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes per element


def kv_cache_bytes(config: Config, tokens: int, bytes_each: int = 4) -> int:
    """The bytes of a KV cache for that many tokens: 2 (keys, values) · L · K · H · bytes_each per token."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * bytes_each


def empty_cache(config: Config, capacity: int, batch: tuple[int, ...] = (), *, like: Array, dtype: Any = None) -> Cache:
    """A cache for up to `capacity` tokens, on the device of the array `like`.

    dtype : float32 by default. A 16-bit dtype takes half the memory; attention still computes in float32. bfloat16 has
        8 significant bits, float16 has 11 but turns values above 65,504 into infinity
    """
    xp = array_namespace(like)
    dtype = xp.float32 if dtype is None else dtype
    shape = (*batch, config.num_key_value_heads, capacity, config.head_dim)
    keys = [xp.zeros(shape, dtype=dtype, device=device(like)) for _ in range(config.num_hidden_layers)]
    return {"keys": keys, "values": [xp.zeros_like(k) for k in keys], "length": 0}


def append(
    cache: Cache, layer: int, k: Float[Array, "... K T H"], v: Float[Array, "... K T H"]
) -> tuple[Float[Array, "... K S H"], Float[Array, "... K S H"]]:
    """All keys and values of a layer, after adding the new ones to the cache: views of it (16 bits are widened).

    Raises ValueError if they exceed the capacity (see `grow`).
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
    """Increase the capacity, preserving the contents. This copies the cache: double it, rather than add a little."""
    for name in ("keys", "values"):
        for layer, old in enumerate(cache[name]):
            if capacity > old.shape[-2]:
                xp = array_namespace(old)
                new = xp.zeros((*old.shape[:-2], capacity, old.shape[-1]), dtype=old.dtype, device=device(old))
                new[..., : cache["length"], :] = old[..., : cache["length"], :]
                cache[name][layer] = new


def drop_other_factors(cache: Cache, config: Config, total_length: int) -> None:
    """Empty the cache if its keys were rotated by LongRoPE's other factors than a text of this length needs.

    Keys of both kinds must not be mixed, so the whole text is computed again when it crosses the original context.
    """
    long = needs_long_factors(config, total_length)
    was = cache["long_factors"] if "long_factors" in cache else needs_long_factors(config, cache["length"])
    if cache["length"] > 0 and was != long:
        text = "is now longer than" if long else "again fits in"
        warnings.warn(f"the text {text} the original context: all of it is computed again, see LongRoPE", stacklevel=2)
        cache["length"] = 0
    cache["long_factors"] = long
