"""Heads: what stands on top of the stack of blocks and turns its vectors into an answer.

Each is one linear layer: the LM head scores the next token, the other two score labels, of a text or of each token.

Source: "The Components of the Forward Pass" (Figures 3-4, 3-6).
"""

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace
from .config import Config
from .errors import UsageError
from .linear import linear
from .shapes import Weights


def lm_head(hidden: Float[Array, "... T D"], weights: Weights, config: Config) -> Float[Array, "... T V"]:
    """The language modeling head: a score (logit) for each token of the vocabulary to be the next one.

    Not yet probabilities: those are softmax(logits). A tied model scores with its embeddings matrix: `weights.lm_head`
    and `weights.embed_tokens` are then the same array. `config` is for the heads of some families, which scale or cap
    the logits; this one does not need it.
    """
    if weights.lm_head is None:
        raise UsageError("the model has no LM head: expected one, got a model that classifies; see npllm.apps.classify")
    return linear(hidden, weights.lm_head)


def sequence_classification_head(
    hidden: Float[Array, "... T D"], weights: Weights, ids: Int[Array, "... T"], pad_token_id: int | None
) -> Float[Array, "... labels"]:
    """A score (logit) for each label of the whole text, from its last token: only that one has seen all the others.

    The shorter texts of a batch are filled up with `pad_token_id`, so it is the last token with another id. None: there
    is no padding. (Padding in front must also be hidden from the tokens by `visible`; behind, the causal mask does it.)
    """
    xp = array_namespace(ids)
    places = xp.arange(ids.shape[-1], device=device(ids))
    filled = places if pad_token_id is None else xp.where(ids != pad_token_id, places, 0)
    last = xp.max(filled, axis=-1, keepdims=True)  # [..., 1]
    vector = xp.sum(xp.where((places == last)[..., None], hidden, 0.0), axis=-2)  # hidden[last]
    return linear(vector, weights.score, weights.score_bias)


def token_classification_head(hidden: Float[Array, "... T D"], weights: Weights) -> Float[Array, "... T labels"]:
    """A score (logit) for each label at every token, as in finding names; each token has seen only those before it."""
    return linear(hidden, weights.score, weights.score_bias)
