"""FlashAttention: the same attention tile by tile, so that the full matrix of scores never exists.

A processor has a small fast memory and a large slow one, and moving data between them takes longer than computing with
it. Naive attention writes its T x S scores to slow memory and reads them back, twice. Here a tile of queries stays in
fast memory while tiles of keys and values stream past, and their scores are used immediately. The softmax keeps a
running maximum and sum: when a larger score arrives, the sums so far are scaled down to match.

Source: "Flash Attention"; Dao et al. 2022, "FlashAttention"; Dao 2023, "FlashAttention-2" (the order of the loops);
Milakov & Gimelshein 2018, "Online normalizer calculation for softmax".
"""

import math

from array_api_compat import device

from .arrays import Array, Bool, Float, array_namespace
from .attention import combine, relevance_scores
from .tap import Tap, untapped

TILE = (256, 256)  # queries, keys


def spans(length: int, size: int) -> list[slice]:
    """Slices of `size` that cover the length; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def visible_tiles(
    new: int, length: int, visible: Bool[Array, "... T S"] | None = None, tile: tuple[int, int] = TILE
) -> list[tuple[slice, list[slice]]]:
    """For each tile of the `new` queries, the tiles of the `length` keys that contain a visible one.

    >>> import numpy as np
    >>> [len(keys) for queries, keys in visible_tiles(6, 6, np.tri(6) > 0, tile=(2, 2))]
    [1, 2, 3]
    """
    rows, columns = spans(new, tile[0]), spans(length, tile[1])
    if visible is None:
        return [(row, columns) for row in rows]
    xp = array_namespace(visible)
    flags = xp.stack([xp.any(visible[..., row, column]) for row in rows for column in columns])
    # Python chooses the tiles, so the flags are copied to the host, as the bits of an integer, 31 at a time.
    bits = xp.where(flags, 2 ** (xp.arange(flags.shape[0], dtype=xp.int32, device=device(visible)) % 31), 0)
    numbers = [int(xp.sum(bits[part])) for part in spans(flags.shape[0], 31)]
    seen = iter([number >> bit & 1 for number in numbers for bit in range(31)])
    return [(row, [column for column in columns if next(seen)]) for row in rows]


def flash_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    tile: tuple[int, int] = TILE,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """The result of `attention` up to rounding, in less memory. Tiles that are hidden entirely are skipped.

    Only "mixed" can be tapped: full rows of scores and weights never exist.
    """
    xp = array_namespace(q)
    done = []
    for row, columns in visible_tiles(q.shape[-2], k.shape[-2], visible, tile):
        queries = q[..., row, :]
        mixed = xp.zeros_like(queries)
        total = mixed[..., :1]
        largest = total - 1e38  # no score yet; with -inf the differences below would be NaN
        for column in columns:
            scores = relevance_scores(queries, k[..., column, :])
            scores = scores if visible is None else xp.where(visible[..., None, row, column], scores, -math.inf)
            larger = xp.maximum(largest, xp.max(scores, axis=-1, keepdims=True))
            shrink, shares = xp.exp(largest - larger), xp.exp(scores - larger)
            total = shrink * total + xp.sum(shares, axis=-1, keepdims=True)
            mixed = shrink * mixed + combine(shares, v[..., column, :])
            largest = larger
        done.append(mixed / xp.maximum(total, 1.0))  # total: at least exp(0) = 1, or 0 if all keys are hidden
    return tap("mixed", xp.concat(done, axis=-2))
