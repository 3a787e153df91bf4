"""What a pass costs: the operations it performs and the bytes it reads.

Additions, subtractions, multiplications, divisions, exponentials, square roots and tanh count as one floating-point
operation (FLOP) each. Comparisons, selections, sign changes and copies do not count, nor do RoPE's tables, which are
built once per pass. For T new tokens after P cached ones (S = P + T), in the chapter's block:

    part            FLOPs                                 read
    embedding       0                                     T rows of the embedding matrix
    norm            T (4D + 4)                            its weight; two in a block, one after the last
    qkv_proj        2 T D (N + 2K) H                      its weight
    RoPE            6 R T (N + K)
    scores          T N H + 2 T S N H                     P cached keys: P K H float32 elements
    softmax         T N (4S - 1)
    combine         2 T S N H                             P cached values
    o_proj          2 T N H D                             its weight
    gate_up_proj    2 T D 2F                              its weight
    SwiGLU          4 T F
    down_proj       2 T F D                               its weight
    residual        2 T D
    lm_head         2 D V for each scored token           its weight

A bias costs one addition per output element, and is read. Each family lists the parts of its own block (`Family.work`):
GPT-2's has LayerNorm, T (7D + 4), and GELU, 9 T F, but no RoPE. Its positions cost T D. Where each token passes
through a few of a block's experts, at most those that T tokens can choose are read. Some families scale the
embeddings, or scale or cap the logits (`Family.outside_flops`). Scores are computed for all T x S pairs, as `attention`
does, including those that the mask hides.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10); Kaplan et al. 2020, "Scaling laws for neural
language models", section 2.1 (which counts only the matrix products).
"""

from typing import Any, NamedTuple

from ..arrays import Array, Bool
from ..cache import kv_cache_bytes
from ..config import Config
from ..families import family_of
from ..families.family import Work
from ..families.work import read_by
from ..flash import visible_tiles
from ..shapes import Weights, WeightsLike


class Cost(NamedTuple):
    """One part of the pass, summed over all layers."""

    part: str
    flops: int
    weight_bytes: int  # each weight is read once, regardless of the number of tokens
    cache_bytes: int  # read from the KV cache


def costs(config: Config, weights: WeightsLike, new: int, past: int = 0, scored: int | None = None) -> list[Cost]:
    """The cost of a pass over `new` tokens after `past` cached ones, part by part, in order of execution.

    Parameters
    ----------
    weights : give the bytes read; the FLOPs follow from the config and the shapes
    scored : the number of tokens passed to the LM head; by default all new ones. Generation scores only the last
    """
    family, T, S = family_of(config), new, past + new
    scored = T if scored is None else scored
    cached = kv_cache_bytes(config, past) // 2  # the keys (or the values) of all layers

    def row_bytes(table: Any) -> int:
        return table.nbytes // table.shape[0] * T

    def size(*arrays: Any) -> int:
        return sum(array.nbytes for array in arrays if array is not None)

    def of(one: Work) -> Cost:
        read = size(*(getattr(weights, name, None) for name in one.weights))
        return Cost(one.part, one.flops, read + sum(row_bytes(getattr(weights, name)) for name in one.rows), 0)

    before, after = (family.outside_work or outside_work)(config, weights, T, scored)
    parts = [of(one) for one in before]
    for same in zip(
        *(family.work(config, layer, block, T, S) for layer, block in enumerate(weights.layers)), strict=True
    ):
        read = sum(size(*read_by(one, block)) for one, block in zip(same, weights.layers, strict=True))
        flops = sum(one.flops for one in same)
        parts.append(Cost(same[0].part, flops, read, cached if same[0].cached else 0))
    return [*parts, *(of(one) for one in after)]


def outside_work(config: Config, weights: Weights, T: int, scored: int) -> tuple[list[Work], list[Work]]:
    """The cost before the blocks and after them, in most families."""
    family, biased = family_of(config), weights.lm_head_bias is not None
    of_embedding, of_logits = family.outside_flops(config)
    before = [Work("embedding", T * of_embedding, rows=["embed_tokens"])]
    if weights.embed_positions is not None:
        before.append(Work("position embedding", T * config.hidden_size, rows=["embed_positions"]))
    head = scored * (config.vocab_size * (2 * config.hidden_size + biased) + of_logits)
    return before, [
        Work("norm", family.norm_flops(config, T), ["norm", "norm_bias"]),
        Work("lm_head", head, ["lm_head", "lm_head_bias"]),
    ]


def total(parts: list[Cost]) -> Cost:
    """The sum of all parts."""
    _, flops, weight_bytes, cache_bytes = zip(*parts, strict=True)
    return Cost("total", sum(flops), sum(weight_bytes), sum(cache_bytes))


def slow_memory_bytes(
    config: Config, new: int, length: int, tile: tuple[int, int] | None, visible: Bool[Array, "... T S"] | None = None
) -> int:
    """What one layer's attention reads from slow memory and writes to it, in float32; the mask is not counted.

    tile : None for naive attention, which writes and reads both scores and weights. Tile by tile, queries and result
        pass once, and keys and values with each tile of queries that sees any of them.
    """
    queries_and_result = 2 * config.num_attention_heads * new * config.head_dim
    key_and_value = 2 * config.num_key_value_heads * config.head_dim
    if tile is None:
        return 4 * (queries_and_result + key_and_value * length + 4 * config.num_attention_heads * new * length)
    passed = sum(part.stop - part.start for _, keys in visible_tiles(new, length, visible, tile) for part in keys)
    return 4 * (queries_and_result + key_and_value * passed)
