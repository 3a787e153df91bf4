"""Records: the prompts of a corpus, and what each asks for.

A record is a JSON object with one prompt, "prompt", "messages" or "ids", and whatever else belongs to it: an "id",
options of its own, and keys of the user's, which are copied to the result. A record that cannot be computed becomes an
error in the output, and the others are computed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..arrays import Array
from ..errors import ModelFileError, NpllmError, UsageError
from ..inspect.record import record
from ..inspect.trace import check_patterns
from ..lm import LM, transform
from ..loop import as_ids
from ..options import check_options, check_prompt
from ..storage.json_file import parse_json
from ..text.arguments import check_ids, check_model, check_writes, checked, shown, whole_number

PROMPTS = ("prompt", "messages", "ids")
# What a record may choose for itself, and the defaults of `npllm.generate`.
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 100,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
}
LOGPROBS = "logprobs"
MOST_LOGPROBS = 100
PLACES = ("last", "mean", "all")
TASKS = {  # the keys of a record that mean something to each task
    "generate": {*OPTIONS, "seed", LOGPROBS},
    "score": {"completion"},
    "embed": set[str](),
}
ANSWERS = {  # the keys of each task's results, which no key of the user's may replace
    "generate": {"text", "finish_reason", "top_logprobs"},
    "score": {"logprobs", "sum", "bits_per_byte", "greedy"},
    "embed": {"tokens", "file", "row", "vectors"},
}


class Task(NamedTuple):
    """What is done with every record; `options` are for the records that have none of their own."""

    name: str = "generate"  # or "score", "embed"
    options: Mapping[str, Any] = {}
    seed: int = 0  # from which, with its id, each record's own seed follows
    tap: str = ""  # embed: the name of the value
    at: str = "last"  # embed: the token, "last"; or "mean", "all"


class Line(NamedTuple):
    """A record as the input has it."""

    number: int  # from 1
    data: bytes  # JSON


class Job(NamedTuple):
    """A record that can be computed."""

    line: int
    id: str | int
    ids: list[int]  # of the whole text that goes through the model
    options: dict[str, Any]
    kept: dict[str, Any]  # the user's own keys
    first: int = 1  # score: the first token to be scored
    size: int = 0  # score: the bytes of the scored text; 0 if unknown


class Bad(NamedTuple):
    """A record that cannot be computed."""

    line: int
    id: str | int | None  # None: it has none of its own
    error: str

    def result(self) -> dict[str, Any]:
        """The line of the output."""
        return {"id": self.id, "error": self.error, "line": self.line}


def check_task(task: Task, lm: LM) -> Task:
    """The task, if the model can do it. Raises UsageError for a wrong one, or one that needs another kind of model."""
    if task.name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}, got {shown(task.name)}")
    for name in task.options:
        if name not in TASKS[task.name]:
            raise UsageError(f"{name}: --task {task.name} has no such option")
    if task.name == "embed":
        check_model(lm)
        checked("at", task.at, str, lambda at: at in PLACES, " or ".join(PLACES))
        check_tap(lm, task.tap)
    else:
        check_writes(lm)
        check_options(**{name: value for name, value in task.options.items() if name in OPTIONS})
        if task.options.get(LOGPROBS) is not None:
            whole_number(LOGPROBS, task.options[LOGPROBS], 0, MOST_LOGPROBS)
    if task.name != "embed" and task.tap:
        raise UsageError(f"tap: --task {task.name} has no such option")
    whole_number("seed", task.seed, 0)
    return task


def check_tap(lm: LM, name: str) -> None:
    """Raise UsageError unless a pass over one token has a value of this name, as wide for every text."""
    seen: dict[str, Array] = {}
    transform([0], lm, tap=record(seen))
    check_patterns(name, seen, "tap")
    if name not in seen or name.endswith((".scores", ".weights")):
        raise UsageError(f"tap: expected the name of one value of a fixed width, such as {[*seen][-2]}, got {name}")


def parsed(line: Line) -> dict[str, Any] | Bad:
    """The record of a line."""
    try:
        record = parse_json(line.data, Path("the record"))
    except ModelFileError as error:
        return Bad(line.number, None, str(error).removesuffix("; download the file again"))
    found = record.get("id", line.number)
    if isinstance(found, str) or (isinstance(found, int) and not isinstance(found, bool)):
        return {**record, "id": found}
    return Bad(line.number, None, f"id: expected a text or a whole number, got {shown(found)}")


def job_of(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job | Bad:
    """The record as a job, or what is wrong with it."""
    try:
        if taken := sorted({*ANSWERS[task.name], "error", "line"} & record.keys()):
            raise UsageError(f"{taken[0]}: expected another name for this key, which results have themselves")
        return {"generate": to_generate, "score": to_score, "embed": to_embed}[task.name](lm, record, line, task)
    except NpllmError as error:
        return Bad(line, record["id"], str(error))


def to_generate(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A prompt to continue, with all its options."""
    ids = check_prompt(prompt_ids(lm, record), lm.config)
    how = {**OPTIONS, **task.options, **{name: record[name] for name in TASKS["generate"] if name in record}}
    logprobs = how.pop(LOGPROBS, None)
    if how.get("seed") is None:
        how["seed"] = seed_of(task.seed, record["id"])
    how = check_options(**how)
    how["max_new_tokens"] = min(how["max_new_tokens"], lm.config.max_position_embeddings - len(ids))
    if logprobs is not None:
        how["top_logprobs"] = whole_number(LOGPROBS, logprobs, 0, MOST_LOGPROBS)
    return Job(line, record["id"], ids, how, kept(record, task))


def to_score(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A text whose tokens are scored: "completion" where there is one, given the prompt; else all but the first."""
    ids = prompt_ids(lm, record)
    completion, first, text = record.get("completion"), 1, record.get("prompt")
    if completion is not None:
        text = checked("completion", completion, str, bool, "a text that is not empty")
        first = max(1, len(ids))
        ids = joined_ids(lm, record, ids, text)
    if len(ids) <= first:
        raise UsageError(f"expected at least {first + 1} tokens, of which the first is not predicted, got {len(ids)}")
    check_prompt(ids[:-1], lm.config, new=0)
    ids = check_ids(ids, lm.config.vocab_size)
    return Job(
        line, record["id"], ids, {}, kept(record, task), first, len(text.encode()) if isinstance(text, str) else 0
    )


def joined_ids(lm: LM, record: Mapping[str, Any], prompt: list[int], completion: str) -> list[int]:
    """The ids of a prompt and its completion: of the joined text if its ids begin with the prompt's, as
    lm-evaluation-harness does; else the prompt's ids and the completion's."""
    text = record.get("prompt")
    whole = as_ids(lm, text + completion) if isinstance(text, str) else []
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return whole
    start = len(as_ids(lm, ""))  # <s>, which the prompt has already
    return [*prompt, *as_ids(lm, completion)[start:]]


def to_embed(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A text whose values are collected."""
    ids = check_prompt(prompt_ids(lm, record), lm.config, new=0)
    return Job(line, record["id"], ids, {}, kept(record, task))


def prompt_ids(lm: LM, record: Mapping[str, Any]) -> list[int]:
    """The ids of the record's one prompt."""
    given = [name for name in PROMPTS if record.get(name) is not None]
    if len(given) != 1:
        raise UsageError(f"expected one of {', '.join(PROMPTS)}, got {' and '.join(given) or 'none'}")
    value = record[given[0]]
    if given[0] == "prompt":
        return as_ids(lm, checked("prompt", value, str, lambda _: True, "a text"))
    if given[0] == "ids":
        return as_ids(lm, checked("ids", value, list, lambda _: True, "a list of token ids"))
    if lm.tokenizer is None:
        raise ModelFileError("messages: the model has no tokenizer.json: expected one, because a chat needs it")
    return lm.tokenizer.chat_ids(checked("messages", value, list, bool, "a list of messages"))


def kept(record: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The keys that mean nothing to the task: the user's own."""
    used = {*PROMPTS, *TASKS[task.name], "id"}
    return {name: value for name, value in record.items() if name not in used}


def seed_of(seed: int, identifier: str | int) -> int:
    """The seed of a record: it depends on nothing but the run's seed and the record's id.

    >>> seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")
    (1244231897, 2213166982, 1248999530)
    """
    digest = hashlib.sha256(json.dumps([seed, identifier]).encode()).digest()
    return int.from_bytes(digest[:4])
