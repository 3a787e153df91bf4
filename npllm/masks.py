"""Masks: who may look at whom. A row for each query, a column for each key, True where the query may see the key.

Source: "Local/sparse attention" (Figures 3-22 to 3-24).
"""

from array_api_compat import device

from .shapes import Array, Bool, Int, array_namespace


def causal(queries: Int[Array, "... T"], keys: Int[Array, "... S"]) -> Bool[Array, "... T S"]:
    """A token sees itself and what is before it, never what comes after (BERT, being bidirectional, sees both).

    queries, keys : the positions of the query tokens and of the key tokens

    >>> import numpy as np
    >>> causal(np.arange(3), np.arange(3)).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    return keys[..., None, :] <= queries[..., :, None]


def sliding_window(queries: Int[Array, "... T"], keys: Int[Array, "... S"], window: int) -> Bool[Array, "... T S"]:
    """Local attention: a token sees the last `window` tokens, itself counted: i - window < j <= i.

    Information still travels further, by window - 1 tokens with each block.

    >>> import numpy as np
    >>> sliding_window(np.arange(4), np.arange(4), window=2).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]])
    """
    return causal(queries, keys) & (keys[..., None, :] > queries[..., :, None] - window)


def decoder_mask(past: int, new: int, window: int | None, like: Array) -> Bool[Array, "T S"] | None:
    """The mask of `new` tokens that come after `past` cached ones; None where nothing is hidden.

    Nothing is hidden when a single new token may see all the cache, as in nearly every step of generation.
    """
    total = past + new
    if new == 1 and (window is None or window >= total):
        return None
    xp = array_namespace(like)
    queries = xp.arange(past, total, device=device(like))
    keys = xp.arange(total, device=device(like))
    return causal(queries, keys) if window is None else sliding_window(queries, keys, window)
