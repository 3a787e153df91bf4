"""Activation patching: where, and in which layer, a text holds what decides its answer.

Two texts with the same number of tokens have different answers: "The capital of France is", "The capital of Italy is".
The model runs on the second, with one value replaced by the first text's value at the same layer and position. How much
of the first answer this restores shows what that value carries.

Source: Meng et al. 2022, "Locating and editing factual associations in GPT" (causal tracing); Wang et al. 2022,
"Interpretability in the wild"; Zhang and Nanda 2023, "Towards best practices of activation patching in language models"
(the difference of logits).
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, array_namespace
from ..cache import Cache, empty_cache
from ..devices.device import to_host
from ..errors import UsageError
from ..families import family_of
from ..lm import LM, lm_head, transform
from ..options import check_prompt
from ..text.arguments import check_model, whole_number
from .edits import value_name
from .lens import shares
from .record import record

PARTS = ("residual", "attention", "feedforward")
MOST_TOKENS = 2048  # in one pass: patched copies times tokens, cached ones included
LEAST = 1e-4  # the smallest difference between the two runs, relative to the larger


class Patching(NamedTuple):
    """What the two runs measure, and the rows of the grid as they are computed."""

    clean: float  # the text's own run: 1 in the grid
    other: float  # the other text's: 0
    rows: Iterator[Float[np.ndarray, " T"]]  # from layer 0


def patching_grid(
    lm: LM,
    ids: Sequence[int],
    other_ids: Sequence[int],
    token: int,
    part: str = "residual",
    *,
    against: int | None = None,
    position: int = -1,
    layers: Sequence[int] | None = None,
) -> Float[np.ndarray, "L T"]:
    """How much of the answer each value of the run over `ids` restores in a run over `other_ids`: [L, T].

    0: the answer is that of the other text; 1: that of `ids`. Less than 0 and more than 1 are possible.

    Parameters
    ----------
    token : the answer whose probability is measured; with `against`, the logit of `token` minus that of `against`, the
        other text's answer
    part : what is put in: "residual", the residual stream after the block; or what its "attention" or "feedforward"
        layer adds to it
    position : where the answer is read, by default at the end
    layers : those to patch, a row for each; by default all

    Raises
    ------
    UsageError : the texts have different numbers of tokens, or the same answer; an argument is invalid

    >>> import npllm
    >>> from npllm.inspect.patching import patching_grid
    >>> lm = npllm.load()
    >>> france, italy = (lm.tokenizer.encode(f"The capital of {name} is") for name in ("France", "Italy"))
    >>> paris, rome = (lm.tokenizer.encode(name)[0] for name in (" Paris", " Rome"))
    >>> grid = patching_grid(lm, france, italy, paris, against=rome, layers=[0, 29])
    >>> (grid > 0.5).tolist()  # first at "France", in the end at "is"
    [[False, False, False, True, False], [False, False, False, False, True]]
    """
    return np.stack(
        [*patching_rows(lm, ids, other_ids, token, part, against=against, position=position, layers=layers).rows]
    )


@np.errstate(all="ignore")
def patching_rows(
    lm: LM,
    ids: Sequence[int],
    other_ids: Sequence[int],
    token: int,
    part: str = "residual",
    *,
    against: int | None = None,
    position: int = -1,
    layers: Sequence[int] | None = None,
) -> Patching:
    """The same as an iterator, a row for each layer. Parameters and errors as in `patching_grid`."""
    check_model(lm)
    ids, other_ids = (
        check_prompt(ids, lm.config, new=0),
        check_prompt(other_ids, lm.config, new=0, what="second prompt"),
    )
    if len(ids) != len(other_ids):
        raise UsageError(
            f"patching: expected two texts with the same number of tokens, got {len(ids)} and {len(other_ids)}; add"
            " words to the shorter one"
        )
    if part not in PARTS:
        raise UsageError(f"part: expected {', '.join(PARTS)}, got {part!r}")
    position = whole_number("position", position, -len(ids), len(ids) - 1) % len(ids)
    tokens = [whole_number("token", token, 0, lm.config.vocab_size - 1)]
    tokens += [] if against is None else [whole_number("against", against, 0, lm.config.vocab_size - 1)]
    every = range(lm.config.num_hidden_layers)
    layers = every if layers is None else [whole_number("layers", one, 0, every[-1]) for one in layers]
    clean, values = whole_run(lm, ids, part, position, tokens)
    other, stream = whole_run(lm, other_ids, "residual", position, tokens)
    if not abs(clean - other) > LEAST * max(abs(clean), abs(other)):
        what = "probability" if against is None else "difference of logits"
        raise UsageError(
            f"patching: expected two texts with different answers, got the same {what} in both, {clean:.4g}; choose"
            " another token"
        )
    same = 0 if lm.config.bidirectional else first_difference(ids, other_ids)
    held = held_prefix(lm, other_ids, same)

    def rows() -> Iterator[Float[np.ndarray, " T"]]:
        for layer in layers:
            row = np.zeros(len(ids), dtype=np.float32)
            # Before the first difference the values are the same; after `position` a decoder has read the answer.
            last = len(ids) if lm.config.bidirectional else position + 1
            chosen = list(range(same, last))
            step = max(1, MOST_TOKENS // len(ids))
            for some in (chosen[i : i + step] for i in range(0, len(chosen), step)):
                before, name = None if layer == 0 else stream[layer - 1], value_name(lm, part, layer)
                with np.errstate(all="ignore"):
                    hidden = patched_run(lm, other_ids, held, same, layer, before, name, values[layer], some)
                    row[some] = (measured(lm, hidden, position - same, tokens) - other) / (clean - other)
            yield row

    return Patching(clean, other, rows())


def first_difference(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    """The first position with different tokens; if there is none, the last one."""
    return next((i for i, (a, b) in enumerate(zip(ids, other_ids, strict=True)) if a != b), len(ids) - 1)


def whole_run(
    lm: LM, ids: Sequence[int], part: str, position: int, tokens: Sequence[int]
) -> tuple[float, list[Float[Array, "T D"]]]:
    """What is measured in a run over these ids, and this part's value in each layer."""
    seen: dict[str, Array] = {}
    names = [value_name(lm, part, layer) for layer in range(lm.config.num_hidden_layers)]
    hidden, _ = transform(ids, lm, tap=record(seen, ",".join(names)))
    return float(measured(lm, hidden[None, ...], position, tokens)[0]), [seen[name] for name in names]


def measured(lm: LM, hidden: Float[Array, "P new D"], position: int, tokens: Sequence[int]) -> Float[np.ndarray, " P"]:
    """The probability of the token, or the difference of the two tokens' logits."""
    logits = to_host(lm_head(hidden[:, position : position + 1, :], lm))[:, 0, :].astype(np.float64)
    if len(tokens) == 1:
        return shares(logits, np.full((len(logits), 1), tokens[0]))[:, 0]
    return logits[:, tokens[0]] - logits[:, tokens[1]]


def held_prefix(lm: LM, ids: Sequence[int], same: int) -> Cache | None:
    """The KV cache of the first `same` tokens, with room for the others; None without such tokens."""
    if not same:
        return None
    cache = empty_cache(lm.config, len(ids), like=lm.weights.norm)
    transform(ids[:same], lm, cache, total_length=len(ids))
    return cache


def patched_run(
    lm: LM,
    ids: Sequence[int],
    held: Cache | None,
    same: int,
    layer: int,
    before: Float[Array, "T D"] | None,
    name: str,
    value: Float[Array, "T D"],
    positions: Sequence[int],
) -> Float[Array, "P new D"]:
    """The hidden states of the tokens after `same`, once for each position at which a value is put in.

    The blocks before `layer` are not computed again: the residual stream `before` it is known.
    """
    xp, count, new = array_namespace(value), len(positions), len(ids) - same
    cache = None if held is None else batch_of(held, count)
    at = xp.asarray(positions, device=device(value))[:, None, None] - same
    here = at == xp.arange(new, device=device(value))[:, None]  # [P, T, 1]
    calls = iter(range(lm.config.num_hidden_layers))
    block = inspect.signature(family_of(lm.config).transform).parameters["block"].default

    def resumed(x: Float[Array, "P new D"], *args: Any, **options: Any) -> Float[Array, "P new D"]:
        index = next(calls)
        if index < layer:
            return x
        if index == layer and before is not None:
            x = xp.broadcast_to(before[same:, ...], x.shape)
        return block(x, *args, **options)

    def put_in(tapped: str, old: Array) -> Array:
        return xp.where(here, value[same:, ...], old) if tapped == name else old

    batch = [list(ids[same:])] * count
    hidden, _ = transform(batch, lm, cache, total_length=len(ids), block=resumed, tap=put_in)
    return hidden


def batch_of(cache: Cache, count: int) -> Cache:
    """A copy of the cache for a batch of texts that begin with the same tokens."""
    xp = array_namespace(cache["keys"][0])
    copies = {name: [xp.stack([array] * count) for array in cache[name]] for name in ("keys", "values")}
    return {**copies, "length": cache["length"]}
