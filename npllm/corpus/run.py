"""All records of a corpus: read, computed window by window, and written as they are finished.

A window is a few hundred records. They are sorted by length, longest first: texts that are computed together are then
of about the same length, and if one does not fit into memory, it fails early.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from ..errors import NotEnoughMemoryError, NpllmError, UsageError
from ..lm import LM
from ..text.arguments import whole_number
from .journal import Journal
from .memory import check_fits, length, listed, texts_within
from .records import LOGPROBS, OPTIONS, Bad, Job, Line, Task, check_task, id_of, job_of, parsed
from .vectors import indexed
from .work import Result, results

WINDOW = 256  # records
Numbered = tuple[int, dict[str, Any]]  # a record, with its line
Engine = Callable[[Iterable[Numbered]], Iterator[Result]]


class Limits(NamedTuple):
    """How many records are held and computed at once. Results do not depend on these; a record that needs more than
    `memory` fails."""

    batch_size: int | None = None  # texts at once; None: as many as a compiled step takes
    window: int = WINDOW
    memory: int | None = None  # bytes, excluding the weights; None: no limit


class RecordError(NpllmError, ValueError):
    """A record failed, and the run is strict."""

    exit_code = 6


def batch(
    lm: LM,
    records: Iterable[Mapping[str, Any] | str],
    task: str = "generate",
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = (),
    logprobs: int | None = None,
    seed: int = 0,
    tap: str = "",
    at: str = "last",
    cache_dtype: str = "float32",
    batch_size: int | None = None,
    window: int = WINDOW,
    memory: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The results of many records, in completion order: dicts as in the output of `npllm batch`.

    Parameters
    ----------
    records : dicts with a "prompt", "messages" or "ids", and perhaps an "id" (by default the record's number, from 1),
        options of their own, and keys that are copied to the result; or texts, which are prompts
    task : "generate"; "score", each token of the prompt, or of "completion" after it; "embed", the value named `tap`
    max_new_tokens, ... stop : of records that have no such option, as in `npllm.generate`
    logprobs : generate: add the log-probability of each new token, and of the `logprobs` most likely tokens
    seed : each record's seed is derived from this and its id, so that no result depends on the others
    tap, at : embed: the value's name, and the tokens, "last", "mean" (of all) or "all"; the result has it in "vectors"
    cache_dtype : generate, score: of the keys and values, as in `npllm.generate`
    batch_size : texts at once, by default up to 32
    window : records read and sorted by length at a time
    memory : bytes that the computation may take, excluding the weights; a record that needs more fails

    Raises
    ------
    UsageError, ModelFileError : an argument is invalid, or the model cannot do it; the call checks them. A record that
        cannot be computed becomes {"id", "error", "line"}, and the others are computed

    >>> import npllm
    >>> records = [{"id": "a", "prompt": "The capital of France is"}, {"id": "b", "ids": []}]
    >>> for answer in npllm.batch(npllm.load(), records, max_new_tokens=1):
    ...     print(answer)
    {'id': 'b', 'error': 'the prompt is empty: expected at least one token', 'line': 2}
    {'id': 'a', 'text': ' Paris', 'ids': [7042], 'finish_reason': 'length'}
    """
    options = {name: value for name, value in locals().items() if name in OPTIONS and value != OPTIONS[name]}
    options = {name: value for name, value in options.items() if name != "stop" or value not in ((), None)}
    options |= {} if logprobs is None else {LOGPROBS: logprobs}
    chosen = check_task(Task(task, options, seed, tap, at, cache_dtype), lm)
    limits = check_limits(Limits(batch_size, window, memory))
    if isinstance(records, Mapping | str):
        raise UsageError(
            f"records: expected several dicts or texts, got one {type(records).__name__}: put it in a list"
        )
    found = all_results(lambda jobs: computed(lm, jobs, chosen, limits), identified(records))
    return (each.answer if each.vectors is None else each.answer | {"vectors": each.vectors} for each in found)


def identified(records: Iterable[Mapping[str, Any] | str]) -> Iterator[Numbered | Bad]:
    """The records of `batch`, each with a unique id."""
    first: dict[str | int, int] = {}
    for number, given in enumerate(records, 1):
        if not isinstance(given, Mapping | str):
            raise UsageError(f"records: expected dicts or texts, got {type(given).__name__} as number {number}")
        record = {"prompt": given} if isinstance(given, str) else given
        try:
            name = id_of(record, number)
        except UsageError as error:
            yield Bad(number, None, str(error))
        else:
            yield repeated(first, name, number) or (number, {**record, "id": name})


def check_limits(limits: Limits) -> Limits:
    """The limits. Raises UsageError for one that is not a positive whole number."""
    for name, value in limits._asdict().items():
        if value is not None:
            whole_number(name, value)
    return limits


def computed(lm: LM, records: Iterable[Numbered], task: Task, limits: Limits) -> Iterator[Result]:
    """The results of the records, window by window, as they are finished."""
    rest = iter(records)
    while group := list(islice(rest, limits.window)):
        jobs: list[Job] = []
        for line, record in group:
            job = fitting_job(lm, record, line, task, limits)
            if isinstance(job, Bad):
                yield Result(line, job.result())
            else:
                jobs.append(job)
        jobs.sort(key=length, reverse=True)
        if jobs:
            texts = texts_within(lm, task, length(jobs[0]), limits.memory, max(map(listed, jobs)))
            yield from results(lm, jobs, task, texts if limits.batch_size is None else min(texts, limits.batch_size))


def fitting_job(lm: LM, record: Mapping[str, Any], line: int, task: Task, limits: Limits) -> Job | Bad:
    """The record as a job that fits into memory, or what is wrong with it."""
    job = job_of(lm, record, line, task)
    if not isinstance(job, Bad):
        try:
            check_fits(lm, task, job, limits.memory)
        except NotEnoughMemoryError as error:
            return Bad(line, job.id, str(error))
    return job


def pending(lines: Iterable[Line], journal: Journal) -> Iterator[Numbered | Bad]:
    """Records without a result, parsed; those with a duplicate id as Bad."""
    first: dict[str | int, int] = {}
    for line in lines:
        record = parsed(line)
        if not isinstance(record, Bad):
            record = repeated(first, record["id"], line.number) or record
        if isinstance(record, Bad):
            if line.number not in journal.failed:
                yield record
        elif record["id"] not in journal.done and line.number not in journal.failed:
            yield line.number, record


def repeated(first: dict[str | int, int], name: str | int, line: int) -> Bad | None:
    """The error of a record if an earlier one has its id.

    first : the line of each id so far, to which this one is added
    """
    earlier = first.setdefault(name, line)
    if earlier == line:
        return None
    number = ", whose number it is" if name == earlier else ""  # the id of a record without one
    return Bad(line, None, f"id: expected a unique one, got {name!r:.60}, already used by line {earlier}{number}")


def all_results(engine: Engine, records: Iterable[Numbered | Bad], order: deque[int] | None = None) -> Iterator[Result]:
    """The engine's results, interleaved with errors for records that never reach it.

    order : filled with each record's line number before its result is yielded
    """
    bad: list[Result] = []

    def good() -> Iterator[Numbered]:  # the engine draws from it
        for one in records:
            number = one.line if isinstance(one, Bad) else one[0]
            if order is not None:
                order.append(number)
            if isinstance(one, Bad):
                bad.append(Result(number, one.result()))
            else:
                yield one

    for result in engine(good()):
        while bad:
            yield bad.pop(0)
        yield result
    yield from bad


def run(
    lines: Iterable[Line],
    engine: Engine,
    journal: Journal,
    ordered: bool = False,
    strict: bool = False,
    kind: str = "safetensors",
) -> Iterator[Result]:
    """Compute all records without a result, and write the results; yields each once it is in the output.

    ordered : write them in the order of the input; a result then waits for those before it. Vectors do not wait
    strict : raise RecordError for the first record that fails, or if one has failed before
    kind : of the files of vectors, "safetensors" or "parquet"
    """
    if strict and journal.failed:
        raise RecordError(
            f"{journal.path}: {len(journal.failed)} of its records failed; --retry-failed computes them again"
        )
    order = deque[int]() if ordered else None
    found = all_results(engine, pending(lines, journal), order)
    groups = indexed(until_error(found) if strict else found, journal.path, journal.files, kind)
    if order is not None:
        groups = ([result] for result in in_order(chain.from_iterable(groups), order))
    for group in groups:
        journal.write([result.answer for result in group])
        yield from group


def until_error(results: Iterable[Result]) -> Iterator[Result]:
    """The results. Raises RecordError in place of the first error."""
    for result in results:
        if "error" in result.answer:
            raise RecordError(f"line {result.line}: {result.answer['error']}")
        yield result


def in_order(results: Iterable[Result], order: deque[int]) -> Iterator[Result]:
    """The results in the order of their lines, each held until those before it have come."""
    waiting: dict[int, Result] = {}
    for result in results:
        waiting[result.line] = result
        while order and order[0] in waiting:
            yield waiting.pop(order.popleft())
