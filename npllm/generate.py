"""The autoregressive loop: each new token is appended to the text, and the model is asked again.

    steps      one token after the other: its id, its text, and why it was the last
    stream     the text alone, piece by piece
    generate   all of it at once

Source: "The Inputs and Outputs of a Trained Transformer LLM" (Figures 3-1 to 3-3), "Speeding Up Generation by Caching
Keys and Values" (Figure 3-10).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from .backend.devices import free_bytes, to_host
from .backend.memory import check_memory
from .cache import Cache, empty_cache, kv_cache_bytes
from .config import read_token_ids
from .errors import ModelFileError, UsageError
from .heads import lm_head
from .model import LM, transform
from .sampling import choose
from .shapes import Array, Float, array_namespace
from .text.stream import TextStream

PREFILL_CHUNK = 512  # tokens: the matrix of scores is never larger than 512 rows per head


class Step(NamedTuple):
    """One turn of the loop."""

    id: int  # the new token
    text: str  # what it adds to the text; "" while a character, or what may become a stop string, is incomplete
    finish_reason: str | None  # "stop" (an end token or a stop string), "length", or None: there is more to come


class Generation(NamedTuple):
    """All that was generated."""

    text: str  # without the prompt, the end token and the stop string
    ids: list[int]  # with the end token, or those of the stop string
    prompt_ids: list[int]
    finish_reason: str  # "stop" or "length"


def end_ids(lm: LM) -> frozenset[int]:
    """The tokens that end a text: those of the config, of the generation config and of the tokenizer together."""
    ids = {*lm.config.eos_token_id, *read_token_ids(lm.generation_config, "eos_token_id", "generation_config.json")}
    return frozenset(ids if lm.tokenizer is None else ids | lm.tokenizer.end_ids)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that have no row in the embeddings matrix: while they are Python integers this costs nothing."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token {position}: expected an id from 0 to {vocab_size - 1}, got {token}")


def next_logits(lm: LM, ids: Sequence[int], cache: Cache) -> Float[Array, " V"]:
    """The logits for the token after `ids`, whose first cache["length"] tokens the cache holds already.

    A long prompt goes through in chunks. Only the last stream enters the LM head: the others have done their part, as
    keys and values.
    """
    like = lm.weights.norm  # any of the weights: they tell the array library and the device
    xp = array_namespace(like)
    for start in range(cache["length"], len(ids), PREFILL_CHUNK):
        chunk = xp.asarray(ids[start : start + PREFILL_CHUNK], dtype=xp.int64, device=device(like))
        hidden, _ = transform(chunk, lm.weights, lm.config, cache)
    return lm_head(hidden[-1:, :], lm.weights)[0, :]


def split_at_stop(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """What of the text may be shown, what must wait, and whether a stop string ends it here.

    What may be the beginning of a stop string waits for the next token.

    >>> split_at_stop("one, two", ["two"]), split_at_stop("one, tw", ["two"]), split_at_stop("one, twi", ["two"])
    (('one, ', '', True), ('one, ', 'tw', False), ('one, twi', '', False))
    """
    found = [text.index(s) for s in stop if s in text]
    if found:
        return text[: min(found)], "", True
    beginnings = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    shown = len(text) - max(beginnings, default=0)
    return text[:shown], text[shown:], False


def check_options(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stop: Sequence[str],
    seed: int | None = None,
) -> None:
    """Refuse sampling values that mean nothing. `not 0 <= x` also refuses NaN."""
    for name, value, valid, expected in [
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < math.inf, "0 (greedy) or more"),
        ("top_k", top_k, top_k >= 0, "0 (off) or more"),
        ("top_p", top_p, 1e-6 <= top_p <= 1, "from 1e-6 to 1 (off)"),
        ("min_p", min_p, 0 <= min_p <= 1, "from 0 (off) to 1"),
        ("repetition_penalty", repetition_penalty, 1e-6 <= repetition_penalty <= 1e6, "from 1e-6 to 1e6 (1: off)"),
        ("stop", list(stop), all(stop), "strings that are not empty"),
        ("seed", seed, seed is None or seed >= 0, "a whole number from 0 on, or None"),
    ]:
        if not valid:
            raise UsageError(f"{name}: expected {expected}, got {value}")


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
    stop: Sequence[str] = (),
    seed: int | None = None,
    use_cache: bool = True,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """Generate token after token; the arguments are checked before the first.

    Parameters
    ----------
    ids : the prompt, as token ids
    max_new_tokens : at most so many; fewer where the context ends, with a warning
    temperature : 0 is greedy decoding; see `sampling.choose` for it and the next four
    stop : strings that end the text: it stops before the first of them, while the ids hold the tokens that made it
    seed : of the random draws: the same seed and the same logits give the same text. None: a different text every time
    use_cache : False forgets all keys and values after each token and computes every stream again
    cache : holds the first cache["length"] of the ids already, and has room for the prompt; for each new token the
        caller makes room beforehand or on the way, with `cache.grow`

    Raises
    ------
    UsageError : an argument, or the prompt, cannot be used
    NotEnoughMemoryError : the KV cache does not fit
    ModelFileError : the logits are not finite
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    check_options(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
    context = lm.config.max_position_embeddings
    if len(ids) == 0:
        raise UsageError("the prompt is empty: expected at least one token")
    if len(ids) >= context:
        raise UsageError(
            f"the prompt is too long: {len(ids)} tokens leave no room for a new one in the model's context of {context}"
        )
    check_ids(ids, lm.config.vocab_size)
    if stop and lm.tokenizer is None:
        raise UsageError("stop: expected a model with a tokenizer, which turns ids into the text to stop at")
    if cache is not None and cache["keys"][0].shape[-2] < len(ids):
        raise UsageError(
            f"cache: expected room for {len(ids)} tokens, got {cache['keys'][0].shape[-2]}; use cache.grow"
        )
    if len(ids) + max_new_tokens > context:
        warnings.warn(
            f"only {context - len(ids)} new tokens instead of {max_new_tokens}:"
            f" the prompt has {len(ids)}, and the model's context is {context} tokens",
            stacklevel=2,
        )
        max_new_tokens = context - len(ids)
    capacity = len(ids) + max_new_tokens
    rows = min(len(ids) if use_cache else capacity, PREFILL_CHUNK)
    scores = lm.config.num_attention_heads * rows * capacity * 4  # bytes
    needed = {"attention scores": 3 * scores}  # held at once: the scores, the masked ones, the weights
    if cache is None:
        needed["KV cache"] = kv_cache_bytes(lm.config, capacity)
    check_memory(needed, free_bytes(lm.weights.norm))
    if cache is None:
        cache = empty_cache(lm.config, capacity, like=lm.weights.norm)
    cache["length"] = min(cache["length"], len(ids) - 1)  # the last stream is computed anew: it makes the logits
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    return loop(lm, list(ids), cache, max_new_tokens, sampling, stop, np.random.default_rng(seed), use_cache)


def loop(
    lm: LM,
    ids: list[int],
    cache: Cache,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    stop: Sequence[str],
    random: np.random.Generator,
    use_cache: bool,
) -> Iterator[Step]:
    """The loop of `steps`, its arguments checked."""
    ends = end_ids(lm)
    text_stream = TextStream(lm.tokenizer, ids) if lm.tokenizer is not None else None
    waiting = ""
    for count in range(1, max_new_tokens + 1):
        logits = next_logits(lm, ids, cache)
        token = next_token(logits, ids, random, sampling)
        ids.append(token)
        if not use_cache:
            cache["length"] = 0
        finish_reason = "stop" if token in ends else "length" if count == max_new_tokens else None
        if text_stream is not None:
            waiting += "" if token in ends else text_stream.step(token)
            waiting += text_stream.flush() if finish_reason else ""
        text, waiting, stopped = split_at_stop(waiting, stop)
        if stopped:
            finish_reason = "stop"
        elif finish_reason:
            text, waiting = text + waiting, ""
        yield Step(token, text, finish_reason)
        if finish_reason:
            return


def next_token(
    logits: Float[Array, " V"], ids: Sequence[int], random: np.random.Generator, sampling: Mapping[str, Any]
) -> int:
    """Choose on the logits' device, with one random number from the host; 8 bytes come back."""
    xp = array_namespace(logits)
    seen = None
    if sampling["repetition_penalty"] != 1.0:
        seen = xp.asarray(np.isin(np.arange(logits.shape[0]), ids), device=device(logits))
    chosen = choose(logits, uniform=random.random(), seen=seen, **sampling)
    token, largest = to_host(xp.stack([xp.astype(chosen, xp.float32), xp.max(logits)]))
    if not math.isfinite(largest):
        raise ModelFileError(
            f"the logits after token {len(ids)}: expected finite numbers, got {largest};"
            " the weights are damaged, or were rounded to a dtype too narrow for them (then try --dtype float32)"
        )
    return int(token)


def stream(lm: LM, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
    """The generated text, piece by piece as it is made. Parameters as in `steps`; the prompt is text or token ids."""
    for step in steps(lm, as_ids(lm, prompt), **options):
        if step.text:
            yield step.text


def generate(lm: LM, prompt: str | Sequence[int], **options: Any) -> Generation:
    """Continue the prompt, which is text or token ids. Parameters and errors as in `steps`.

    >>> import npllm
    >>> npllm.generate(npllm.load(), "The capital of France is", max_new_tokens=2).text
    ' Paris.'
    """
    prompt_ids = as_ids(lm, prompt)
    text, ids, finish_reason = "", [], ""
    for step in steps(lm, prompt_ids, **options):
        text += step.text
        ids.append(step.id)
        finish_reason = step.finish_reason or ""  # only the last step has one
    return Generation(text, ids, prompt_ids, finish_reason)


def as_ids(lm: LM, prompt: str | Sequence[int]) -> list[int]:
    """The prompt's token ids."""
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    if lm.tokenizer is None:
        raise ModelFileError("the model has no tokenizer.json: expected one beside config.json; or give token ids")
    return lm.tokenizer.encode(prompt)
