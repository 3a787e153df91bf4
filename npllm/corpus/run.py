"""All records of a corpus: read, computed window by window, and written as they are finished.

A window is some hundred records. They are sorted by length, longest first: texts that are computed together are then of
about the same length, and if one does not fit into memory, that shows at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..errors import NotEnoughMemoryError, UsageError
from ..lm import LM
from ..text.arguments import whole_number
from .journal import Journal
from .memory import check_fits, length, texts_within
from .records import LOGPROBS, OPTIONS, Bad, Job, Line, Task, check_task, job_of, parsed
from .vectors import indexed
from .work import Result, results

WINDOW = 256  # records
Numbered = tuple[int, dict[str, Any]]  # a record, with its line
Engine = Callable[[Iterable[Numbered]], Iterator[Result]]


class Limits(NamedTuple):
    """How many records are held and computed at once. No result depends on it."""

    batch_size: int | None = None  # texts at once; None: as many as a compiled step takes
    window: int = WINDOW
    memory: int | None = None  # bytes beside the weights; None: any number


def batch(
    lm: LM,
    records: Iterable[Mapping[str, Any]],
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
    batch_size: int | None = None,
    window: int = WINDOW,
    memory: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The results of many records, in the order in which they are finished: dicts as in the output of `npllm batch`.

    Parameters
    ----------
    records : dicts with a "prompt", "messages" or "ids", and perhaps an "id" (by default the record's number, from 1),
        options of their own, and keys that are copied to the result
    task : "generate"; "score", each token of the prompt, or of "completion" after it; "embed", the value named `tap`
    max_new_tokens, ... stop : of records that have no such option, as in `npllm.generate`
    logprobs : generate: with the log-probability of each new token, and of so many of the likeliest
    seed : from it and its id follows the seed of each record, so that no result depends on the others
    tap, at : embed: the value's name, and the tokens, "last", "mean" (of all) or "all"; the result has it in "vectors"
    batch_size : texts at once, by default up to 32
    window : records that are sorted by length
    memory : bytes that the computation may take beside the weights; a record that needs more fails

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
    given = {name: value for name, value in locals().items() if name in OPTIONS and value != OPTIONS[name]}
    given = {name: value for name, value in given.items() if name != "stop" or value not in ((), None)}
    given |= {} if logprobs is None else {LOGPROBS: logprobs}
    chosen = check_task(Task(task, given, seed, tap, at), lm)
    limits = check_limits(Limits(batch_size, window, memory))

    def numbered() -> Iterator[Numbered]:
        for number, record in enumerate(records, 1):
            if not isinstance(record, Mapping):
                raise UsageError(f"records: expected dicts, got {type(record).__name__} as number {number}")
            yield number, {"id": number, **record}

    found = computed(lm, numbered(), chosen, limits)
    return (each.answer if each.vectors is None else each.answer | {"vectors": each.vectors} for each in found)


def check_limits(limits: Limits) -> Limits:
    """The limits. Raises UsageError for one that is no whole number above 0."""
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
            texts = texts_within(lm, task, length(jobs[0]), limits.memory)
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
    """The records without a result: parsed, each with an id that no other has."""
    first: dict[str | int, int] = {}
    for line in lines:
        record = parsed(line)
        if not isinstance(record, Bad) and first.setdefault(record["id"], line.number) != line.number:
            taken = f"{record['id']!r:.60}, as in line {first[record['id']]}"
            record = Bad(line.number, None, f"id: expected one that no other record has, got {taken}")
        if isinstance(record, Bad):
            if line.number not in journal.failed:
                yield record
        elif record["id"] not in journal.done and line.number not in journal.failed:
            yield line.number, record


def run(
    lines: Iterable[Line],
    engine: Engine,
    journal: Journal,
    ordered: bool = False,
    strict: bool = False,
    kind: str = "safetensors",
) -> Iterator[Result]:
    """Compute all records without a result, and write the results; yields each when it is in the output.

    ordered : write them in the order of the input; a result then waits for those before it
    strict : raise UsageError for the first record that fails
    kind : of the files of vectors, "safetensors" or "parquet"
    """
    order: list[int] = []  # the lines that are being computed
    bad: list[Result] = []

    def good() -> Iterator[Numbered]:
        for one in pending(lines, journal):
            number = one.line if isinstance(one, Bad) else one[0]
            order.append(number)
            if isinstance(one, Bad):
                bad.append(Result(number, one.result()))
            else:
                yield one

    def all_results() -> Iterator[Result]:
        for result in engine(good()):
            while bad:
                yield bad.pop(0)
            yield result
        yield from bad

    found = all_results()
    for group in indexed(in_order(found, order) if ordered else found, journal.path, journal.files, kind):
        for result in group:
            if strict and "error" in result.answer:
                raise UsageError(f"line {result.line}: {result.answer['error']}")
        journal.write([result.answer for result in group])
        yield from group


def in_order(results: Iterable[Result], order: list[int]) -> Iterator[Result]:
    """The results in the order of their lines, each held until those before it have come."""
    waiting: dict[int, Result] = {}
    begun = 0
    for result in results:
        waiting[result.line] = result
        while begun < len(order) and order[begun] in waiting:
            yield waiting.pop(order[begun])
            begun += 1
