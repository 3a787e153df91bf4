"""The results of some records: continuations, scores of tokens, or vectors.

Texts are continued together, as in apps/batches.py, and each result is what its record would give alone. If one fails,
for instance because its logits are not finite, the rest are split in half, recursively, until it is isolated.

Source: "Choosing a single token from the probability distribution" (Figure 3-7) for scores; "The Components of the
Forward Pass" (Figures 3-4 to 3-6) for the values; Gao et al. 2021, "A framework for few-shot language model evaluation"
(the log-likelihood of a completion).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..apps.batches import Request, steps_of_all
from ..apps.evaluate import log_probabilities
from ..apps.generation import generation
from ..arrays import Array
from ..attention import attention
from ..cache import empty_cache
from ..devices.device import to_host
from ..devices.dtypes import dtype_like
from ..errors import NpllmError
from ..flash import flash_attention
from ..inspect.record import record
from ..lm import LM, on_device, transform
from ..loop import PREFILL_CHUNK, Step
from .records import Bad, Job, Task

ROWS = 32  # tokens scored at once: each takes several buffers of V float64 elements


class Result(NamedTuple):
    """The result of a record."""

    line: int
    answer: dict[str, Any]  # the line of the output
    vectors: np.ndarray | None = None  # embed
    tokens: int = 0  # computed: those of the prompt, and the new ones


def results(lm: LM, jobs: Sequence[Job], task: Task, batch_size: int | None = None) -> Iterator[Result]:
    """The result of every job, as they are finished."""
    left = {job.line: job for job in jobs}
    try:
        for result in WORK[task.name](lm, jobs, task, batch_size):
            del left[result.line]
            yield result
    except NpllmError as error:
        if len(jobs) == 1:
            yield Result(jobs[0].line, Bad(jobs[0].line, jobs[0].id, str(error)).result())
            return
        rest = [*left.values()]
        half = max(1, len(rest) // 2)
        for part in (rest[:half], rest[half:]):
            yield from results(lm, part, task, batch_size)


def generated(lm: LM, jobs: Sequence[Job], task: Task, batch_size: int | None) -> Iterator[Result]:
    """The continuations: "text", "ids", "finish_reason", and where asked "logprobs"."""
    steps: list[list[Step]] = [[] for _ in jobs]
    for index, step in steps_of_all(lm, [Request(job.ids, job.options) for job in jobs], batch_size):
        steps[index].append(step)
        if step.finish_reason:
            job, top = jobs[index], jobs[index].options.get("top_logprobs")
            found = generation(job.ids, steps[index], top)
            answer: dict[str, Any] = {"id": job.id, **job.extra, "text": found.text, "ids": found.ids}
            answer["finish_reason"] = found.finish_reason
            if top is not None:
                answer |= {"logprobs": found.logprobs, "top_logprobs": found.top_logprobs}
            steps[index] = []  # to free them
            yield Result(job.line, answer, tokens=len(job.ids) + len(found.ids))


def scored(lm: LM, jobs: Sequence[Job], task: Task, batch_size: int | None) -> Iterator[Result]:
    """The log-probability of each scored token, in nats: "logprobs"; their "sum"; "bits_per_byte", None if they are
    unknown; "greedy", whether every token was the most likely one."""
    for job in jobs:
        logprobs, greedy = token_scores(lm, job.ids, job.first, task.cache_dtype)
        total = math.fsum(logprobs)
        answer = {"id": job.id, **job.extra, "ids": job.ids[job.first :], "logprobs": logprobs, "sum": total}
        answer["bits_per_byte"] = -total / math.log(2) / job.size if job.size else None
        answer["greedy"] = greedy
        yield Result(job.line, answer, tokens=len(job.ids))


@np.errstate(all="ignore")
def token_scores(lm: LM, ids: Sequence[int], first: int, cache_dtype: str) -> tuple[list[float], bool]:
    """The log-probability of each token from `first` on, given those before it; and whether every token was the most
    likely one."""
    logprobs: list[float] = []
    greedy, read = True, len(ids) - 1  # the last token is predicted, and predicts nothing here
    like = lm.weights.norm
    cache = empty_cache(lm.config, read, like=like, dtype=dtype_like(cache_dtype, like))
    for begin in range(0, read, PREFILL_CHUNK):
        end = min(begin + PREFILL_CHUNK, read)
        kind = flash_attention if end - begin > 1 else attention
        chunk = on_device(list(ids[begin:end]), lm)
        hidden, _ = lm.transform(chunk, lm.weights, lm.config, cache, total_length=read, attention=kind)
        for start in range(max(first, begin + 1), end + 1, ROWS):  # the hidden state at i - 1 predicts token i
            stop = min(start + ROWS, end + 1)
            rows = log_probabilities(hidden[start - 1 - begin : stop - 1 - begin, :], lm, start)
            targets = np.asarray(ids[start:stop])
            logprobs += rows[np.arange(len(targets)), targets].tolist()
            greedy = greedy and bool(np.all(np.argmax(rows, axis=-1) == targets))
    return logprobs, greedy


def embedded(lm: LM, jobs: Sequence[Job], task: Task, batch_size: int | None) -> Iterator[Result]:
    """The value named by the task's tap, [rows, ...]: a row for the last token, the mean of all, or a row for each."""
    for job in jobs:
        seen: dict[str, Array] = {}
        transform(job.ids, lm, tap=record(seen, task.tap))
        value = np.moveaxis(to_host(seen[task.tap]).astype(np.float32, copy=False), -2, 0)  # [T, ...]
        rows = {"last": value[-1:], "mean": value.mean(axis=0, keepdims=True), "all": value}[task.at]
        answer = {"id": job.id, **job.extra, "tokens": len(job.ids)}
        yield Result(job.line, answer, np.ascontiguousarray(rows), len(job.ids))


WORK = {"generate": generated, "score": scored, "embed": embedded}
