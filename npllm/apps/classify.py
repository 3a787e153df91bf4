"""The labels that a classification model gives a text, or each of its tokens.

The results are those of transformers' pipelines "text-classification" (with top_k=None) and "token-classification". The
latter also drops the label "O" and the tokens that the tokenizer adds, and gives each token's offset in the text.

Source: "The Components of the Forward Pass": "sequence classification heads and token classification heads".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices.device import to_host
from ..devices.finite import check_finite
from ..errors import UsageError
from ..families import family_of
from ..heads import token_classification_head
from ..lm import LM
from ..sampling import softmax
from ..text.arguments import check_model
from .encoder import encode, hidden_states


@np.errstate(all="ignore")
def classify(lm: LM, prompt: str | Sequence[int], *, pair: str | None = None) -> list[dict[str, Any]]:
    """The score of each label for the text (or token ids), best first: [{"label": "POSITIVE", "score": 0.98}, ...].

    pair : a second text, which follows the first as the tokenizer joins pairs

    The scores are probabilities that sum to 1. For multi-label models and models with a single label, each score is an
    independent probability. For a regression they are the raw outputs.

    Raises
    ------
    UsageError : the model does not classify texts, or the text is empty or too long
    ModelFileError : the logits are not finite
    NotEnoughMemoryError : the attention scores do not fit
    """
    check_head(lm, "ForSequenceClassification", "a text")
    ids, hidden = hidden_states(lm, *encode(lm, prompt, pair))
    logits = to_host(family_of(lm.config).sequence_head(hidden, lm.weights, ids, lm.config.pad_token_id))
    check_finite(logits, "the logits of the labels")
    scores = softmax(logits)
    if lm.config.problem_type == "multi_label_classification" or len(scores) == 1:
        scores = 1 / (1 + np.exp(np.minimum(-logits, 88)))  # e⁸⁹ overflows float32
    if lm.config.problem_type == "regression":
        scores = logits
    order = np.argsort(-scores, kind="stable")
    return [{"label": lm.config.id2label[i], "score": float(scores[i])} for i in order]


@np.errstate(all="ignore")
def classify_tokens(lm: LM, prompt: str | Sequence[int]) -> list[dict[str, Any]]:
    """The best label of each token: [{"index": 0, "id": 504, "word": "ĠParis", "entity": "B-LOC", "score": 0.98}, ...].

    "word" is None if the model has no tokenizer. Errors as in `classify`.
    """
    check_head(lm, "ForTokenClassification", "each token")
    prompt_ids, token_types = encode(lm, prompt)
    _, hidden = hidden_states(lm, prompt_ids, token_types)
    logits = to_host(token_classification_head(hidden, lm.weights))
    check_finite(logits, "the logits of the labels")
    scores = softmax(logits)
    words = [None] * len(prompt_ids) if lm.tokenizer is None else lm.tokenizer.pieces(prompt_ids)
    return [
        {"index": i, "id": token, "word": word, "entity": lm.config.id2label[best], "score": float(scores[i, best])}
        for i, (token, word, best) in enumerate(zip(prompt_ids, words, np.argmax(scores, axis=-1), strict=True))
    ]


def check_head(lm: LM, ending: str, what: str) -> None:
    """Raise UsageError for a model trained for another task."""
    check_model(lm)
    if not any(name.endswith(ending) for name in lm.config.architectures):
        got = ", ".join(lm.config.architectures) or "a language model"
        raise UsageError(f"model: expected one that classifies {what} (...{ending}), got {got}")
