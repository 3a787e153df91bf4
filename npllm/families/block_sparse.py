"""Phi-3-small's attention: in all layers but every n-th a token sees the blocks near it, and some of the earlier ones.

Which of the earlier blocks depends on the head, so that the heads together see all of them. `masks.block_local` is the
pattern of one head. Scores are q · k / H, not / sqrt(H), as in µP: trained queries and keys are correlated.

Source: Abdin et al. 2024, "Phi-3 technical report", section 2; Child et al. 2019, "Generating long sequences with
sparse transformers"; Yang et al. 2022, "Tensor programs V" (µP).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from array_api_compat import device

from .. import attention as chapter
from ..arrays import Array, Bool, Float, array_namespace
from ..attention import attention, merge_heads
from ..cache import Cache, append
from ..config import Config
from ..linear import linear
from ..masks import block_local
from ..rope import apply_rope
from ..shapes import BlockLike
from ..tap import Tap, untapped
from .granite import scaled_attention


@dataclass(frozen=True, kw_only=True)
class BlockSparseConfig(Config):
    """A configuration with block-sparse layers."""

    dense_attention_every_n_layers: int = 2  # 0: all layers are sparse
    blocksparse_block_size: int = 64
    blocksparse_num_local_blocks: int = 16
    blocksparse_vert_stride: int = 8
    blocksparse_homo_head_pattern: bool = False  # all heads see the same blocks
    mup_use_scaling: bool = True
    mup_attn_multiplier: float = 1.0

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has block-sparse attention."""
        every = self.dense_attention_every_n_layers
        return every == 0 or (layer + 1) % every != 0

    @property
    def score_scale(self) -> float:
        """What multiplies q · k in place of 1 / sqrt(H): 1 / H, times a number."""
        width = self.head_dim
        return self.mup_attn_multiplier / width if self.mup_use_scaling else 1.0 / math.sqrt(width)


def sparse_mask(past: int, new: int, config: BlockSparseConfig, like: Array) -> Bool[Array, "N T S"]:
    """What each head's `new` queries, after `past` cached tokens, see in a sparse layer.

    Head n sees the blocks near a query, and those with (block + n + 1) % stride = 0. With fewer heads than the stride
    their patterns lie further apart.
    """
    xp, stride, count = array_namespace(like), config.blocksparse_vert_stride, config.num_attention_heads
    queries = xp.arange(past, past + new, device=device(like))
    keys = xp.arange(past + new, device=device(like))
    step = 0 if config.blocksparse_homo_head_pattern else max(1, stride // count)
    sizes = config.blocksparse_block_size, config.blocksparse_num_local_blocks, stride
    offsets = [head * step % stride for head in range(count)]
    masks = {offset: block_local(queries, keys, *sizes, offset) for offset in {*offsets}}
    return xp.stack([masks[offset] for offset in offsets])


def sparse_attention(
    q: Float[Array, "... N T H"],
    k: Float[Array, "... K S H"],
    v: Float[Array, "... K S H"],
    visible: Bool[Array, "... N T S"],
    *,
    tap: Tap = untapped,
) -> Float[Array, "... N T H"]:
    """The chapter's attention with a mask for each head. All scores are computed, including those that it hides."""
    xp = array_namespace(q)
    scores = tap("scores", chapter.relevance_scores(q, k))
    weights = tap("weights", chapter.attention_weights(xp.where(visible, scores, -math.inf)))
    return tap("mixed", chapter.combine(weights, v))


def queries_keys_values(
    x: Float[Array, "... T D"], weights: BlockLike, config: BlockSparseConfig
) -> tuple[Float[Array, "... N T H"], Float[Array, "... K T H"], Float[Array, "... K T H"]]:
    """Queries, keys and values: each group of query heads is stored together with its key head and value head."""
    xp, kv_heads = array_namespace(x), config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    qkv = linear(x, weights.qkv_proj, weights.qkv_proj_bias)
    *batch, new, _ = qkv.shape
    qkv = xp.moveaxis(xp.reshape(qkv, (*batch, new, kv_heads, group + 2, config.head_dim)), -4, -2)  # [... K G+2 T H]
    q = xp.reshape(qkv[..., :group, :, :], (*batch, kv_heads * group, new, config.head_dim))
    k = qkv[..., group, :, :]
    v = qkv[..., group + 1, :, :]
    return q, k, v


def self_attention(
    x: Float[Array, "... T D"],
    weights: BlockLike,
    config: BlockSparseConfig,
    cos: Float[Array, "... T R"],
    sin: Float[Array, "... T R"],
    visible: Bool[Array, "... T S"] | Bool[Array, "... N T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The attention layer. In a sparse layer `visible` has an axis of heads, and `attention` is not used."""
    q, k, v = queries_keys_values(x, weights, config)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    q, k = tap("q_rotated", apply_rope(q, cos, sin)), tap("k_rotated", apply_rope(k, cos, sin))
    if cache is not None:
        k, v = append(cache, layer, k, v)
    attention = sparse_attention if config.is_sparse(layer) else attention
    mixed = scaled_attention(q, k, v, visible, scale=config.score_scale, attention=attention, tap=tap)
    return tap("output", linear(merge_heads(mixed), weights.o_proj, weights.o_proj_bias))
