"""How well a model predicts a text, and how far its predictions are from those of a reference model.

Perplexity is e to the mean of -log p(token | preceding tokens): the number of equally likely tokens among which the
model would be equally uncertain. It depends on the tokenizer. Bits per byte, the same total surprise divided by the
bytes of the text, does not.

A text longer than the window is processed in overlapping windows. Each token is scored in the first window that
contains it, where it has the most context: with window 512 and stride 256, at least 256 tokens, except at the start of
the text. Only the very first token is not scored, because it has no context.

The effect of rounding the weights is measured by the Kullback-Leibler divergence of each prediction, from the
reference's distribution P to the model's Q: sum P (log P - log Q), in nats; and by how often the two agree on the
likeliest token. In perplexity, errors can cancel.

Source: "Choosing a single token from the probability distribution" (Figure 3-7); for the windows, the page "Perplexity
of fixed-length models" of transformers' documentation; for the statistics of the divergence, the README of
llama.cpp's perplexity tool; Kullback and Leibler 1951, "On information and sufficiency".
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, Bool, Float, array_namespace
from ..devices.device import free_bytes, to_host
from ..devices.finite import not_finite
from ..devices.memory import check_memory
from ..errors import UsageError
from ..lm import LM, lm_head, transform
from ..text.arguments import check_ids, check_writes, whole_number

ROWS = 32  # tokens scored at once; each takes several buffers of V float64 elements


class Window(NamedTuple):
    """A part of the text that goes through the model in one pass."""

    begin: int
    end: int
    scored: int  # the tokens from this one up to `end` are scored here


class Reference(NamedTuple):
    """A model's predictions for a text, in compact form: hidden states, and the head that maps them to logits."""

    hidden: list[Float[Array, "rows D"]]  # of each window
    lm: LM  # its weights without layers
    windows: list[Window]


class Scores(NamedTuple):
    """The scores of each token."""

    losses: Float[np.ndarray, " rows"]  # -log p(token), in nats
    reference_losses: Float[np.ndarray, " rows"] | None = None
    divergences: Float[np.ndarray, " rows"] | None = None  # from the reference, in nats
    same_top: Bool[np.ndarray, " rows"] | None = None  # whether both models rank the same token first


def windows(tokens: int, window: int, stride: int) -> list[Window]:
    """The windows of a text of this many tokens.

    >>> [tuple(part) for part in windows(10, 6, 2)]
    [(0, 6, 1), (2, 8, 6), (4, 10, 8)]
    """
    begins = range(0, max(1, tokens - window + stride), stride)
    ends = [min(begin + window, tokens) for begin in begins]
    return [Window(*part) for part in zip(begins, ends, [1, *ends[:-1]], strict=True)]


def checked_windows(lm: LM, ids: Sequence[int], window: int, stride: int) -> list[Window]:
    """The windows, once arguments and memory are checked; errors as in `evaluate`."""
    check_writes(lm)
    context, ids = lm.config.max_position_embeddings, check_ids(ids, lm.config.vocab_size)
    if len(ids) < 2:
        raise UsageError(
            f"the text is too short: expected at least two tokens, got {len(ids)}: the first one is not predicted"
        )
    window = whole_number("window", window, 2, context, f"2 to {context}, the model's context")
    stride = whole_number("stride", stride, 1, window - 1, f"1 to {window - 1}, less than the window")
    width = min(window, len(ids))
    scores = 3 * 4 * lm.config.num_attention_heads * width * width
    check_memory({"attention scores": scores}, free_bytes(lm.weights.norm))
    check_memory({"predictions": 6 * 8 * ROWS * lm.config.vocab_size})
    return windows(len(ids), window, stride)


def hidden_states(lm: LM, ids: Sequence[int], parts: Iterable[Window]) -> Iterator[Float[Array, "rows D"]]:
    """For each window, the hidden states that predict its scored tokens: those of the tokens before them."""
    like = lm.weights.norm
    xp = array_namespace(like)
    for begin, end, scored in parts:
        part = xp.asarray(list(ids[begin:end]), device=device(like))
        hidden, _ = transform(part, lm)
        yield hidden[scored - 1 - begin : end - 1 - begin, :]


def reference(lm: LM, ids: Sequence[int], window: int = 512, stride: int = 256) -> Iterator[Reference]:
    """This model's predictions, for `evaluate` to compare another model with; yields the result so far per window.

    It stores D elements for each token, and the LM head. So two models need not be in memory at once, and the logits, V
    elements for each token, are never stored for the whole text. Errors as in `evaluate`.
    """
    parts = checked_windows(lm, ids, window, stride)
    check_memory({"the reference's hidden states": 4 * len(ids) * lm.config.hidden_size}, free_bytes(lm.weights.norm))
    xp = array_namespace(lm.weights.norm)
    hidden: list[Array] = []
    head = lm._replace(weights=lm.weights._replace(layers=()))
    for rows in hidden_states(lm, ids, parts):
        hidden.append(xp.asarray(rows, copy=True))  # a view would keep the whole window alive
        yield Reference(hidden, head, parts)


def evaluate(
    lm: LM, ids: Sequence[int], window: int = 512, stride: int = 256, against: Reference | None = None
) -> Iterator[Scores]:
    """The scores of every token except the first, a few at a time; `joined` concatenates, `summary` summarizes them.

    Parameters
    ----------
    window : tokens per window, at most the model's context
    stride : tokens from the start of one window to the start of the next
    against : the reference's predictions for the same ids, in the same windows

    Raises
    ------
    UsageError : the text is too short, or an argument is invalid
    ModelFileError : the logits are not finite
    NotEnoughMemoryError : a window does not fit
    """
    parts = checked_windows(lm, ids, window, stride)
    if against is not None and (not isinstance(against, Reference) or against.windows != parts):
        raise UsageError("against: expected predictions for the same ids and windows, got others")
    for number, (part, hidden) in enumerate(zip(parts, hidden_states(lm, ids, parts), strict=True)):
        for start in range(0, hidden.shape[0], ROWS):
            rows, first = slice(start, min(start + ROWS, hidden.shape[0])), part.scored + start
            targets = np.asarray(ids[part.scored : part.end][rows])
            model = log_probabilities(hidden[rows, :], lm, first)
            losses = -model[np.arange(len(targets)), targets]
            if against is None:
                yield Scores(losses)
                continue
            theirs = log_probabilities(against.hidden[number][rows, :], against.lm, first)
            if theirs.shape != model.shape:
                raise UsageError(
                    f"against: expected the model's vocabulary size of {model.shape[-1]}, got {theirs.shape[-1]}"
                )
            yield Scores(
                losses,
                -theirs[np.arange(len(targets)), targets],
                divergence(theirs, model),
                np.argmax(theirs, axis=-1) == np.argmax(model, axis=-1),
            )


@np.errstate(all="ignore")
def log_probabilities(hidden: Float[Array, "rows D"], lm: LM, first: int) -> Float[np.ndarray, "rows V"]:
    """The log-softmax of the logits, in float64: in float32, rounding would hide a divergence of 1e-7.

    first : the index of the token that the first row predicts, for the error message
    """
    logits = to_host(lm_head(hidden, lm)).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if bad.size:
        raise not_finite(f"the logits for token {first + int(bad[0])}", "NaN or inf")
    logits -= np.max(logits, axis=-1, keepdims=True)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


@np.errstate(all="ignore")
def divergence(
    reference: Float[np.ndarray, "rows V"], model: Float[np.ndarray, "rows V"]
) -> Float[np.ndarray, " rows"]:
    """KL(P || Q) of two predictions given as log-probabilities, in nats: 0 where they are equal, never negative.

    It is not symmetric: what is likely for the reference must be likely for the model, but not the other way round.

    >>> p, q = np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]])
    >>> divergence(np.log(p), np.log(q)).round(4), divergence(np.log(q), np.log(p)).round(4)
    (array([0.1438]), array([0.1308]))
    """
    return np.maximum(np.sum(np.exp(reference) * (reference - model), axis=-1), 0.0)  # rounding gives -1e-17


def joined(pieces: Iterable[Scores]) -> Scores:
    """The scores of all tokens, concatenated."""
    losses, *compared = zip(*pieces, strict=True)
    return Scores(
        np.concatenate(losses), *(None if column[0] is None else np.concatenate(column) for column in compared)
    )


@np.errstate(all="ignore")
def summary(scores: Scores, text_bytes: int | None = None) -> dict[str, Any]:
    """The statistics, by name.

    text_bytes : the length of the scored tokens in bytes; if None, bits per byte is None
    """
    result: dict[str, Any] = {
        "scored_tokens": len(scores.losses),
        "perplexity": perplexity(scores.losses),
        "bits_per_byte": None if not text_bytes else float(np.sum(scores.losses)) / math.log(2) / text_bytes,
    }
    if scores.reference_losses is not None and scores.divergences is not None and scores.same_top is not None:
        result |= {
            "reference_perplexity": perplexity(scores.reference_losses),
            "mean_kl_divergence": float(np.mean(scores.divergences)),
            "kl_divergence_99": float(np.quantile(scores.divergences, 0.99)),
            "max_kl_divergence": float(np.max(scores.divergences)),
            "same_top_share": float(np.mean(scores.same_top)),
        }
    return result


def perplexity(losses: Float[np.ndarray, " rows"]) -> float:
    """e to the power of the mean loss.

    >>> round(perplexity(np.log([4.0, 4.0, 4.0])), 6)
    4.0
    """
    return float(np.exp(np.mean(losses)))  # math.exp would raise an error where the result is beyond float64
