"""The autoregressive loop: each new token is appended to the text, and the model runs again.

`steps` takes token ids and yields the new tokens with their text. The public calls of this name, and `stream` and
`generate`, take text, ids, or a list of prompts: apps/calls.py.

Source: "The Inputs and Outputs of a Trained Transformer LLM" (Figures 3-1 to 3-3), "Speeding Up Generation by Caching
Keys and Values" (Figure 3-10).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from .arrays import Array, Float, array_namespace
from .attention import attention
from .cache import Cache, drop_other_factors, empty_cache
from .devices.device import free_bytes, to_host
from .devices.dtypes import dtype_like
from .devices.finite import not_finite
from .devices.memory import check_generation
from .errors import ModelFileError, UsageError
from .flash import flash_attention
from .lm import LM, as_array, tapped
from .options import capacity_for, check_options, check_prompt
from .sampling import choose
from .tap import Tap, untapped
from .text.arguments import check_cache, check_model, check_writes, held_length, one_reader, token_ids
from .text.end_ids import end_ids
from .text.processors import Processor, check_library, processed
from .text.stream import StoppingStream

PREFILL_CHUNK = 512  # prompt tokens per pass: bounds the memory for their vectors; BLAS is slower with fewer


class Choice(NamedTuple):
    """A new token, with its log-probability in the model's own distribution: that of the logits, unchanged."""

    id: int
    logprob: float
    top_logprobs: list[tuple[int, float]]  # (id, log-probability) of the likeliest tokens, if there are to be any


class Step(NamedTuple):
    """One iteration of the loop."""

    id: int  # the new token
    text: str  # what it adds; "" while a character, or a possible stop string, is incomplete
    finish_reason: str | None  # "stop" (an end token or a stop string), "length", or None: more to come
    logprob: float  # the token's, in the model's own distribution: see `Choice`
    top_logprobs: list[tuple[int, float]]  # (id, log-probability) of the likeliest tokens, best first, if asked for


@np.errstate(all="ignore")
def next_logits(lm: LM, ids: Sequence[int], cache: Cache, rows: int = 1) -> Float[Array, "rows V"]:
    """The logits for the token after `ids`; the first cache["length"] of them are already cached.

    A long prompt is prefilled in chunks, with attention tile by tile. Only the last hidden state enters the LM head:
    the others have contributed their keys and values. (`rows`: the last ones, all from the last chunk.)
    """
    drop_other_factors(cache, lm.config, len(ids))
    for start in range(cache["length"], len(ids), PREFILL_CHUNK):
        chunk = as_array(ids[start : start + PREFILL_CHUNK], lm)
        how = flash_attention if chunk.shape[0] > 1 else attention
        hidden, _ = lm.transform(chunk, lm.weights, lm.config, cache, total_length=len(ids), attention=how)
    return lm.lm_head(hidden[-rows:, :], lm.weights, lm.config)


def one_by_one(
    lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
) -> Iterator[Choice]:
    """New tokens from one pass each, appended to `ids`: the chapter's method."""
    while True:
        choice = next_token(next_logits(lm, ids, cache)[0, :], ids, cache, random, sampling)
        ids.append(choice.id)
        yield choice


def steps(
    lm: LM,
    ids: Sequence[int],
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = (),
    seed: int | None = None,
    use_cache: bool = True,
    cache: Cache | None = None,
    cache_dtype: str = "float32",
    logits_processors: Sequence[Processor] = (),
    top_logprobs: int | None = None,
    tap: Tap = untapped,
    tokens: Callable[..., Iterator[Choice]] = one_by_one,
) -> Iterator[Step]:
    """The generated tokens, as a `Step` each. The arguments are checked before the first.

    Parameters
    ----------
    ids : the prompt, as token ids
    max_new_tokens : at most this many; fewer if the context ends first, with a warning
    temperature : 0 is greedy decoding; see `sampling.choose` for it and the next four
    stop : strings that end the text, or None. It stops before the first of them; the ids include its tokens
    seed : for the random draws: the same seed and logits give the same text. None: a different text each time
    use_cache : False drops all keys and values after each token and recomputes every stream
    cache : holds the first cache["length"] of the ids, and has capacity for the prompt; the caller ensures capacity for
        each new token with `cache.grow`, before or during generation. Only one generation at a time can use it
    cache_dtype : of the keys and values in it: "float32"; "float16" or "bfloat16" for half the memory
    logits_processors : functions (ids [1, T], logits [1, V]) -> logits, called once for each new token, in order, after
        the repetition penalty and before the temperature: see text/processors.py
    top_logprobs : how many of the likeliest tokens each step names, with their log-probabilities
    tap : receives every value of every pass, and may change it: see tap.py. A prompt of more than 512 tokens takes
        several passes; so do drafts, some of which are rejected. Kernels and FlashAttention step aside
    tokens : another source of tokens, which appends each to `ids` and caches all but the last: apps/speculation.py

    Raises
    ------
    UsageError : an argument or the prompt is invalid; keys or values are too large for cache_dtype
    NotEnoughMemoryError : the KV cache does not fit
    ModelFileError : the logits are not finite
    """
    check_writes(lm)
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = check_options(**sampling, repetition_penalty=repetition_penalty)
    how = {"max_new_tokens": max_new_tokens, "stop": stop, "seed": seed, "use_cache": use_cache, "tokens": tokens}
    max_new_tokens, stop, seed, use_cache, *_ = check_options(**how, cache_dtype=cache_dtype).values()
    processors, top = check_options(logits_processors=logits_processors, top_logprobs=top_logprobs).values()
    ids, through = check_prompt(ids, lm.config), tapped(lm, tap)
    if stop and lm.tokenizer is None:
        raise UsageError("stop: expected a model with a tokenizer, which turns ids into the text to stop at")
    like = lm.weights.norm  # any weight, for its array library and device
    check_library(processors, like)
    sampling |= {"process": partial(processed, processors) if processors else None, "top_logprobs": top or 0}
    if cache is not None and check_cache(cache, lm.config, like) < len(ids):
        raise UsageError(f"cache: expected room for all {len(ids)} tokens of the prompt, got less; use cache.grow")
    if not use_cache and tokens is not one_by_one:
        raise UsageError("use_cache: expected True with speculative decoding, which verifies drafts against the cache")
    capacity = capacity_for(lm.config, len(ids), max_new_tokens)
    rows = min(len(ids) if use_cache else capacity, PREFILL_CHUNK)
    kind = None if cache else cache_dtype
    check_generation(lm.config, capacity, rows, kind, free_bytes(like), full_scores=tap is not untapped)
    cache = cache or empty_cache(lm.config, capacity, like=like, dtype=dtype_like(cache_dtype, like))
    made = one_reader(tokens(through, ids, cache, np.random.default_rng(seed), sampling), cache, ids)
    cache["length"], cache["ids"] = held_length(cache, ids), ids
    return loop(lm, ids, made, capacity - len(ids), stop, cache, use_cache)


def loop(
    lm: LM, ids: list[int], tokens: Iterator[Choice], limit: int, stop: Sequence[str], cache: Cache, use_cache: bool
) -> Iterator[Step]:
    """The loop of `steps` after its checks: token by token, until one ends the text."""
    tokenizer = lm.tokenizer
    ends = end_ids(lm.config.eos_token_id, lm.generation_config, () if tokenizer is None else tokenizer.end_ids)
    text_stream = None if tokenizer is None else StoppingStream(tokenizer.backend, ids, stop)
    for count, (token, logprob, top) in enumerate(tokens, 1):
        if not use_cache:
            cache["length"] = 0
        finish_reason = "stop" if token in ends else "length" if count == limit else None
        text = ""
        if text_stream is not None:
            text, stopped = text_stream.step(None if token in ends else token, last=finish_reason is not None)
            finish_reason = "stop" if stopped else finish_reason
        yield Step(token, text, finish_reason, logprob, top)
        if finish_reason:
            return


@np.errstate(all="ignore")
def next_token(
    logits: Float[Array, " V"], ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
) -> Choice:
    """The next token, chosen on the logits' device with one random number from the host; 16 bytes come back."""
    xp, how = array_namespace(logits), dict(sampling)
    process, top = how.pop("process"), how.pop("top_logprobs")
    seen = None
    if sampling["repetition_penalty"] != 1.0:
        seen = xp.asarray(np.isin(np.arange(logits.shape[0]), ids), device=device(logits))
    chosen = choose(logits, uniform=random.random(), seen=seen, process=process and partial(process, ids), **how)
    largest = xp.max(logits)
    total = xp.sum(xp.exp(logits - largest))
    own = xp.take(logits, xp.reshape(chosen, (1,)))[0]
    # One transfer; float32 holds every id below 2**24 exactly.
    numbers = to_host(xp.stack([xp.astype(chosen, xp.float32), largest, total, own]))
    token, largest, total, own = map(float, numbers)
    if not math.isfinite(largest):
        raise not_finite(f"the logits after token {len(ids)}", largest, cache)
    norm = largest + float(np.log(total))
    return Choice(int(token), own - norm, [(other, logit - norm) for other, logit in likeliest(logits, top)])


def likeliest(logits: Float[Array, " V"], count: int) -> list[tuple[int, float]]:
    """The (id, logit) of that many tokens, best first. Equal ones are in the order of the ids; none is -inf."""
    if count == 0:
        return []
    xp = array_namespace(logits)
    least = xp.sort(logits, descending=True, stable=False)[min(count, logits.shape[0]) - 1]
    (ids,) = xp.nonzero((logits >= least) & (logits > -math.inf))
    pairs = zip(map(int, to_host(ids)), map(float, to_host(xp.take(logits, ids))), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count]


def as_ids(lm: LM, prompt: str | Sequence[int]) -> list[int]:
    """The prompt's token ids."""
    check_model(lm)
    if not isinstance(prompt, str):
        return token_ids(prompt, "prompt", "a text or a list of token ids")
    if lm.tokenizer is None:
        raise ModelFileError("the model has no tokenizer.json: expected one next to config.json; or pass token ids")
    return lm.tokenizer.encode(prompt)
