"""One pass of the model, and what there is to see in it: the terminal, the JSON and the page all show a `Look`.

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6), "Parallel Token Processing and Context Size" (Figures
3-8, 3-9).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, array_namespace
from ..devices.device import to_host
from ..lm import LM
from .lens import likeliest, logit_lens, shares
from .tokens import token_bytes
from .trace import trace

KEPT = "*embedding,layers.*.attention.output,layers.*.feedforward.output,layers.*.residual_after_feedforward"


class Look(NamedTuple):
    """What was seen in one pass over a text."""

    lm: LM
    ids: list[int]
    bytes: list[bytes | None]  # of each token; None without a tokenizer
    shapes: dict[str, tuple[int, ...]]  # of every value, by its name, in the order of the pass
    not_finite: dict[str, int]  # how many numbers of a value are NaN or infinite, where some are
    values: dict[str, np.ndarray]  # those that were kept

    @property
    def logits(self) -> Float[np.ndarray, "T V"]:
        """The score for each token to be the next one, at every position."""
        return self.values["logits"]


def look(lm: LM, ids: Sequence[int], attention: str = "*") -> Look:
    """Run one pass over the tokens and keep what there is to show.

    attention : the layers whose attention weights are kept: a number, or "*" for all

    Raises
    ------
    UsageError : there are no ids, or too many, or one has no row in the embeddings matrix
    NotEnoughMemoryError : the values do not fit
    """
    shapes: dict[str, tuple[int, ...]] = {}
    not_finite: dict[str, int] = {}

    def note(name: str, value: Array) -> Array:
        xp = array_namespace(value)
        shapes[name] = value.shape
        count = int(xp.count_nonzero(~xp.isfinite(value)))
        if count:
            not_finite[name] = count
        return value

    values = trace(lm, ids, f"{KEPT},layers.{attention}.attention.weights", note)
    data = token_bytes(lm.tokenizer, ids) if lm.tokenizer is not None else list[bytes | None]([None] * len(ids))
    return Look(lm, list(ids), data, shapes, not_finite, values)


def given(seen: Look) -> tuple[Float[np.ndarray, " T"], np.ndarray]:
    """The probability that the model gave each token, having read only what is before it, and its rank from 1 on.

    The first token has nothing before it: NaN and 0.
    """
    before, follows = seen.logits[:-1], np.asarray(seen.ids[1:], dtype=np.int64)[:, None]
    ranks = 1 + np.count_nonzero(before > np.take_along_axis(before, follows, axis=-1), axis=-1)
    return np.append(np.float32(np.nan), shares(before, follows)[:, 0]), np.append(0, ranks)


class Lens(NamedTuple):
    """The logit lens at some positions: a row for the embedding, then one for each block."""

    ids: np.ndarray  # [rows, positions, k]
    probabilities: Float[np.ndarray, "rows positions k"]
    next: Float[np.ndarray, "rows positions"]  # of the token that does follow; NaN where the text ends


def lens(seen: Look, positions: Sequence[int], k: int) -> Lens:
    """What the model would say at these positions if it stopped before the first block, after it, and so on."""
    like = seen.lm.weights.norm
    xp = array_namespace(like)
    blocks = [f"layers.{layer}.residual_after_feedforward" for layer in range(seen.lm.config.num_hidden_layers)]
    chosen = list(positions)
    follows = np.asarray([*seen.ids[1:], 0])[chosen, None]
    ends = np.asarray(chosen) == len(seen.ids) - 1
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
    return "residual_after_embedding" if "residual_after_embedding" in seen.values else "embedding"


class Norms(NamedTuple):
    """Lengths of vectors, [layers, positions] each."""

    embedding: Float[np.ndarray, " T"]  # of the residual stream before the first block
    attention: Float[np.ndarray, "L T"]  # of what the attention layer adds
    feedforward: Float[np.ndarray, "L T"]
    residual: Float[np.ndarray, "L T"]  # of the residual stream after the block


def norms(seen: Look) -> Norms:
    """The length (Euclidean) of the residual stream at every position, and of what each layer adds to it."""

    def lengths(name: str) -> np.ndarray:
        return np.linalg.norm(seen.values[name].astype(np.float64), axis=-1).astype(np.float32)

    def of_layers(leaf: str) -> np.ndarray:
        return np.stack([lengths(f"layers.{i}.{leaf}") for i in range(seen.lm.config.num_hidden_layers)])

    return Norms(
        lengths(first_residual(seen)),
        of_layers("attention.output"),
        of_layers("feedforward.output"),
        of_layers("residual_after_feedforward"),
    )
