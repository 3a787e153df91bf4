"""A `Look`: one pass of the model, and everything that the terminal, the JSON and the page show of it.

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6), "Parallel Token Processing and Context Size" (Figures
3-8, 3-9).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from ..apps.fill import MASKS
from ..arrays import Array, Float, array_namespace
from ..devices.device import to_host
from ..families import family_of
from ..lm import LM
from ..tap import Tap, untapped
from ..text.brief import brief
from .lens import likeliest, logit_lens, shares
from .tokens import token_bytes
from .trace import trace

FIRST = ("embedding_layernorm", "residual_after_embedding", "embedding")  # the residual stream before the blocks


class Look(NamedTuple):
    """What one pass over a text shows."""

    lm: LM
    ids: list[int]
    bytes: list[bytes | None]  # of each token; None without a tokenizer
    shapes: dict[str, tuple[int, ...]]  # of every value, by its name, in the order of the pass
    not_finite: dict[str, int]  # for each value with NaN or infinite elements, how many
    values: dict[str, np.ndarray]  # the recorded ones

    def __repr__(self) -> str:
        return brief(self)

    @property
    def logits(self) -> Float[np.ndarray, "T V"]:
        """The score for each token to be the next one, at every position."""
        return self.values["logits"]


def look(lm: LM, ids: Sequence[int], attention: str = "*", tap: Tap = untapped) -> Look:
    """One pass over the tokens, recording what the views need.

    attention : the layers whose attention weights are recorded: an index, or "*" for all
    tap : applied to every value before it is recorded, such as `edit_tap`

    Raises
    ------
    UsageError : there are no ids or too many, or one is outside the vocabulary
    NotEnoughMemoryError : the values do not fit
    """
    shapes: dict[str, tuple[int, ...]] = {}
    not_finite: dict[str, int] = {}

    def note(name: str, value: Array) -> Array:
        value = tap(name, value)
        xp = array_namespace(value)
        shapes[name] = value.shape
        count = int(xp.count_nonzero(~xp.isfinite(value)))
        if count:
            not_finite[name] = count
        return value

    family = family_of(lm.config)
    first = ",".join(name for name in FIRST if name in family.parts)
    added = ",".join(f"layers.*.{name}" for name in (family.stream[1], *family.added))
    values = trace(lm, ids, f"{first},{added},layers.{attention}.attention.weights", note)
    data = token_bytes(lm.tokenizer, ids) if lm.tokenizer is not None else list[bytes | None]([None] * len(ids))
    return Look(lm, list(ids), data, shapes, not_finite, values)


def given(seen: Look) -> tuple[Float[np.ndarray, " T"], np.ndarray]:
    """The probability of each token given the preceding ones, and its rank, starting at 1.

    The first token has no predecessor: NaN and 0. In BERT, which predicts the token at the same position: given all
    tokens, itself included.
    """
    first = 0 if seen.lm.config.bidirectional else 1
    before = seen.logits[: len(seen.ids) - first]
    follows = np.asarray(seen.ids[first:], dtype=np.int64)[:, None]
    ranks = 1 + np.count_nonzero(before > np.take_along_axis(before, follows, axis=-1), axis=-1)
    unknown = np.full(first, np.nan, dtype=np.float32)
    return np.concatenate([unknown, shares(before, follows)[:, 0]]), np.concatenate([[0] * first, ranks]).astype(int)


def log_given(seen: Look) -> Float[np.ndarray, " T"]:
    """The logarithm of each token's probability in `given`: also of one that is too small for a float32."""
    first = int(not seen.lm.config.bidirectional)
    before = seen.logits[: len(seen.ids) - first].astype(np.float64)
    logits = before[np.arange(len(before)), seen.ids[first:]]
    with np.errstate(all="ignore"):  # of what is not finite, the result is NaN
        largest = before.max(axis=-1, initial=-np.inf)
        logs = logits - largest - np.log(np.exp(before - largest[:, None]).sum(axis=-1))
    return np.concatenate([np.full(first, np.nan), logs]).astype(np.float32)


class Lens(NamedTuple):
    """The logit lens at some positions: a row for the embedding, then one for each block."""

    ids: np.ndarray  # [rows, positions, k]
    probabilities: Float[np.ndarray, "rows positions k"]
    next: Float[np.ndarray, "rows positions"]  # probability of the actual next token; NaN at the end of the text

    def __repr__(self) -> str:
        return brief(self)


def lens(seen: Look, positions: Sequence[int], k: int, token: int | None = None) -> Lens:
    """The model's predictions at these positions if it stopped before the first block, after it, and so on.

    token : `next` then has the probability of this token, everywhere
    """
    like = seen.lm.weights.norm
    xp = array_namespace(like)
    after = family_of(seen.lm.config).stream[1]
    blocks = [f"layers.{layer}.{after}" for layer in range(seen.lm.config.num_hidden_layers)]
    chosen = list(positions)
    both = seen.lm.config.bidirectional
    follows = np.asarray(seen.ids if both else [*seen.ids[1:], 0])[chosen, None]
    ends = np.asarray(chosen) == (-1 if both else len(seen.ids) - 1)
    if token is not None:
        follows, ends = np.full_like(follows, token), np.zeros_like(ends)
    ids, probabilities, of_next = [], [], []
    for name in (first_residual(seen), *blocks):
        residual = xp.asarray(seen.values[name][chosen], device=device(like))
        logits = to_host(logit_lens(residual, seen.lm))
        best = likeliest(logits, k)
        *found, follow = np.moveaxis(shares(logits, np.concatenate([best, follows], axis=-1)), -1, 0)
        ids.append(best)
        probabilities.append(np.stack(found, axis=-1))
        of_next.append(np.where(ends, np.float32(np.nan), follow))
    return Lens(np.stack(ids), np.stack(probabilities), np.stack(of_next))


def first_residual(seen: Look) -> str:
    """The name of the residual stream before the first block."""
    return next(name for name in FIRST if name in seen.values)


class Norms(NamedTuple):
    """Euclidean norms of vectors, each [layers, positions]."""

    embedding: Float[np.ndarray, " T"]  # of the residual stream before the first block
    attention: Float[np.ndarray, "L T"]  # of the attention layer's output
    feedforward: Float[np.ndarray, "L T"]
    residual: Float[np.ndarray, "L T"]  # of the residual stream after the block

    def __repr__(self) -> str:
        return brief(self)


def norms(seen: Look) -> Norms:
    """The norm of the residual stream at every position, and of each layer's contribution to it."""

    def lengths(name: str) -> np.ndarray:
        return np.linalg.norm(seen.values[name].astype(np.float64), axis=-1).astype(np.float32)

    def of_layers(leaf: str) -> np.ndarray:
        return np.stack([lengths(f"layers.{i}.{leaf}") for i in range(seen.lm.config.num_hidden_layers)])

    family = family_of(seen.lm.config)
    attention, feedforward, residual = (of_layers(name) for name in (*family.added, family.stream[1]))
    return Norms(lengths(first_residual(seen)), attention, feedforward, residual)


def place_of_answer(lm: LM, ids: Sequence[int]) -> int:
    """The token whose predictions are shown: for a masked language model the first mask, if there is one; or the last.

    BERT's last token is [SEP], in whose place it predicts nothing of interest.
    """
    masks = []
    if lm.config.bidirectional and lm.tokenizer is not None:
        masks = [lm.tokenizer.backend.token_to_id(name) for name in MASKS]
    return next((position for position, token in enumerate(ids) if token in masks), len(ids) - 1)
