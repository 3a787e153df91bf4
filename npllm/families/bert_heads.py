"""BERT's configuration and weights, and the heads that read them: one fills gaps, one scores labels.

Source: Devlin et al. 2018, "BERT: Pre-training of deep bidirectional transformers for language understanding", sections
3 and 4; https://github.com/google-research/bert
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..arrays import Array, Float, Int, Weight, array_namespace
from ..config import Config
from ..errors import UsageError
from ..linear import linear
from ..norm import layer_norm
from ..shapes import GPT2BlockWeights
from ..text.brief import brief
from .activations import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """BERT's configuration: the common one, an activation function, and the number of token types."""

    hidden_act: str = "gelu"
    type_vocab_size: int = 2


class BertWeights(NamedTuple):
    """The weights of the whole model, of which each head has its own."""

    embed_tokens: Weight  # [V, D]
    embed_positions: Weight  # a row for each position
    embed_token_types: Weight  # a row for the first text of a pair, and one for the second
    norm: Float[Array, " D"]  # of the embeddings: tapped as "embedding_layernorm". Every family has a `norm`
    norm_bias: Float[Array, " D"]
    layers: tuple[GPT2BlockWeights, ...]  # with BERT's numbers: ln_1 after attention, ln_2 after the network
    head_dense: Weight | None = None  # [D, D]
    head_dense_bias: Float[Array, " D"] | None = None
    head_norm: Float[Array, " D"] | None = None
    head_norm_bias: Float[Array, " D"] | None = None
    lm_head: Weight | None = None  # [V, D]
    lm_head_bias: Float[Array, " V"] | None = None
    pooler: Weight | None = None  # [D, D]
    pooler_bias: Float[Array, " D"] | None = None
    score: Weight | None = None  # [labels, D]
    score_bias: Float[Array, " labels"] | None = None

    def __repr__(self) -> str:
        return brief(self)


def masked_lm_head(
    hidden: Float[Array, "... T D"], weights: BertWeights, config: BertConfig
) -> Float[Array, "... T V"]:
    """For each position, a score (logit) for every vocabulary token to stand there: of use where the text has [MASK].

    Unlike a decoder's, the logits at a position are for that position, not for the next.
    """
    if weights.lm_head is None:
        raise UsageError(
            "the model has no LM head: expected one, got a classifier;"
            " npllm.apps.classify classifies with it, from Python"
        )
    x = ACTIVATIONS[config.hidden_act](linear(hidden, weights.head_dense, weights.head_dense_bias))
    x = layer_norm(x, weights.head_norm, weights.head_norm_bias, config.layer_norm_epsilon)
    return linear(x, weights.lm_head, weights.lm_head_bias)


def pooled_head(
    hidden: Float[Array, "... T D"], weights: BertWeights, ids: Int[Array, "... T"], pad_token_id: int | None
) -> Float[Array, "... labels"]:
    """A score for each label of the whole text, from its first token, [CLS]: like every token it sees all others."""
    xp = array_namespace(hidden)
    pooled = xp.tanh(linear(hidden[..., 0, :], weights.pooler, weights.pooler_bias))
    return linear(pooled, weights.score, weights.score_bias)


def masked_part(keys: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """config.json without the pooler and the head that says whether one text follows the other, and what is left."""
    if "BertForPreTraining" not in (keys.get("architectures") or ()):
        return keys, ""
    return {**keys, "architectures": ["BertForMaskedLM"]}, "the masked LM"
