"""What a pass costs: the arithmetic, and the bytes that it has to fetch.

Counted are additions, subtractions, multiplications, divisions, exponentials, square roots and tanh, each as one
floating-point operation (FLOP); not counted are comparing, choosing, changing the sign and copying, and RoPE's tables,
which are made once for a pass. For T new tokens after P cached ones (S = P + T) of a model of today:

    part            FLOPs                                 read
    embedding       0                                     T rows of the embeddings matrix
    norm            T (4D + 2)                            its weight; two in a block, one after the last
    qkv_proj        2 T D (N + 2K) H                      its weight
    RoPE            6 R T (N + K)
    scores          T N H + 2 T S N H                     P cached keys: P K H numbers of float32
    softmax         T N (4S - 1)
    combine         2 T S N H                             P cached values
    o_proj          2 T N H D                             its weight
    gate_up_proj    2 T D 2F                              its weight
    SwiGLU          4 T F
    down_proj       2 T F D                               its weight
    residual        2 T D
    lm_head         2 D V for each token that is scored   its weight

A bias is one addition for each number that comes out, and read. GPT-2's block has LayerNorm, T (7D + 2); c_fc, GELU,
9 T F, and c_proj in place of gate_up_proj to down_proj; no RoPE; and adds a row of embed_positions to each token, T D.
Scores are computed for all T x S pairs, as `attention` does, also for those that the mask hides.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10); Kaplan et al. 2020, "Scaling laws for neural
language models", section 2.1 (where only the products are counted).
"""

from typing import Any, NamedTuple

from ..arrays import Array, Bool
from ..cache import kv_cache_bytes
from ..config import Config
from ..flash import visible_tiles
from ..shapes import Weights


class Cost(NamedTuple):
    """One part of the pass, in all layers together."""

    part: str
    flops: int
    weight_bytes: int  # read from the weights, each once however many tokens there are
    cache_bytes: int  # read from the KV cache


def costs(config: Config, weights: Weights, new: int, past: int = 0, scored: int | None = None) -> list[Cost]:
    """The cost of a pass over `new` tokens after `past` cached ones, part by part in the order of execution.

    Parameters
    ----------
    weights : their sizes in memory are what is read; the FLOPs follow from the config alone
    scored : how many tokens are given to the LM head; by default all new ones. Generation asks it for the last only
    """
    T, S, L, D, F = new, past + new, config.num_hidden_layers, config.hidden_size, config.intermediate_size
    N, K, H, R = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rotary_dim // 2
    scored = new if scored is None else scored
    gpt2 = weights.norm_bias is not None
    norm = T * ((7 * D + 2) if gpt2 else (4 * D + 2))
    cached = kv_cache_bytes(config, past) // 2  # the keys, or the values, of all layers

    def row_bytes(table: Any) -> int:
        return table.nbytes // table.shape[0] * T

    def size(*arrays: Any) -> int:
        return sum(array.nbytes for array in arrays if array is not None)

    def in_blocks(*names: str) -> int:
        return size(*(getattr(block, name) for block in weights.layers for name in names))

    def linear(name: str, wide_in: int, wide_out: int) -> Cost:
        biased = getattr(weights.layers[0], f"{name}_bias") is not None
        return Cost(name, L * T * wide_out * (2 * wide_in + biased), in_blocks(name, f"{name}_bias"), 0)

    embedding = Cost("embedding", 0, row_bytes(weights.embed_tokens), 0)
    attention = [
        linear("qkv_proj", D, (N + 2 * K) * H),
        Cost("RoPE", L * 6 * R * T * (N + K), 0, 0),
        Cost("scores", L * (T * N * H + 2 * T * S * N * H), 0, cached),
        Cost("softmax", L * T * N * (4 * S - 1), 0, 0),
        Cost("combine", L * 2 * T * S * N * H, 0, cached),
        linear("o_proj", N * H, D),
    ]
    if gpt2:
        positions = Cost("position embedding", T * D, row_bytes(weights.embed_positions), 0)
        first_norm = Cost("ln_1", L * norm, in_blocks("ln_1", "ln_1_bias"), 0)
        feedforward = [
            Cost("ln_2", L * norm, in_blocks("ln_2", "ln_2_bias"), 0),
            linear("c_fc", D, F),
            Cost("GELU", L * 9 * T * F, 0, 0),
            linear("c_proj", F, D),
        ]
        blocks = [positions, first_norm, *(part for part in attention if part.part != "RoPE"), *feedforward]
    else:
        feedforward = [
            Cost("post_attention_layernorm", L * norm, in_blocks("post_attention_layernorm"), 0),
            linear("gate_up_proj", D, 2 * F),
            Cost("SwiGLU", L * 4 * T * F, 0, 0),
            linear("down_proj", F, D),
        ]
        blocks = [Cost("input_layernorm", L * norm, in_blocks("input_layernorm"), 0), *attention, *feedforward]
    return [
        embedding,
        *blocks,
        Cost("residual", L * 2 * T * D, 0, 0),
        Cost("norm", norm, size(weights.norm, weights.norm_bias), 0),
        Cost("lm_head", 2 * scored * D * config.vocab_size, size(weights.lm_head), 0),
    ]


def total(parts: list[Cost]) -> Cost:
    """All of them together."""
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
