"""The glossary: the letters in every shape, and the names of the chapter's weights.

    T  query tokens: the positions computed in this pass          N  query heads
    S  key tokens: cached and new                                 K  key/value heads
    C  capacity of the KV cache, in tokens                        G  N / K: query heads that share a key/value head
    D  model width (config.json: hidden_size)                     H  head width (head_dim)
    F  feedforward width (intermediate_size); in a weight         R  rotated pairs of a head: H / 2, or fewer
       [F D] any output width                                     L  layers (Transformer blocks)
    V  vocabulary size                                            ...  leading axes: none, or [B] for a batch
    NH  N·H: the heads concatenated                               W  the window of sliding-window attention, in tokens
    E  experts of a block                                         A  active experts of a token

Logits are the chapter's scores for the next token, before the softmax turns them into probabilities. The residual
stream is a token's vector on its path through the blocks; each layer adds to it.
"""

from typing import Any, NamedTuple, TypeAlias

from .arrays import Array, Float, Weight
from .text.brief import brief


class BlockWeights(NamedTuple):
    """The weights of one Transformer block, named as in a Phi-3 checkpoint.

    A weight [out, in] maps a vector x to x @ W.T. `qkv_proj` stacks the query, key and value projections,
    `gate_up_proj` the gate and up projections. Checkpoints that store them separately (Llama) are fused when loaded.
    """

    input_layernorm: Float[Array, " D"]
    qkv_proj: Weight  # [(N + 2K)·H, D]
    o_proj: Weight  # [D, N·H]
    post_attention_layernorm: Float[Array, " D"]  # despite its name, before the feedforward network
    gate_up_proj: Weight  # [2F, D]
    down_proj: Weight  # [D, F]
    qkv_proj_bias: Float[Array, " (N+2K)*H"] | None = None  # Qwen2 has this bias, some Llamas all four
    o_proj_bias: Float[Array, " D"] | None = None
    gate_up_proj_bias: Float[Array, " 2F"] | None = None
    down_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


class GPT2BlockWeights(NamedTuple):
    """The weights of GPT-2's block, named as there. The original Transformer's block (Figure 3-29) has the same ones.

    Only the attention layer, shared with the modern block, keeps the names above: GPT-2's own are c_attn and c_proj.
    """

    ln_1: Float[Array, " D"]
    ln_1_bias: Float[Array, " D"]
    qkv_proj: Weight  # [3·N·H, D]
    o_proj: Weight  # [D, N·H]
    ln_2: Float[Array, " D"]
    ln_2_bias: Float[Array, " D"]
    c_fc: Weight  # [F, D]
    c_proj: Weight  # [D, F]
    qkv_proj_bias: Float[Array, " 3*N*H"] | None = None
    o_proj_bias: Float[Array, " D"] | None = None
    c_fc_bias: Float[Array, " F"] | None = None
    c_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


# The weights of a block: one of these tuples, or that of a family whose block has the same parts under the same names.
BlockLike: TypeAlias = Any


class Weights(NamedTuple):
    """The weights of the whole model. With tied embeddings `lm_head` is the same object as `embed_tokens`."""

    embed_tokens: Weight  # [V, D]
    layers: tuple[BlockLike, ...]  # one for each of the L blocks
    norm: Float[Array, " D"]
    lm_head: Weight | None  # [V, D]; None in a classifier, which has `score`
    score: Weight | None = None  # [labels, D]
    score_bias: Float[Array, " labels"] | None = None
    embed_positions: Weight | None = None  # absolute positions, one row each; GPT-2's wpe
    norm_bias: Float[Array, " D"] | None = None  # with LayerNorm
    lm_head_bias: Float[Array, " V"] | None = None

    def __repr__(self) -> str:
        return brief(self)


WeightsLike: TypeAlias = Any  # `Weights`, or the tuple of a family that has other weights outside its blocks
