"""Attention: each token gathers relevant information from itself and earlier tokens.

Two steps: score how relevant each token is, then combine the information by these scores. Many heads do this in
parallel, each with its own queries, keys and values.

"scores" are the products of queries and keys. After the softmax they sum to 1 and are called "weights", as in most
code. (The model's parameters are always written `weights.<name>`.)

Source: "The attention layer at a glance", "Attention is all you need", "How attention is calculated" (Figures 3-14 to
3-21), "Multi-query and grouped-query attention" (Figures 3-25 to 3-28); Vaswani et al. 2017, "Attention is all you
need"; Shazeer 2019; Ainslie et al. 2023, "GQA".
"""

import math

from .arrays import Array, Bool, Float, array_namespace
from .config import Config
from .linear import linear
from .shapes import BlockLike
from .tap import Tap, untapped


def split_heads(x: Float[Array, "... T NH"], heads: int) -> Float[Array, "... N T H"]:
    """One vector per head and token, from one vector per token."""
    xp, n = array_namespace(x), x.ndim
    return xp.permute_dims(xp.reshape(x, (*x.shape[:-1], heads, -1)), (*range(n - 2), n - 1, n - 2, n))


def merge_heads(x: Float[Array, "... N T H"]) -> Float[Array, "... T NH"]:
    """The heads' vectors concatenated: the inverse of `split_heads`."""
    xp, n = array_namespace(x), x.ndim
    x = xp.permute_dims(x, (*range(n - 3), n - 2, n - 3, n - 1))  # moveaxis takes ten times as long
    return xp.reshape(x, (*x.shape[:-2], -1))


def queries_keys_values(
    x: Float[Array, "... T D"], weights: BlockLike, config: Config
) -> tuple[Float[Array, "... N T H"], Float[Array, "... K T H"], Float[Array, "... K T H"]]:
    """Queries, keys and values: three projections of x in one product, stacked in this order in `qkv_proj`."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    qkv = linear(x, weights.qkv_proj, weights.qkv_proj_bias)
    heads_of_all = split_heads(qkv, heads + 2 * kv_heads)
    q = heads_of_all[..., :heads, :, :]
    k = heads_of_all[..., heads : heads + kv_heads, :, :]
    v = heads_of_all[..., heads + kv_heads :, :, :]
    return q, k, v


def relevance_scores(q: Float[Array, "... N T H"], k: Float[Array, "... K S H"]) -> Float[Array, "... N T S"]:
    """Relevance scores: q · k / sqrt(H) for every query and every key.

    With K = N each head has its own keys (multi-head attention); with K < N, G = N / K consecutive query heads share a
    key head (grouped-query); with K = 1 all of them do (multi-query). The dot product of two random vectors is of
    the order of sqrt(H); dividing by that keeps the softmax from saturating.
    """
    xp = array_namespace(q)
    *batch, heads, new, width = q.shape
    kv_heads, length = k.shape[-3], k.shape[-2]
    # Stacking the queries that share a key head avoids copying the keys.
    grouped = xp.reshape(q / math.sqrt(width), (*batch, kv_heads, heads // kv_heads * new, width))
    few = grouped.shape[-2] <= 32  # as in a decode step: BLAS computes k qᵀ in half the time of q kᵀ
    return xp.reshape((k @ grouped.mT).mT if few else grouped @ k.mT, (*batch, heads, new, length))


def attention_weights(
    scores: Float[Array, "... N T S"], visible: Bool[Array, "... T S"] | None = None
) -> Float[Array, "... N T S"]:
    """The attention weights: a softmax over the scores of the visible tokens, so that each row sums to 1.

    A query that sees no key gets zeros, not NaN. `visible=None` hides nothing.
    """
    xp = array_namespace(scores)
    if visible is not None:
        scores = xp.where(visible[..., None, :, :], scores, -math.inf)
    largest = xp.max(scores, axis=-1, keepdims=True)  # subtracted so that no exp overflows
    shares = xp.exp(scores - xp.maximum(largest, -1e38))  # -inf - -inf would be NaN
    total = xp.sum(shares, axis=-1, keepdims=True)  # at least exp(0) = 1, or 0 if all keys are hidden
    return shares / xp.maximum(total, 1.0)


def combine(weights: Float[Array, "... N T S"], v: Float[Array, "... K S H"]) -> Float[Array, "... N T H"]:
    """The combined information: the sum of the value vectors, each multiplied by its token's weight."""
    xp = array_namespace(weights)
    *batch, heads, new, length = weights.shape
    kv_heads, width = v.shape[-3], v.shape[-1]
    grouped = xp.reshape(weights, (*batch, kv_heads, heads // kv_heads * new, length))
    return xp.reshape(grouped @ v, (*batch, heads, new, width))


def attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... T S"] | None = None,
    *,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """softmax(q kᵀ / sqrt(H)) v: score, normalize, combine. The tapped "scores" are those before masking."""
    weights = tap("weights", attention_weights(tap("scores", relevance_scores(q, k)), visible))
    return tap("mixed", combine(weights, v))
