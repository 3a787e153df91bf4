"""Heads: what stands on top of the stack of blocks and turns its vectors into an answer.

Source: "The Components of the Forward Pass" (Figures 3-4, 3-6).
"""

from .linear import linear
from .shapes import Array, Float, Weights


def lm_head(hidden: Float[Array, "... T D"], weights: Weights) -> Float[Array, "... T V"]:
    """The language modeling head: a score (logit) for each token of the vocabulary to be the next one.

    Not yet probabilities: those are softmax(logits). A tied model scores with its embeddings matrix: `weights.lm_head`
    and `weights.embed_tokens` are then the same array.
    """
    return linear(hidden, weights.lm_head)
