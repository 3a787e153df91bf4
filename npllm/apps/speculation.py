"""Speculative decoding: draft the next tokens cheaply, and let the model verify them all in one pass.

Decoding reads every weight for each token. A pass over a few tokens also reads each weight only once, takes little
longer, and predicts the next token after each of them. So some tokens are drafted and the model runs on them. The
drafts are accepted up to the first one that the model would not have chosen; then comes one token of the model's own. A
pass makes at least one token, and at most one more than was drafted.

    prompt_lookup   drafts what followed the last tokens earlier in the text: for texts that repeat themselves
    draft_model     drafts with a smaller model of the same vocabulary

Both are passed to the loop, as in `npllm.generate(lm, prompt, tokens=prompt_lookup(8))`, with all its other options.

Speculation does not change the distribution of the text. Greedy decoding gives the same ids. With sampling, the ids
have the same probabilities:

- A deterministic draft x (from lookup, or greedy) is accepted if it equals the token that is sampled anyway: with
  probability p(x). Otherwise the sampled token is distributed as p without x. For the same seed, the text is even the
  same as without speculation.
- A draft x sampled from the smaller model's probabilities q is accepted with probability min(1, p(x) / q(x)). Otherwise
  the token is sampled from the excess of p over q, max(0, p - q).

"The same" holds up to rounding: a matrix product over several rows sums in a different order than over a single row.
If two tokens are equally likely to seven digits, or a random number falls on the boundary between two, the other token
may be chosen.

Source: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"; Chen et al. 2023,
"Accelerating large language model decoding with speculative sampling"; Saxena 2023, "Prompt lookup decoding".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, array_namespace
from ..cache import Cache, drop_other_factors, empty_cache
from ..errors import UsageError
from ..inspect.record import record
from ..lm import LM
from ..loop import Choice, next_logits, next_token
from ..sampling import draw, softmax
from ..text.arguments import check_writes, checked, whole_number
from .chat import common_prefix, make_room

NGRAMS = (3, 2)  # how many of the last tokens are looked up; a single token predicts too little
MAX_DRAFT = 64  # tokens

Drafted = tuple[list[int], list[Float[Array, " V"] | None]]  # tokens, and the distribution of each; None: deterministic


def prompt_lookup(count: int, counts: dict[str, int] | None = None) -> Callable[..., Iterator[Choice]]:
    """A `tokens` argument for `npllm.steps` that drafts up to `count` tokens from the text so far: see `look_up`.

    counts : incremented by the numbers of "passes", and of "drafted" and "accepted" tokens

    >>> import npllm
    >>> lm, prompt, counts = npllm.load(), "1, 2, 3, 4, 5, 6, 1, 2, 3, 4,", {}
    >>> ids = npllm.generate(lm, prompt, max_new_tokens=20, tokens=prompt_lookup(8, counts)).ids
    >>> ids == npllm.generate(lm, prompt, max_new_tokens=20).ids, counts["passes"] < 20
    (True, True)
    """
    count = check_count("prompt_lookup", count)
    check_counts(counts)

    def draft(ids: list[int], limit: int, random: np.random.Generator, sampling: Mapping[str, Any]) -> Drafted:
        guesses = look_up(ids, limit)
        return guesses, [None] * len(guesses)

    def tokens(
        lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Iterator[Choice]:
        return verified(lm, ids, cache, random, sampling, draft, count, counts)

    return tokens


def draft_model(small: LM, count: int = 4, counts: dict[str, int] | None = None) -> Callable[..., Iterator[Choice]]:
    """A `tokens` argument for `npllm.steps` that drafts up to `count` tokens with a smaller model.

    The smaller model has its own KV cache, in float32. It grows, and is reused when a text is continued, as in a
    conversation. For a text longer than its context, the smaller model drafts nothing.

    counts : as in `prompt_lookup`

    Raises
    ------
    UsageError : from `npllm.steps`, if the two models have different vocabularies
    """
    count = check_count("draft_tokens", count)
    check_counts(counts)
    check_writes(small, "draft model")
    cache = empty_cache(small.config, 0, like=small.weights.norm)
    held: list[int] = []  # the tokens whose keys and values are in the cache

    def draft(
        rows: int, ids: list[int], limit: int, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Drafted:
        shared = min(rows, small.config.vocab_size)  # the padding of either model is never drafted
        limit = min(limit, small.config.max_position_embeddings - len(ids))
        if limit < 1 or max(ids) >= small.config.vocab_size:
            return [], []
        make_room(small, cache, len(ids) + limit)
        cache["length"] = min(common_prefix(held, ids), len(ids) - 1)
        held[:] = ids[: cache["length"]]
        text, drawn_from, how = list(ids), [], {**sampling, "process": None, "top_logprobs": 0}
        for _ in range(limit):
            choice, q = drawn(next_logits(small, text, cache)[0, :shared], text, cache, random, how)
            text.append(choice.id)
            drawn_from.append(q if q is None else widened(q, rows))
        held[:] = text[: cache["length"]]
        return text[len(ids) :], drawn_from

    def tokens(
        lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Iterator[Choice]:
        check_vocabulary(lm, small)
        return verified(lm, ids, cache, random, sampling, partial(draft, lm.config.vocab_size), count, counts)

    return tokens


def widened(q: Float[Array, " V"], rows: int) -> Float[Array, " V2"]:
    """Probabilities of more tokens, of which the additional ones have none."""
    xp = array_namespace(q)
    return xp.concat([q, xp.zeros(rows - q.shape[0], dtype=q.dtype, device=device(q))])


def verified(
    lm: LM,
    ids: list[int],
    cache: Cache,
    random: np.random.Generator,
    sampling: Mapping[str, Any],
    draft: Callable[..., Drafted],
    count: int,
    counts: dict[str, int] | None,
) -> Iterator[Choice]:
    """The new tokens, appended to `ids`: in each pass the accepted drafts, then one token of the model's own.

    Whenever a token is yielded, the cache holds all ids but the last, as after a pass for that token alone. This
    discards the keys and values of rejected drafts, and those of accepted drafts not yet yielded.
    """
    counts = {} if counts is None else counts
    counts |= {name: counts.get(name, 0) for name in ("passes", "drafted", "accepted")}
    while True:
        guesses, drawn_from = list[int](), list[Array | None]()
        drop_other_factors(cache, lm.config, len(ids))
        if len(ids) - cache["length"] == 1:  # not before the prompt is processed
            limit = cache["keys"][0].shape[-2] - len(ids) - 1  # room for the drafts and the model's own token
            scaling = lm.config.rope_scaling
            if scaling is not None and scaling.long_factors and len(ids) <= scaling.original:
                limit = min(limit, scaling.original - len(ids))  # a pass beyond it has other factors: see cache.py
            guesses, drawn_from = draft(ids, max(0, min(count, limit)), random, sampling)
        rows = next_logits(lm, [*ids, *guesses], cache, rows=len(guesses) + 1)
        counts["passes"] += 1
        counts["drafted"] += len(guesses)
        for row, (guess, q) in enumerate([*zip(guesses, drawn_from, strict=True), (None, None)]):
            if guess is None or q is None:
                choice = next_token(rows[row, :], ids, cache, random, sampling)
            else:
                choice, p = drawn(rows[row, :], ids, cache, random, sampling)
                token = accept_or_replace(guess, p, q, random)
                change = float(rows[row, token]) - float(rows[row, choice.id])
                choice = choice._replace(id=token, logprob=choice.logprob + change)
            ids.append(choice.id)
            cache["length"] = len(ids) - 1
            counts["accepted"] += choice.id == guess
            yield choice
            if choice.id != guess:
                break


def look_up(ids: Sequence[int], limit: int) -> list[int]:
    """The tokens, at most `limit`, after the latest earlier occurrence of the last three tokens, or else the last two.

    If the continuation reaches the end of the text, it goes on with the draft itself: a text that has begun to repeat
    is drafted as repeating further.

    >>> look_up([5, 1, 2, 3, 7, 8, 9, 1, 2, 3], 4), look_up([1, 2, 1, 2], 4), look_up([1, 2, 3], 4)
    ([7, 8, 9, 1], [1, 2, 1, 2], [])
    """
    text = list(ids)
    for size in NGRAMS:
        tail = text[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if text[start] == tail[0] and text[start : start + size] == tail:
                for place in range(start + size, start + size + limit):
                    text.append(text[place])
                return text[len(ids) :]
    return []


@np.errstate(all="ignore")
def drawn(
    logits: Float[Array, " V"], ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
) -> tuple[Choice, Float[Array, " V"] | None]:
    """A token chosen as in the loop, and the probabilities it was sampled from; None for greedy decoding."""
    values: dict[str, Array] = {}
    choice = next_token(logits, ids, cache, random, {**sampling, "tap": record(values)})
    if "greedy" in values:
        return choice, None
    *_, left, _ = values.values()  # the last value is the token, the one before it the filtered logits
    return choice, softmax(left)


@np.errstate(all="ignore")
def accept_or_replace(guess: int, p: Float[Array, " V"], q: Float[Array, " V"], random: np.random.Generator) -> int:
    """The guess, sampled from q, with probability min(1, p / q); otherwise a token sampled from max(0, p - q).

    The result has the distribution p. Where q exceeds p, the surplus of guesses is rejected; where q is below p, the
    replacements make up the difference.

    >>> import numpy as np
    >>> p, q = np.asarray([0.5, 0.5, 0.0]), np.asarray([0.25, 0.25, 0.5])
    >>> accept_or_replace(1, p, q, np.random.default_rng(0)), accept_or_replace(2, p, q, np.random.default_rng(0))
    (1, 0)
    """
    if random.random() * float(q[guess]) < float(p[guess]):
        return guess
    xp = array_namespace(p)
    missing = xp.maximum(p - q, 0.0)
    if float(xp.max(missing)) == 0.0:  # p equals q up to rounding
        return guess
    positive = missing > 0.0
    return int(draw(xp.where(positive, xp.log(xp.where(positive, missing, 1.0)), -math.inf), random.random()))


def check_count(name: str, count: Any) -> int:
    """A number of drafted tokens. Raises UsageError for an invalid one."""
    return whole_number(name, count, 1, MAX_DRAFT, f"a number of tokens from 1 to {MAX_DRAFT}")


def check_counts(counts: Any) -> None:
    """Raise UsageError unless the counts can be incremented."""
    checked("counts", counts, dict | None, lambda _: True, "a dict or None")


def check_vocabulary(lm: LM, small: LM) -> None:
    """Raise UsageError for a draft model with a different vocabulary. With the same one, either may have more rows."""
    expected, got = lm.config.vocab_size, small.config.vocab_size
    if lm.tokenizer is None or small.tokenizer is None:
        if got != expected:
            raise UsageError(f"draft model: expected the model's own vocabulary of {expected} tokens, got one of {got}")
        return
    theirs = small.tokenizer.backend.get_vocab()
    for token, number in lm.tokenizer.backend.get_vocab().items():
        if theirs.get(token) != number:
            raise UsageError(
                f"draft model: expected the model's own vocabulary, where {token!r} has the id {number}, got one where"
                f" it has {theirs.get(token, 'none')}"
            )
