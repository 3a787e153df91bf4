"""npllm batch: run a model over a file of records, resumably."""

import argparse
import time
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from ..compiled.cpu import path_of
from ..corpus.journal import Journal, output_path
from ..corpus.model_hash import model_hash
from ..corpus.processes import Model
from ..corpus.records import LOGPROBS, MOST_LOGPROBS, OPTIONS, PLACES, TASKS, Task, check_task
from ..corpus.run import WINDOW, Limits, check_limits
from ..corpus.run import run as run_all
from ..corpus.source import Source, opened
from ..corpus.vectors import check_format
from ..errors import UsageError
from ..options import check_options
from ..storage.ending import orderly_end
from ..text.arguments import whole_number
from ..version import __version__
from . import options, report
from .engines import ENGINES, counted, engine_for

SOME_FAILED = 6
MOST_MEMORY = 1_000_000  # gigabytes
PROGRESS = 30.0  # seconds between lines of progress where there is no bar
FORMATS = ("safetensors", "parquet")
DESCRIPTION = """\
Run every prompt in a file in batches, writing each result as it finishes.
After any interruption, rerun the same command to resume.

IN is a .jsonl file with a record in each line, a .txt file with a prompt in
each line, a .parquet file, or - for records on stdin. A record is

  {"id": "a1", "prompt": "The capital of France is", "max_new_tokens": 20}

or has "messages" (a chat) or "ids" in place of "prompt". Its own options replace
those of the command, and are written with underscores: max_new_tokens,
temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, logprobs.
Other keys are copied to its result. A record that fails becomes
{"id", "error", "line"}, the others are computed, and the exit code is 6.

tasks:
  generate   continue each prompt: text, ids, finish_reason
  score      the log-probability of each token of the prompt, or of "completion"
             after it, in nats; their sum; bits per byte; whether greedy decoding
             would produce them
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
    parser.add_argument("--tap", metavar="NAME", help="embed: the value, see docs/taps.md")
    parser.add_argument("--at", metavar="WHERE", help=f"embed: {', '.join(PLACES)} (default: last)")
    parser.add_argument(
        "--format",
        default=FORMATS[0],
        metavar="NAME",
        help=f"embed: {' or '.join(FORMATS)} files (default: {FORMATS[0]})",
    )
    parser.add_argument("--ordered", action="store_true", help="write the results in the order of the input")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that fails")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="when resuming, recompute records that failed, e.g. for lack of memory",
    )
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="generate: add log-probabilities and the K most likely tokens per step",
    )
    group = parser.add_argument_group(
        "where it runs", "None of this affects results, except that a record that exceeds the memory limit fails."
    )
    group.add_argument("--engine", default="local", metavar="NAME", help=f"{' or '.join(ENGINES)} (default: local)")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes (default: one per core if memory allows; with --engine ray 1)",
    )
    group.add_argument("--address", metavar="A", help="ray: a cluster's address (default: this machine)")
    group.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory limit for all processes together; with ray, per machine (default: half of the free memory; with"
        " ray, what Ray reports)",
    )
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="texts per batch in each process (default: up to 32)"
    )
    group.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        metavar="N",
        help="records read and sorted by length at a time (default: %(default)s)",
    )
    options.add_cache_flag(parser)
    options.add_sampling_flags(parser, max_new_tokens=OPTIONS["max_new_tokens"], seed_is="0")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run all records, and return the exit code."""
    check(args)
    if args.input == "-":
        with options.readable_stdin():
            pass
    with orderly_end(), opened(args.input) as source:
        total = source.count()
        lm = options.load_model(args)
        task = Task(
            args.task, command_options(args), args.seed or 0, args.tap or "", args.at or PLACES[0], args.cache_dtype
        )
        check_task(task, lm)
        model = Model(args.model, options.load_options(args), model_hash(lm))
        made_from = {
            "npllm": __version__,
            "input": source.fingerprint,
            "model": model.hash,
            "backend": path_of(lm) or "a GPU",
            "task": task.name,
            **{name: value for name, value in task._asdict().items() if name != "name"},
            "format": args.format,
            "ordered": args.ordered,
        }
        with Journal(args.output, made_from, args.retry_failed) as journal, ExitStack() as stack:
            done = len(journal.done) + len(journal.failed)
            note_earlier(args, journal, done, total)
            engine = engine_for(args, lm, model, task, total - done, total)
            del lm  # the engine of this process keeps it; others load their own
            stack.callback(engine.close)
            return run_source(args, source, engine, journal, total)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for an invalid argument, or one that does not belong to the task, before a model is loaded."""
    for flag, value, known in (
        ("--engine", args.engine, ENGINES),
        ("--task", args.task, TASKS),
        ("--format", args.format, FORMATS),
        ("--at", args.at or PLACES[0], PLACES),
    ):
        if value not in known:
            raise UsageError(f"{flag}: expected {' or '.join(known)}, got {value}")
    for name in command_options(args):
        if name not in TASKS[args.task]:
            raise UsageError(f"--{name.replace('_', '-')}: --task {args.task} has no such option")
    options.sampling(args)  # for its checks
    if args.logprobs is not None:
        whole_number("--logprobs", args.logprobs, 0, MOST_LOGPROBS)
    if args.seed is not None and args.task != "generate":
        raise UsageError(f"--seed: --task {args.task} has no such option")
    if args.task == "embed" and not args.tap:
        raise UsageError("--tap: required with --task embed, for example --tap layers.12.residual_after_feedforward")
    for flag, given in (
        ("--tap", args.tap is not None),
        ("--at", args.at is not None),
        ("--format", args.format != FORMATS[0]),
    ):
        if given and args.task != "embed":
            raise UsageError(f"{flag}: expected together with --task embed")
    check_format(args.format)
    if args.address is not None and args.engine != "ray":
        raise UsageError("--address: expected together with --engine ray")
    check_options(cache_dtype=args.cache_dtype)
    if args.cache_dtype != "float32" and args.task == "embed":
        raise UsageError("--cache-dtype: --task embed has no such option")
    if args.memory is not None and not 0 < args.memory <= MOST_MEMORY:
        raise UsageError(f"--memory: expected gigabytes, more than 0 and at most {MOST_MEMORY}, got {args.memory:g}")
    if args.workers is not None:
        whole_number("--workers", args.workers, 1, 10_000)
    check_limits(Limits(args.batch_size, args.window))
    output_path(args.output)


def command_options(args: argparse.Namespace) -> dict[str, Any]:
    """The command's options for every record, without those that are the defaults."""
    found = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) != OPTIONS[name]}
    if "stop" in found:
        found["stop"] = [options.utf8("--stop", text) for text in args.stop]
    return found | ({} if args.logprobs is None else {LOGPROBS: args.logprobs})


def note_earlier(args: argparse.Namespace, journal: Journal, done: int, total: int) -> None:
    """Report what an earlier run left."""
    if journal.cut:
        report.note(f"npllm: {args.output}: removed {journal.cut} bytes of incomplete lines")
    if journal.removed:
        last = "; their results come after those already written" if args.ordered else ""
        report.note(f"npllm: {args.output}: {counted(journal.removed)} that failed will be computed again{last}")
    if done:
        failed = f", of which {len(journal.failed)} failed (see --retry-failed)" if journal.failed else ""
        report.note(f"npllm: {args.output}: {done} of {counted(total)} done{failed}; resuming")


def run_source(args: argparse.Namespace, source: Source, engine: Any, journal: Journal, total: int) -> int:
    """Run the records without a result, with a progress bar (or a line now and then) and a summary."""
    before, failed, tokens = len(journal.done) + len(journal.failed), len(journal.failed), 0
    start = noted = time.monotonic()
    with tqdm(total=total, initial=before, unit=" records", disable=None, leave=False) as bar:
        found = run_all(source.lines(), engine, journal, args.ordered, args.strict, args.format)
        for done, result in enumerate(found, before + 1):
            failed += "error" in result.answer
            tokens += result.tokens
            now = time.monotonic()
            speed = f"{tokens / max(now - start, 1e-9):.0f} tokens/s"
            bar.set_postfix_str(speed, refresh=False)
            bar.update()
            if bar.disable and now - noted > PROGRESS:
                noted = now
                report.note(f"npllm: {done} of {counted(total)}, {speed}")
    seconds = time.monotonic() - start
    report.note(
        f"npllm: {counted(total)}, {failed} failed; {total - before} in this run, {tokens} tokens in {seconds:.1f} s"
        f" ({tokens / max(seconds, 1e-9):.0f} tokens/s)"
    )
    return SOME_FAILED if failed else 0
