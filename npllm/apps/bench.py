"""The loop timed as in the chapter, with %%timeit: the same tokens with and without the KV cache.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10 and the two timed cells).
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..arrays import Array
from ..errors import UsageError
from ..lm import LM
from .calls import generate
from .chat import common_prefix


class Run(NamedTuple):
    """One timed generation."""

    use_cache: bool
    seconds: float
    streams: int  # how many went through the blocks: the tokens of all passes
    ids: list[int]


def cache_runs(lm: LM, prompt_ids: Sequence[int], new_tokens: int, repeat: int) -> Iterator[Run]:
    """Timed greedy generations, alternating between with and without the cache, `repeat` times each.

    They alternate because a machine's speed drifts: the drift then affects both. End tokens are ignored, so each run
    makes `new_tokens`. One untimed token is generated first, as a warm-up.

    Raises
    ------
    UsageError : the prompt and the new tokens do not fit into the context
    """
    context = lm.config.max_position_embeddings
    if len(prompt_ids) + new_tokens > context:
        raise UsageError(
            f"--prompt and --new-tokens: expected at most {context} together, the model's context, got"
            f" {len(prompt_ids)} and {new_tokens}"
        )
    generate(lm, prompt_ids, max_new_tokens=1)
    return (timed(lm, prompt_ids, new_tokens, use_cache) for _ in range(repeat) for use_cache in (True, False))


def timed(lm: LM, prompt_ids: Sequence[int], new_tokens: int, use_cache: bool) -> Run:
    """One generation of `new_tokens` tokens, timed."""
    widths: list[int] = []

    def counting(ids: Array, *arguments: Any, **options: Any) -> Any:
        widths.append(ids.shape[-1])
        return lm.transform(ids, *arguments, **options)

    counted = endless(lm)._replace(transform=counting)
    started = time.perf_counter()
    ids = generate(counted, prompt_ids, max_new_tokens=new_tokens, use_cache=use_cache).ids
    return Run(use_cache, time.perf_counter() - started, sum(widths), ids)


def endless(lm: LM) -> LM:
    """The model without end tokens and without a tokenizer: only the loop is timed."""
    config = dataclasses.replace(lm.config, eos_token_id=())
    return lm._replace(config=config, generation_config={}, tokenizer=None)


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """The statistics of the runs with and without the cache, and whether they made the same tokens.

    Returns
    -------
    new_tokens, repeat : tokens per run, and runs of each kind
    with_cache, without_cache : seconds of each run, their mean and standard deviation, tokens per second, and the
        streams that a run computed
    ratio : how many times longer it takes without the cache
    same_ids : the length of the common prefix of all runs; equal to new_tokens if all runs agree

    >>> result = compare([Run(True, 1.0, 4, [7, 8]), Run(False, 3.0, 7, [7, 8])])
    >>> result["with_cache"]["streams"], result["without_cache"]["streams"], result["ratio"], result["same_ids"]
    (4, 7, 3.0, 2)
    """
    cached, plain = [run for run in runs if run.use_cache], [run for run in runs if not run.use_cache]
    return {
        "new_tokens": len(runs[0].ids),
        "repeat": len(cached),
        "with_cache": summary(cached),
        "without_cache": summary(plain),
        "ratio": statistics.mean(run.seconds for run in plain) / statistics.mean(run.seconds for run in cached),
        "same_ids": min(common_prefix(runs[0].ids, run.ids) for run in runs),
    }


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The statistics of some runs. As in %%timeit, the standard deviation is that of the population."""
    seconds = [run.seconds for run in runs]
    mean = statistics.mean(seconds)
    return {
        "seconds": seconds,
        "mean_seconds": mean,
        "stdev_seconds": statistics.pstdev(seconds),
        "tokens_per_second": len(runs[0].ids) / mean,
        "streams": runs[0].streams,
    }
