"""npllm batch: all prompts of a file, with nothing lost and nothing done twice."""

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from array_api_compat import is_cupy_array
from tqdm import tqdm

from ..compiled.cpu import path_of
from ..corpus.journal import Journal
from ..corpus.memory import HELD, budget, most_bytes
from ..corpus.model_hash import model_hash
from ..corpus.on_ray import OnRay, Setup
from ..corpus.processes import Model, Processes
from ..corpus.records import LOGPROBS, OPTIONS, PLACES, TASKS, Task, check_task
from ..corpus.run import WINDOW, Limits, Numbered, check_limits, computed
from ..corpus.run import run as run_all
from ..corpus.source import Source, opened
from ..corpus.vectors import check_format
from ..corpus.work import Result
from ..devices.device import free_bytes
from ..devices.memory import available_bytes, peak_bytes
from ..devices.threads import threads
from ..devices.units import format_bytes
from ..errors import UsageError
from ..lm import LM
from ..text.arguments import whole_number
from ..version import __version__
from . import options, report

SOME_FAILED = 6
FEW = 64  # records: fewer are computed in this process, because others would take longer to start
ENGINES, FORMATS = ("local", "ray"), ("safetensors", "parquet")
DESCRIPTION = """\
Run all prompts of a file, many at once, and write a line for each result as it
is finished. After an interruption of any kind, the same command goes on where
it stopped.

IN is a .jsonl file with a record in each line, a .txt file with a prompt in
each line, a .parquet file, or - for records on stdin. A record is

  {"id": "a1", "prompt": "The capital of France is", "max_new_tokens": 20}

or has "messages" (a chat) or "ids" in place of "prompt". It may have options of
its own, under "choosing tokens" below; other keys are copied to its result.
A record that cannot be computed becomes {"id", "error", "line"}, and the exit
code is 6.

tasks:
  generate   continue each prompt: text, ids, finish_reason
  score      the log-probability of each token of the prompt, or of "completion"
             after it, in nats; their sum; bits per byte; whether it is greedy
  embed      the value named by --tap, in .safetensors or .parquet files beside OUT
"""
EXAMPLES = """\
examples:
  npllm batch prompts.jsonl -o answers.jsonl -n 50
  npllm batch texts.txt -o scores.jsonl --task score
  npllm batch texts.txt -o vectors.jsonl --task embed --tap layers.12.residual_after_feedforward --at mean
  npllm batch prompts.jsonl -o answers.jsonl --engine ray --workers 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("input", metavar="IN", help="the records")
    parser.add_argument("-o", "--output", metavar="OUT.jsonl", required=True, help="the results")
    parser.add_argument("--task", default="generate", metavar="TASK", help=f"{', '.join(TASKS)} (default: generate)")
    parser.add_argument("--tap", default="", metavar="NAME", help="embed: the value, see docs/taps.md")
    parser.add_argument("--at", default="last", metavar="WHERE", help=f"embed: {', '.join(PLACES)} (default: last)")
    parser.add_argument(
        "--format",
        default=FORMATS[0],
        metavar="NAME",
        help=f"embed: {' or '.join(FORMATS)} files (default: {FORMATS[0]})",
    )
    parser.add_argument("--ordered", action="store_true", help="write the results in the order of the input")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that fails")
    parser.add_argument("--logprobs", type=int, metavar="K", help="generate: with the K likeliest tokens of each step")
    group = parser.add_argument_group("where it runs (no result depends on it)")
    group.add_argument("--engine", default="local", metavar="NAME", help=f"{' or '.join(ENGINES)} (default: local)")
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes with the model (default: one per core if memory allows)"
    )
    group.add_argument("--address", metavar="A", help="ray: a cluster's address (default: this machine)")
    group.add_argument(
        "--memory", type=float, metavar="GB", help="what all processes may take (default: half of what is free)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="texts at once in each (default: up to 32)")
    group.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        metavar="N",
        help="records that are sorted by length (default: %(default)s)",
    )
    options.add_sampling_flags(parser, max_new_tokens=OPTIONS["max_new_tokens"], seed_is="0")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run all records, and return the exit code."""
    check(args)
    chosen = Task(args.task, given(args), args.seed or 0, args.tap, args.at)
    with opened(args.input) as source:
        lm = options.load_model(args)
        check_task(chosen, lm)
        model = Model(args.model, options.load_options(args), model_hash(lm))
        made_from = {
            "npllm": __version__,
            "input": source.fingerprint,
            "model": model.hash,
            "computed by": path_of(lm) or "a GPU",
            "task": chosen.name,
            **{name: value for name, value in chosen._asdict().items() if name != "name"},
            "format": args.format,
        }
        with closing(Journal(args.output, made_from)) as journal, ExitStack() as stack:
            total = sum(1 for _ in source.lines())
            before = len(journal.done) + len(journal.failed)
            tell(args, journal, before, total)
            engine = engine_for(args, lm, model, chosen, total - before)
            del lm  # other processes have it
            stack.callback(engine.close)
            return run_source(args, source, engine, journal, total)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for arguments that contradict each other, before a model is loaded."""
    if args.engine not in ENGINES:
        raise UsageError(f"--engine: expected {' or '.join(ENGINES)}, got {args.engine}")
    if args.format not in FORMATS:
        raise UsageError(f"--format: expected {' or '.join(FORMATS)}, got {args.format}")
    if args.format != FORMATS[0] and args.task != "embed":
        raise UsageError("--format: expected together with --task embed")
    check_format(args.format)
    if args.address is not None and args.engine != "ray":
        raise UsageError("--address: expected together with --engine ray")
    if args.memory is not None and not 0 < args.memory < 1e9:
        raise UsageError(f"--memory: expected gigabytes, more than 0, got {args.memory:g}")
    if args.workers is not None:
        whole_number("--workers", args.workers, 1, 10_000)
    check_limits(Limits(args.batch_size, args.window))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the command line that are not the defaults; only --task generate has any."""
    found = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) != OPTIONS[name]}
    return found | ({} if args.logprobs is None else {LOGPROBS: args.logprobs})


def tell(args: argparse.Namespace, journal: Journal, before: int, total: int) -> None:
    """Say what an earlier run has left."""
    if journal.cut:
        report.note(f"npllm: {args.output}: cut off {journal.cut} bytes of lines that are not whole")
    if before:
        report.note(f"npllm: {args.output}: {before} of {total} records are done; going on")


class Here(NamedTuple):
    """The engine of one process: this one."""

    lm: LM
    task: Task
    limits: Limits

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, as they come."""
        return computed(self.lm, records, self.task, self.limits)

    def close(self) -> None:
        """There is nothing to close."""


def engine_for(args: argparse.Namespace, lm: LM, model: Model, task: Task, left: int) -> Any:
    """The engine that the flags name, for so many records; says how much memory it takes."""
    total, own = total_bytes(args), peak_bytes() or 0
    if args.engine == "ray":
        limits = Limits(args.batch_size, args.window, None if args.memory is None else total)
        workers = args.workers or 1
        cores = args.threads or 1 if args.address else max(1, threads() // workers)
        report.note(f"npllm: {left} records in {workers} Ray workers")
        return OnRay(Setup(model, task, limits, workers, cores, path_of(lm)), args.address)
    gpu = free_bytes(lm.weights.norm) if is_cupy_array(lm.weights.norm) else None
    count = args.workers or workers_for(left, total, own, gpu is not None)
    if count == 1:
        limits = Limits(args.batch_size, args.window, budget(total, 1, own) if gpu is None else gpu // 2)
        where, bound = "this process", most_bytes(lm, task, limits.memory) + (own if gpu is None else 0)
        engine: Any = Here(lm, task, limits)
    else:
        shared = None if total is None else total - own
        limits = Limits(args.batch_size, args.window, budget(shared, count, own))
        engine = Processes(model, task, limits, count, max(1, threads() // count), left)
        where, bound = f"{count} processes", engine.bytes + own
    report.note(f"npllm: {left} records in {where}, with at most {format_bytes(bound)} of memory")
    return engine


def total_bytes(args: argparse.Namespace) -> int | None:
    """What all processes may take together; None if it is unknown how much is free."""
    free = available_bytes()
    if args.memory is not None:
        return int(args.memory * 1e9)
    return None if free is None else free // 2 + (peak_bytes() or 0)


def workers_for(left: int, total: int | None, own: int, gpu: bool) -> int:
    """How many processes are worth their start: one per thread, if there is memory for all of them."""
    if gpu or left < FEW:
        return 1
    fitting = threads() if total is None else (total - own) // (own + 4 * HELD)
    return max(1, min(threads(), left // FEW + 1, fitting))


def run_source(args: argparse.Namespace, source: Source, engine: Any, journal: Journal, total: int) -> int:
    """Run the records that have no result yet, with a progress bar and a summary."""
    before, failed, tokens, start = len(journal.done) + len(journal.failed), len(journal.failed), 0, time.monotonic()
    with tqdm(total=total, initial=before, unit=" records", disable=None, leave=False) as bar:
        for result in run_all(source.lines(), engine, journal, args.ordered, args.strict, args.format):
            failed += "error" in result.answer
            tokens += result.tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - start):.0f} tokens/s", refresh=False)
            bar.update()
    seconds = time.monotonic() - start
    report.note(
        f"npllm: {total} records, {failed} failed; {total - before} in this run, {tokens} tokens in {seconds:.1f} s"
        f" ({tokens / max(seconds, 1e-9):.0f} tokens/s)"
    )
    return SOME_FAILED if failed else 0
