"""The logit lens: what the model would say if it stopped after a block.

Blocks only add to the residual stream, so it stays in the same space from the embedding to the end, and the last two
steps of the pass, final norm and LM head, can be applied at any point. Early blocks often predict the token itself,
late blocks the next one.

Source: "The Transformer Block" (Figure 3-30), "The Components of the Forward Pass" (Figure 3-6); nostalgebraist 2020,
"interpreting GPT: the logit lens".
"""

import numpy as np

from ..arrays import Array, Float, Int
from ..families import family_of
from ..lm import LM, lm_head


@np.errstate(all="ignore")
def logit_lens(residual: Float[Array, "... T D"], lm: LM) -> Float[Array, "... T V"]:
    """The logits of the residual stream at any tapped point: lm_head(norm(residual)).

    For the last block's "residual_after_feedforward" they are the model's own logits.
    """
    return lm_head(family_of(lm.config).final_norm(residual, lm.weights, lm.config), lm)


def likeliest(logits: Float[np.ndarray, "... V"], k: int) -> Int[np.ndarray, "... k"]:
    """The ids of the k likeliest tokens, the likeliest first; ties in order of id, NaN before everything.

    >>> likeliest(np.array([0.1, 0.6, 0.3]), 2)
    array([1, 2])
    """
    # A few maxima are found sooner than a whole row is sorted. In this copy -inf is for those that were taken.
    left, ids = np.maximum(logits, np.finfo(logits.dtype).min), []
    for _ in range(min(k, logits.shape[-1])):
        ids.append(np.argmax(left, axis=-1, keepdims=True))
        np.put_along_axis(left, ids[-1], -np.inf, axis=-1)
    return np.concatenate(ids, axis=-1)


def shares(logits: Float[np.ndarray, "... V"], ids: Int[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
    """The probabilities of these tokens: softmax(logits) at `ids`. A row with a NaN, or infinity, is all NaN.

    >>> shares(np.log(np.array([0.1, 0.6, 0.3])), np.array([1, 2])).round(6)
    array([0.6, 0.3])
    """
    largest = np.max(logits, axis=-1, keepdims=True)
    with np.errstate(all="ignore"):  # inf - inf; an exp that underflows
        total = np.sum(np.exp(logits - largest), axis=-1, keepdims=True)
        return np.exp(np.take_along_axis(logits, ids, axis=-1) - largest) / total
