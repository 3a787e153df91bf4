"""Records: the prompts of a corpus, and what each asks for.

A record is a JSON object with one prompt, "prompt", "messages" or "ids", and whatever else belongs to it: an "id",
options of its own, and the user's own keys, which are copied to the result. A record that cannot be computed becomes an
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
from ..text.arguments import check_ids, check_model, check_writes, checked, plain, shown, token_ids, whole_number
from ..text.chat_ids import check_messages
from .names import check_foreign, check_of_run, warn_of_names

PROMPTS = ("prompt", "messages", "ids")
# Options a record may set, with the defaults of `npllm.generate`.
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
TASKS = {  # the keys each task reads
    "generate": {*OPTIONS, "seed", LOGPROBS},
    "score": {"completion"},
    "embed": set[str](),
}
KNOWN = frozenset({*PROMPTS, "id"}.union(*TASKS.values()))
WHOLE = {"id", "max_new_tokens", "top_k", "seed", LOGPROBS}  # keys with whole numbers, which pandas writes as 1.0
ANSWERS = {  # the keys of each task's results: reserved
    "generate": {"text", "finish_reason", "top_logprobs"},
    "score": {"logprobs", "sum", "bits_per_byte", "greedy"},
    "embed": {"tokens", "file", "row", "vectors"},
}


class Task(NamedTuple):
    """What is done with every record."""

    name: str = "generate"  # or "score", "embed"
    options: Mapping[str, Any] = {}  # defaults for records that set none
    seed: int = 0  # combined with the id to derive each record's seed
    tap: str = ""  # embed: the name of the value
    at: str = "last"  # embed: the token, "last"; or "mean", "all"
    cache_dtype: str = "float32"  # generate, score: of the keys and values


class Line(NamedTuple):
    """A raw input record."""

    number: int  # from 1
    data: bytes  # JSON
    error: str = ""  # why the source cannot read it


class Job(NamedTuple):
    """A record that can be computed."""

    line: int
    id: str | int
    ids: list[int]  # of the whole text that goes through the model
    options: dict[str, Any]
    extra: dict[str, Any]  # the user's own keys
    first: int = 1  # score: the first token to be scored
    size: int = 0  # score: the bytes of the scored tokens; 0 if unknown


class Bad(NamedTuple):
    """A record that cannot be computed."""

    line: int
    id: str | int | None  # None: missing, invalid or a duplicate
    error: str

    def result(self) -> dict[str, Any]:
        """The line of the output."""
        return {"id": self.id, "error": self.error, "line": self.line}


def check_task(task: Task, lm: LM) -> Task:
    """Validate the task for this model. Raises UsageError for an option that is invalid, or that the task ignores."""
    if task.name not in TASKS:
        raise UsageError(f"task: expected one of {', '.join(TASKS)}, got {shown(task.name)}")
    whole_number("seed", task.seed, 0)
    unused = {*task.options} - TASKS[task.name]
    others = ("cache_dtype",) if task.name == "embed" else ("tap", "at")
    unused |= {name for name in others if getattr(task, name) != Task._field_defaults[name]}
    if task.name != "generate" and task.seed:
        unused.add("seed")
    if unused:
        raise UsageError(f"{min(unused)}: --task {task.name} has no such option")
    if task.name == "embed":
        check_model(lm)
        checked("at", task.at, str, lambda at: at in PLACES, " or ".join(PLACES))
        check_tap(lm, task.tap)
    else:
        check_writes(lm)
        options = {name: value for name, value in task.options.items() if name in OPTIONS}
        check_options(**options, cache_dtype=task.cache_dtype)
        if task.options.get(LOGPROBS) is not None:
            whole_number(LOGPROBS, task.options[LOGPROBS], 0, MOST_LOGPROBS)
    return task


def check_tap(lm: LM, name: str) -> None:
    """Raise UsageError unless a pass over one token has a value of this name, of the same width for every text."""
    seen: dict[str, Array] = {}
    transform([0], lm, tap=record(seen))
    such = f"such as {[*seen][-2]}"
    if not name:
        raise UsageError(f"tap: expected the name of a value with --task embed, {such}")
    check_patterns(name, seen, "tap")
    if name not in seen or name.endswith((".scores", ".weights")):
        raise UsageError(f"tap: expected the name of one value of a fixed width, {such}, got {name}")


def parsed(line: Line) -> dict[str, Any] | Bad:
    """The record of a line, with its id. Warns of keys that look like misspelt ones."""
    try:
        record = parse_json(line.data, Path("the record"))
        json.dumps(record, allow_nan=False)
        found = {**record, "id": id_of(record, line.number)}
    except ModelFileError as error:  # without the advice for models' files
        return Bad(line.number, None, line.error or str(error).partition("; ")[0])
    except UsageError as error:  # a ValueError, too
        return Bad(line.number, None, str(error))
    except ValueError:
        return Bad(line.number, None, "the record: expected finite numbers, got NaN or one beyond float64")
    warn_of_names(found, KNOWN)
    return Bad(line.number, found["id"], line.error) if line.error else found


def id_of(record: Mapping[str, Any], line: int) -> str | int:
    """The record's own id, or else the number of its line. Raises UsageError unless it is text or a whole number."""
    found = whole(plain(record.get("id")))
    if found is None:
        return line
    if isinstance(found, str) or (isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**128):
        return found
    raise UsageError(f"id: expected a text or a whole number, got {shown(found)}")


def whole(value: Any) -> Any:
    """A whole float as an int, if float64 represents it exactly; any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def job_of(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job | Bad:
    """The record as a job, or what is wrong with it."""
    try:
        identifier = id_of(record, line)
    except UsageError as error:
        return Bad(line, None, str(error))
    given = {name: whole(plain(value)) if name in WHOLE else value for name, value in record.items()}
    given = {name: value for name, value in given.items() if value is not None or name not in KNOWN - {"completion"}}
    warn_of_names(given, KNOWN)
    try:
        if taken := {*ANSWERS[task.name], "error", "line"} & given.keys():
            raise UsageError(f"{min(taken)}: reserved for results; rename this key")
        return MAKERS[task.name](lm, given | {"id": identifier}, line, task)
    except NpllmError as error:
        return Bad(line, identifier, str(error))


def to_generate(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A prompt to continue, with all its options."""
    check_of_run(record)
    check_foreign(record)
    ids = check_prompt(prompt_ids(lm, record), lm.config)
    options = {**OPTIONS, **task.options, **{name: record[name] for name in TASKS["generate"] if name in record}}
    logprobs = options.pop(LOGPROBS, None)
    options = check_options(**{"seed": seed_of(task.seed, record["id"]), **options})
    options["max_new_tokens"] = min(options["max_new_tokens"], lm.config.max_position_embeddings - len(ids))
    if logprobs is not None:
        options["top_logprobs"] = whole_number(LOGPROBS, logprobs, 0, MOST_LOGPROBS)
    return Job(line, record["id"], ids, options | {"cache_dtype": task.cache_dtype}, own_keys(record, task))


def to_score(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A text whose tokens are scored: "completion", given the prompt; without one, all tokens but the first."""
    check_of_run(record)
    ids = prompt_ids(lm, record)
    text, first, has_completion = record.get("prompt"), len(ids), "completion" in record
    if has_completion:
        text = checked("completion", record["completion"], str, bool, "a text that is not empty")
        ids = joined_ids(lm, record, ids, text)
    whole_text = not has_completion or first == 0
    first = 1 if whole_text else first
    if len(ids) <= first:
        raise UsageError(f"expected at least {first + 1} tokens, of which the first is not predicted, got {len(ids)}")
    check_prompt(ids[:-1], lm.config, new=0)
    ids = check_ids(ids, lm.config.vocab_size)
    size = 0 if text is None else bytes_after_first(lm, ids, text) if whole_text else len(text.encode())
    return Job(line, record["id"], ids, {}, own_keys(record, task), first, size)


def bytes_after_first(lm: LM, ids: list[int], text: str) -> int:
    """The bytes of a text without those of its first token, which is not scored; 0 if they are unknown.

    A prepended BOS token is the first where there is one, and not part of the text.
    """
    first = "" if lm.tokenizer is None or as_ids(lm, "") else lm.tokenizer.decode(ids[:1])
    return len(text.encode()) - len(first.encode()) if text.startswith(first) else 0


def joined_ids(lm: LM, record: Mapping[str, Any], prompt: list[int], completion: str) -> list[int]:
    """The ids of a prompt and its completion: those of the joined text if they begin with the prompt's; else the
    prompt's, and the completion's."""
    text = record.get("prompt")
    joined = [] if text is None else as_ids(lm, text + completion)
    if joined[: len(prompt)] == prompt and len(joined) > len(prompt):
        return joined
    start = len(as_ids(lm, ""))  # <s>, which the prompt has already
    return [*prompt, *as_ids(lm, completion)[start:]]


def to_embed(lm: LM, record: Mapping[str, Any], line: int, task: Task) -> Job:
    """A text whose values are collected."""
    ids = check_prompt(prompt_ids(lm, record), lm.config, new=0)
    return Job(line, record["id"], ids, {}, own_keys(record, task))


MAKERS = {"generate": to_generate, "score": to_score, "embed": to_embed}


def prompt_ids(lm: LM, record: Mapping[str, Any]) -> list[int]:
    """The ids of the record's one prompt."""
    given = [name for name in PROMPTS if name in record]
    if len(given) != 1:
        raise UsageError(f"expected one of {', '.join(PROMPTS)}, got {' and '.join(given) or 'none'}")
    value = record[given[0]]
    if given[0] == "prompt":
        return as_ids(lm, checked("prompt", value, str, lambda _: True, "a text"))
    if given[0] == "ids":
        return token_ids(value)
    if lm.tokenizer is None:
        raise ModelFileError("messages: the model has no tokenizer.json: expected one, because a chat needs it")
    check_messages(value)
    if not value:
        raise UsageError("messages: expected at least one, got none")
    return lm.tokenizer.chat_ids(value)


def own_keys(record: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Keys the task does not use: the user's own."""
    used = {*PROMPTS, *TASKS[task.name], "id"}
    return {name: value for name, value in record.items() if name not in used}


def seed_of(seed: int, identifier: str | int) -> int:
    """The seed of a record: it depends only on the run's seed and the record's id.

    >>> seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")
    (1244231897, 2213166982, 1248999530)
    """
    digest = hashlib.sha256(json.dumps([seed, identifier]).encode()).digest()
    return int.from_bytes(digest[:4])
