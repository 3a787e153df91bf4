"""Heads: the layer on top of the blocks that turns hidden states into an answer.

Each is one linear layer. The LM head scores the next token; the other two score labels, for a text or for each token.

Source: "The Components of the Forward Pass" (Figures 3-4, 3-6).
"""

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace
from .config import Config
from .errors import UsageError
from .linear import linear
from .shapes import Weights, WeightsLike


def lm_head(hidden: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T V"]:
    """The language modeling head: for each position, a score (logit) for every vocabulary token to come next.

    softmax(logits) turns them into probabilities. `config` is for families that scale or cap the logits; unused here.
    """
    if weights.lm_head is None:
        raise UsageError(
            "the model has no LM head: expected one, got a classifier;"
            " npllm.apps.classify classifies with it, from Python"
        )
    return linear(hidden, weights.lm_head, weights.lm_head_bias)


def sequence_classification_head(
    hidden: Float[Array, "... T D"], weights: Weights, ids: Int[Array, "... T"], pad_token_id: int | None
) -> Float[Array, "... labels"]:
    """A score (logit) for each label of the whole text, from its last token: the only one that sees all the others.

    The shorter texts of a batch are padded with `pad_token_id`, so the last token is the last with another id. None
    means no padding. (Padding on the left must also be hidden with `visible`; on the right, the causal mask hides it.)
    """
    xp = array_namespace(ids)
    positions = xp.arange(ids.shape[-1], device=device(ids))
    filled = positions if pad_token_id is None else xp.where(ids != pad_token_id, positions, 0)
    last = xp.max(filled, axis=-1, keepdims=True)  # [..., 1]
    vector = xp.sum(xp.where((positions == last)[..., None], hidden, 0.0), axis=-2)  # hidden[last]
    return linear(vector, weights.score, weights.score_bias)


def token_classification_head(hidden: Float[Array, "... T D"], weights: WeightsLike) -> Float[Array, "... T labels"]:
    """A score (logit) for each label at every token, as in finding names: from what that token sees."""
    return linear(hidden, weights.score, weights.score_bias)
