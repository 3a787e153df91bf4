"""Masks: which tokens a token sees. One row per query, one column per key, True where the query sees the key.

A mask is computed from token positions, queries [..., T] and keys [..., S]; all heads share it. Combine masks with &
and |. `transform` takes one mask for all layers, or a list with one per layer.

    bidir.    causal    sliding   strided   fixed     block_local

    >>> import numpy as np
    >>> t = np.arange(7)
    >>> masks = bidirectional(t, t), causal(t, t), sliding_window(t, t, 3), strided(t, t, 3), fixed(t, t, 3)
    >>> for rows in zip(*masks, block_local(t, t, block=2, local_blocks=1, stride=2)):
    ...     print(*("".join(np.where(row, "1", "0")) for row in rows), sep="   ")
    1111111   1000000   1000000   1000000   1000000   1000000
    1111111   1100000   1100000   1100000   1100000   1100000
    1111111   1110000   1110000   1110000   1110000   0010000
    1111111   1111000   0111000   1111000   0011000   0011000
    1111111   1111100   0011100   0111100   0011100   0011100
    1111111   1111110   0001110   0011110   0011110   0011110
    1111111   1111111   0000111   1001111   0010011   0011001

Source: "Local/sparse attention" (Figures 3-22 to 3-24), "Positional Embeddings (RoPE)" (packing, Figure 3-31);
Child et al. 2019, "Generating long sequences with sparse transformers", section 4.3; the Phi-3 technical report, 2024.
"""

from array_api_compat import device

from .arrays import Array, Bool, Int, array_namespace


def bidirectional(queries: Int[Array, "... T"], keys: Int[Array, "... S"]) -> Bool[Array, "... T S"]:
    """BERT's mask: a token sees earlier and later tokens. It hides nothing, like the mask None."""
    return causal(queries, keys) | (keys[..., None, :] > queries[..., :, None])


def causal(queries: Int[Array, "... T"], keys: Int[Array, "... S"]) -> Bool[Array, "... T S"]:
    """A token sees itself and earlier tokens, never later ones."""
    return keys[..., None, :] <= queries[..., :, None]


def sliding_window(queries: Int[Array, "... T"], keys: Int[Array, "... S"], window: int) -> Bool[Array, "... T S"]:
    """Local attention: a token sees the last `window` tokens, including itself: i - window < j <= i.

    Information still travels further: by window - 1 tokens per block.
    """
    return causal(queries, keys) & (keys[..., None, :] > queries[..., :, None] - window)


def strided(queries: Int[Array, "... T"], keys: Int[Array, "... S"], stride: int) -> Bool[Array, "... T S"]:
    """Sparse attention: a token sees the last `stride` tokens, and before them every stride-th one counted from itself.

    The paper gives these two patterns to different heads, or merges them in every head, as here and in `fixed`.
    """
    each = (queries[..., :, None] - keys[..., None, :]) % stride == 0
    return sliding_window(queries, keys, stride) | (causal(queries, keys) & each)


def fixed(
    queries: Int[Array, "... T"], keys: Int[Array, "... S"], block: int, summary: int = 1
) -> Bool[Array, "... T S"]:
    """Sparse attention: a token sees its own block so far, and the last `summary` tokens of each earlier block."""
    own = queries[..., :, None] // block == keys[..., None, :] // block
    return causal(queries, keys) & (own | (keys[..., None, :] % block >= block - summary))


def block_local(
    queries: Int[Array, "... T"],
    keys: Int[Array, "... S"],
    block: int = 64,
    local_blocks: int = 16,
    stride: int = 8,
    offset: int = 0,
) -> Bool[Array, "... T S"]:
    """Phi-3-small's sparse mask: a token sees its own block, the `local_blocks` - 1 before it, and every stride-th.

    In Phi-3-small head n has offset n, so that eight heads together see every block (families/block_sparse.py).
    """
    query_block, key_block = queries[..., :, None] // block, keys[..., None, :] // block
    near, each = query_block - key_block < local_blocks, (key_block + offset + 1) % stride == 0
    return causal(queries, keys) & (near | each)


def same_document(queries: Int[Array, "... T"], keys: Int[Array, "... S"]) -> Bool[Array, "... T S"]:
    """For documents packed into one row: tokens see only their own document. Use `causal(...) & same_document(...)`.

    The arguments are document numbers, not positions. Padding has a negative number; no token sees it.
    """
    return (queries[..., :, None] == keys[..., None, :]) & (keys[..., None, :] >= 0)


def alternating(layers: int, *masks: Bool[Array, "... T S"] | None) -> list[Bool[Array, "... T S"] | None]:
    """One mask per layer, cycling through `masks`: `full, sparse` as in GPT-3, `sparse, full` as in Phi-3-small."""
    return [masks[layer % len(masks)] for layer in range(layers)]


def decoder_mask(past: int, new: int, window: int | None, like: Array) -> Bool[Array, "T S"] | None:
    """The mask for `new` tokens after `past` cached ones; None if it hides nothing, as in nearly every decode step."""
    total = past + new
    if new == 1 and (window is None or window >= total):
        return None
    xp = array_namespace(like)
    queries = xp.arange(past, total, device=device(like))
    keys = xp.arange(total, device=device(like))
    return causal(queries, keys) if window is None else sliding_window(queries, keys, window)


def aligned_mask(keys: Int[Array, "... S"], window: int | None) -> Bool[Array, "... 1 S"]:
    """The mask for the last token of a text, from the position of each slot: negative before the text begins.

    So texts of several lengths share a cache, aligned at their ends: apps/batches.py.
    """
    queries = keys[..., -1:]
    seen = causal(queries, keys) if window is None else sliding_window(queries, keys, window)
    return seen & (keys >= 0)[..., None, :]
