"""Speculation: guess the next tokens cheaply, and let the model check them all in one pass.

Decoding reads every weight for each token. A pass over a few tokens reads them once as well, and takes little longer:
it tells what the model says after each of them. So some tokens are drafted, the model reads them, and the drafted
tokens are taken as far as they are what it would have said; then comes one token of its own. A pass makes at least
one token, and at most one more than was drafted.

    prompt_lookup   drafts what followed when the last tokens stood in the text before: for texts that repeat themselves
    draft_model     drafts with a smaller model of the same vocabulary

Both are given to the loop, as in `npllm.generate(lm, prompt, tokens=prompt_lookup(8))`, with all its other options.

The text is as good as without. Greedy decoding gives the same ids. With sampling the ids have the same probabilities:

- A draft without chance in it (by lookup, or greedy) is accepted if it is the token that is drawn anyway. So x is
  accepted with probability p(x), and else the token is drawn from p without x. It even is the same text as without
  speculation, for the same seed.
- A draft x that was drawn from the smaller model's probabilities q is accepted with probability min(1, p(x) / q(x)),
  and else the token is drawn from what p has more than q, max(0, p - q).

"The same" is but for rounding: a product of several rows sums up in another order than that of a single one. Where two
tokens are as likely as each other to seven digits, or a draw falls on the border between two, the other may be taken.

Source: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"; Chen et al. 2023,
"Accelerating large language model decoding with speculative sampling"; Saxena 2023, "Prompt lookup decoding".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..arrays import Array, Float, array_namespace
from ..cache import Cache, empty_cache
from ..errors import UsageError
from ..inspect.record import record
from ..lm import LM
from ..loop import next_logits, next_token
from ..sampling import draw, softmax
from .chat import common_prefix, make_room

NGRAMS = (3, 2)  # so many of the last tokens are looked up; a single one says too little about what follows
MOST = 64  # drafted tokens

Drafted = tuple[list[int], list[Float[Array, " V"] | None]]  # tokens, and what each was drawn from; None: no chance


def prompt_lookup(count: int, told: dict[str, int] | None = None) -> Callable[..., Iterator[int]]:
    """The `tokens` of `npllm.steps`, with up to `count` of them drafted from the text so far: see `look_up`.

    told : the numbers of "passes", "drafted" and "accepted" tokens are added to it

    >>> import npllm
    >>> lm, told = npllm.load(), {}
    >>> ids = npllm.generate(lm, "1, 2, 3, 4, 5, 6, 1, 2, 3, 4,", max_new_tokens=20, tokens=prompt_lookup(8, told)).ids
    >>> ids == npllm.generate(lm, "1, 2, 3, 4, 5, 6, 1, 2, 3, 4,", max_new_tokens=20).ids, told["passes"] < 20
    (True, True)
    """
    check_count("prompt_lookup", count)

    def draft(ids: list[int], most: int, random: np.random.Generator, sampling: Mapping[str, Any]) -> Drafted:
        guesses = look_up(ids, most)
        return guesses, [None] * len(guesses)

    def tokens(
        lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Iterator[int]:
        return checked(lm, ids, cache, random, sampling, draft, count, told)

    return tokens


def draft_model(small: LM, count: int = 4, told: dict[str, int] | None = None) -> Callable[..., Iterator[int]]:
    """The `tokens` of `npllm.steps`, with up to `count` of them drafted by a smaller model.

    It has a KV cache of its own, in float32, which grows, and is used again for a text that goes on, as in a
    conversation. Where the text is longer than its context, it drafts nothing.

    told : as in `prompt_lookup`

    Raises
    ------
    UsageError : from `npllm.steps`, where the two models do not have the same vocabulary
    """
    check_count("draft_tokens", count)
    cache = empty_cache(small.config, 0, like=small.weights.norm)
    held: list[int] = []  # the tokens whose keys and values are in it

    def draft(ids: list[int], most: int, random: np.random.Generator, sampling: Mapping[str, Any]) -> Drafted:
        most = min(most, small.config.max_position_embeddings - len(ids))
        if most < 1:
            return [], []
        make_room(small, cache, len(ids) + most)
        cache["length"] = min(common_prefix(held, ids), len(ids) - 1)
        held[:] = ids[: cache["length"]]
        text, drawn_from = list(ids), []
        for _ in range(most):
            token, probabilities = drawn(next_logits(small, text, cache)[0, :], text, random, sampling)
            text.append(token)
            drawn_from.append(probabilities)
        held[:] = text[: cache["length"]]
        return text[len(ids) :], drawn_from

    def tokens(
        lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Iterator[int]:
        check_vocabulary(lm, small)
        return checked(lm, ids, cache, random, sampling, draft, count, told)

    return tokens


def checked(
    lm: LM,
    ids: list[int],
    cache: Cache,
    random: np.random.Generator,
    sampling: Mapping[str, Any],
    draft: Callable[..., Drafted],
    count: int,
    told: dict[str, int] | None,
) -> Iterator[int]:
    """The new tokens, appended to `ids`: the drafted ones that the model confirms, and after each pass one of its own.

    With each token the cache holds all but the last of the ids, as if the pass had been for it alone. So the keys and
    values of a draft that was refused are forgotten, and so are those of accepted ones that nobody has asked for yet.
    """
    told = {} if told is None else told
    told |= {name: told.get(name, 0) for name in ("passes", "drafted", "accepted")}
    while True:
        guesses, drawn_from = list[int](), list[Array | None]()
        if len(ids) - cache["length"] == 1:  # not while there is a prompt to be read
            most = cache["keys"][0].shape[-2] - len(ids) - 1  # room for all, and the model's own token
            guesses, drawn_from = draft(ids, max(0, min(count, most)), random, sampling)
        rows = next_logits(lm, [*ids, *guesses], cache, rows=len(guesses) + 1)
        told["passes"] += 1
        told["drafted"] += len(guesses)
        for row, (guess, q) in enumerate([*zip(guesses, drawn_from, strict=True), (None, None)]):
            if guess is None or q is None:
                token = next_token(rows[row, :], ids, random, sampling)
            else:
                _, p = drawn(rows[row, :], ids, random, sampling)
                token = accept_or_replace(guess, p, q, random)
            ids.append(token)
            cache["length"] = len(ids) - 1
            told["accepted"] += token == guess
            yield token
            if token != guess:
                break


def look_up(ids: Sequence[int], most: int) -> list[int]:
    """What followed where the last three tokens, or else the last two, stood the last time before; at most `most`.

    Where that place is so near that what follows reaches the end, the draft goes on with itself: a text that has begun
    to repeat itself is drafted as repeating itself.

    >>> look_up([5, 1, 2, 3, 7, 8, 9, 1, 2, 3], 4), look_up([1, 2, 1, 2], 4), look_up([1, 2, 3], 4)
    ([7, 8, 9, 1], [1, 2, 1, 2], [])
    """
    text = list(ids)
    for size in NGRAMS:
        tail = text[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if text[start] == tail[0] and text[start : start + size] == tail:
                for place in range(start + size, start + size + most):
                    text.append(text[place])
                return text[len(ids) :]
    return []


def drawn(
    logits: Float[Array, " V"], ids: Sequence[int], random: np.random.Generator, sampling: Mapping[str, Any]
) -> tuple[int, Float[Array, " V"] | None]:
    """A token as the loop chooses it, and the probabilities it was drawn from: None for greedy decoding."""
    values: dict[str, Array] = {}
    token = next_token(logits, ids, random, {**sampling, "tap": record(values)})
    if "greedy" in values:
        return token, None
    *_, left, _ = values.values()  # the last value is the token, the one before what the filters have left
    return token, softmax(left)


def accept_or_replace(guess: int, p: Float[Array, " V"], q: Float[Array, " V"], random: np.random.Generator) -> int:
    """The guess, drawn from q, with probability min(1, p / q), and else a token drawn from max(0, p - q).

    What comes out has the probabilities p: where q is larger than p, a guess is refused as often as it came too often;
    where it is smaller, what is missing is made up for.

    >>> import numpy as np
    >>> p, q = np.asarray([0.5, 0.5, 0.0]), np.asarray([0.25, 0.25, 0.5])
    >>> accept_or_replace(1, p, q, np.random.default_rng(0)), accept_or_replace(2, p, q, np.random.default_rng(0))
    (1, 0)
    """
    if random.random() * float(q[guess]) < float(p[guess]):
        return guess
    xp = array_namespace(p)
    missing = xp.maximum(p - q, 0.0)
    if float(xp.max(missing)) == 0.0:  # p is q, but for rounding
        return guess
    positive = missing > 0.0
    return int(draw(xp.where(positive, xp.log(xp.where(positive, missing, 1.0)), -math.inf), random.random()))


def check_count(name: str, count: Any) -> None:
    """Refuse a number of drafted tokens that makes no sense."""
    if not isinstance(count, Integral) or not 1 <= int(count) <= MOST:
        raise UsageError(f"{name}: expected a number of tokens from 1 to {MOST}, got {count!r}")


def check_vocabulary(lm: LM, small: LM) -> None:
    """Refuse a draft model whose ids mean other tokens."""
    expected, got = lm.config.vocab_size, small.config.vocab_size
    if got != expected:
        raise UsageError(f"draft model: expected the model's own vocabulary of {expected} tokens, got one of {got}")
    if lm.tokenizer is None or small.tokenizer is None:
        return
    theirs = small.tokenizer.backend.get_vocab()
    for token, number in lm.tokenizer.backend.get_vocab().items():
        if theirs.get(token) != number:
            raise UsageError(
                f"draft model: expected the model's own vocabulary, where {token!r} has the id {number}, got one where"
                f" it has {theirs.get(token, 'none')}"
            )
