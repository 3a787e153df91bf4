"""What each head looks at, in numbers: the first token, the one before, the same token, or what followed it earlier.

A score is the mean share of attention that goes to such tokens, from 0 to 1. Three are measured on the given text; the
fourth, induction, needs a text with repetitions, so it is measured on one of random tokens, repeated once.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits" (previous-token and induction heads);
Olsson et al. 2022, "In-context learning and induction heads" (the repeated random text); Wang et al. 2022,
"Interpretability in the wild" (duplicate token heads); Xiao et al. 2023, "Efficient streaming language models with
attention sinks".
"""

from typing import NamedTuple

import numpy as np

from ..arrays import Float
from ..errors import UsageError
from ..lm import LM
from ..tap import Tap, untapped
from ..text.brief import brief
from .look import Look
from .trace import trace

RANDOM_TOKENS, SEED = 25, 0  # the random text, which is repeated once


class HeadScores(NamedTuple):
    """For each head of each layer, the mean share of its attention that goes to such tokens; NaN if a text has none."""

    first_token: Float[np.ndarray, "L N"]
    previous_token: Float[np.ndarray, "L N"]
    same_token: Float[np.ndarray, "L N"]
    induction: Float[np.ndarray, "L N"]

    def __repr__(self) -> str:
        return brief(self)


class Kind(NamedTuple):
    """A kind of head."""

    label: str
    definition: str
    threshold: float  # a head with this score or more has the label


# In the order in which labels are given: a head that has nothing to find in a text looks at the first token, so the
# sink comes last.
KINDS = {
    "induction": Kind(
        "induction",
        "In a random text that is repeated once: the share of attention that goes from a repeated token to the one that"
        " followed it the first time.",
        0.4,
    ),
    "previous_token": Kind(
        "previous token",
        "The share of attention that goes to the token before. The second token is not counted: the one before it is"
        " the first.",
        0.4,
    ),
    "same_token": Kind(
        "same token",
        "The share of attention that goes to the token itself and to earlier ones with the same id. The first token is"
        " not counted: it sees nothing else.",
        0.4,
    ),
    "first_token": Kind(
        "first token",
        "The share of attention that later tokens give to the first one, which serves as a sink: many heads look there"
        " when they have nothing to find.",
        0.5,
    ),
}


def head_scores(lm: LM, seen: Look, induction: Float[np.ndarray, "L N"] | None = None) -> HeadScores:
    """The scores of all heads on the text of a `look` with the attention of all layers.

    induction : from `induction_scores`, which do not depend on the text; by default they are computed
    """
    layers = range(lm.config.num_hidden_layers)
    if any(f"layers.{layer}.attention.weights" not in seen.values for layer in layers):
        raise UsageError("head_scores: expected a look with the attention weights of all layers, got one of some")
    ids = np.asarray(seen.ids)
    same = np.tril(ids[:, None] == ids)
    found = [of_text(seen.values[f"layers.{layer}.attention.weights"], same) for layer in layers]
    first, previous, same_token = np.moveaxis(np.asarray(found, dtype=np.float32), 1, 0)
    return HeadScores(first, previous, same_token, induction_scores(lm) if induction is None else induction)


def of_text(weights: Float[np.ndarray, "N T T"], same: np.ndarray) -> np.ndarray:
    """[3, N]: the scores of one layer for the first, the previous and the same token."""
    later = weights[:, 1:, :]
    first = mean(later[:, :, 0])
    previous = mean(np.diagonal(weights, offset=-1, axis1=1, axis2=2)[:, 1:])
    return np.stack([first, previous, mean((later * same[1:]).sum(axis=-1))])


def mean(shares: Float[np.ndarray, "N T"]) -> Float[np.ndarray, " N"]:
    """The mean over the tokens; NaN if there are none."""
    return shares.mean(axis=-1) if shares.shape[-1] else np.full(len(shares), np.nan, dtype=np.float32)


def induction_scores(lm: LM, tokens: int = RANDOM_TOKENS, seed: int = SEED, tap: Tap = untapped) -> np.ndarray:
    """[L, N]: the induction score of each head, on random tokens A B C ... A B C ...: from the second A to the first B.

    No token is drawn twice. The text begins as the tokenizer begins every text, such as with <s>. In a shorter context,
    or with a smaller vocabulary, it has fewer tokens; a window that is shorter than the text hides what is looked for.
    NaN for a model that sees later tokens, too: BERT.

    tap : as in `trace`, such as `edit_tap`
    """
    start = [] if lm.tokenizer is None else list(lm.tokenizer.encode(""))
    ordinary = ordinary_tokens(lm)
    tokens = min(tokens, (lm.config.max_position_embeddings - len(start)) // 2, len(ordinary))
    if tokens < 2 or lm.config.bidirectional:
        return np.full((lm.config.num_hidden_layers, lm.config.num_attention_heads), np.nan, dtype=np.float32)
    text = np.random.default_rng(seed).choice(ordinary, tokens, replace=False).tolist()
    seen = trace(lm, [*start, *text, *text], "layers.*.attention.weights", tap)
    again = np.arange(len(start) + tokens, len(start) + 2 * tokens)
    found = [seen[f"layers.{i}.attention.weights"] for i in range(lm.config.num_hidden_layers)]
    return np.stack([weights[:, again, again - tokens + 1].mean(axis=-1) for weights in found])


def ordinary_tokens(lm: LM) -> np.ndarray:
    """The ids of the vocabulary that are pieces of text: not special, not unused."""
    count = lm.config.vocab_size
    if lm.tokenizer is None:
        return np.arange(count)
    special = lm.tokenizer.backend.get_added_tokens_decoder()
    known = lm.tokenizer.backend.get_vocab_size(with_added_tokens=True)
    return np.array([i for i in range(min(count, known)) if i not in special])


def labels(scores: HeadScores) -> list[list[str]]:
    """For each layer and head the label of the first of KINDS whose threshold it reaches, or ""."""
    layers, heads = scores.first_token.shape
    found = np.full((layers, heads), "", dtype=object)
    for name, kind in reversed(KINDS.items()):
        found[np.nan_to_num(getattr(scores, name)) >= kind.threshold] = kind.label
    return found.tolist()


def ranked(scores: HeadScores, kind: str, k: int = 10) -> list[tuple[int, int, float]]:
    """The k heads with the highest score of a kind: (layer, head, score), the highest first; NaN is left out."""
    if kind not in KINDS:
        raise UsageError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    of_kind = getattr(scores, kind)
    order = [int(i) for i in np.argsort(-of_kind, axis=None, kind="stable") if not np.isnan(of_kind.flat[i])]
    heads = of_kind.shape[1]
    return [(i // heads, i % heads, float(of_kind.flat[i])) for i in order[:k]]


def without_first_token(weights: Float[np.ndarray, "... T S"]) -> Float[np.ndarray, "... T S"]:
    """The weights as if the first token were hidden: its column is 0, and every other row again sums to 1.

    A row with nothing but the first token, such as its own, becomes zeros.

    >>> without_first_token(np.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.6, 0.1, 0.3]])).round(2)
    array([[0.  , 0.  , 0.  ],
           [0.  , 1.  , 0.  ],
           [0.  , 0.25, 0.75]])
    """
    others = weights.copy()
    others[..., 0] = 0
    total = others.sum(axis=-1, keepdims=True)
    return np.divide(others, total, out=np.zeros_like(others), where=total > 0)
