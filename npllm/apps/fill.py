"""Filling gaps: the tokens that a masked language model puts in the place of [MASK].

The results are those of transformers' pipeline "fill-mask".

Source: "The Transformer Block" contrasts BERT, which sees both sides of a token, with models that generate; Devlin et
al. 2018, "BERT: Pre-training of deep bidirectional transformers for language understanding".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import array_namespace
from ..devices.device import to_host
from ..devices.finite import check_finite
from ..errors import ModelFileError, UsageError
from ..lm import LM, lm_head
from ..sampling import softmax
from ..text.arguments import check_model, whole_number
from ..tokenizer import Tokenizer
from .encoder import encode, hidden_states

MASKED = "a masked language model, such as google-bert/bert-base-uncased"
MASKS = ("[MASK]", "<mask>")


class Gap(NamedTuple):
    """A mask token in the text, and what may stand there."""

    position: int
    answers: list[dict[str, Any]]


def fill(lm: LM, text: str | Sequence[int], top_k: int = 5, *, pair: str | None = None) -> list[Any]:
    """The likeliest tokens for the mask in a text (or in token ids), best first; for several masks, a list for each.

    [{"score": 0.41, "token": 3007, "token_str": "capital", "sequence": "paris is the capital of france"}, ...]

    Each mask is filled on its own, while the others stay masked.

    Parameters
    ----------
    top_k : how many tokens
    pair : a second text, which follows the first as the tokenizer joins pairs. It may have masks, too

    Raises
    ------
    UsageError : the model is no masked language model, or the text has no mask or is too long
    ModelFileError : the model has no tokenizer, or one without a mask token; the logits are not finite
    NotEnoughMemoryError : the attention scores do not fit
    """
    _, found = gaps(lm, text, top_k, pair=pair)
    return found[0].answers if len(found) == 1 else [gap.answers for gap in found]


@np.errstate(all="ignore")
def gaps(lm: LM, text: str | Sequence[int], top_k: int = 5, *, pair: str | None = None) -> tuple[list[int], list[Gap]]:
    """The ids of the text, and its gaps. Parameters and errors as in `fill`."""
    check_masked(lm)
    top_k = whole_number("top_k", top_k, 1, lm.config.vocab_size)
    if lm.tokenizer is None:
        raise ModelFileError("the model has no tokenizer.json: expected one with a mask token")
    name, mask = mask_token(lm.tokenizer)
    ids, token_types = encode(lm, text, pair)
    places = [position for position, token in enumerate(ids) if token == mask]
    if not places:
        near = any(other in f"{text} {pair}".lower() for other in ("[mask]", "<mask>"))
        written = f", written {name}" if near else ""
        raise UsageError(f"the text has no {name}: expected one where a token is to be filled in{written}")
    _, hidden = hidden_states(lm, ids, token_types)
    xp = array_namespace(hidden)
    logits = to_host(lm_head(xp.take(hidden, xp.asarray(places, device=device(hidden)), axis=0), lm))
    check_finite(logits, "the logits")
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    only_mask, pad = len(places) == 1, lm.config.pad_token_id
    found = []
    for place, tokens, scores in zip(places, best.tolist(), probabilities, strict=True):
        answers = []
        for token in tokens:
            filled = [token if position == place else other for position, other in enumerate(ids)]
            sequence = lm.tokenizer.decode([other for other in filled if other != pad], skip_special_tokens=only_mask)
            answer = {"score": float(scores[token]), "token": token, "token_str": lm.tokenizer.decode([token])}
            answers.append(answer | {"sequence": sequence})
        found.append(Gap(place, answers))
    return ids, found


def check_masked(lm: LM) -> None:
    """Raise UsageError for anything but a masked language model."""
    check_model(lm)
    if lm.config.bidirectional and lm.weights.lm_head is not None:
        return
    got = ", ".join(lm.config.architectures) or lm.config.family
    runs = "npllm.apps.classify" if lm.weights.lm_head is None else "npllm generate"
    raise UsageError(f"model: expected {MASKED}, got {got}, which {runs} runs")


def mask_token(tokenizer: Tokenizer) -> tuple[str, int]:
    """The mask token and its id."""
    for name in MASKS:
        token = tokenizer.backend.token_to_id(name)
        if token is not None:
            return name, token
    raise ModelFileError(f"the tokenizer has no mask token: expected {' or '.join(MASKS)} in tokenizer.json")
