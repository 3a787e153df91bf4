"""Where npllm batch runs: in this process, in several, or on Ray, and how much memory they may take."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from array_api_compat import is_cupy_array

from ..compiled.cpu import path_of
from ..corpus.memory import OVERHEAD, RECORD, REMEDY, budget, least_bytes, most_bytes
from ..corpus.on_ray import OnRay, Setup
from ..corpus.processes import Model, Processes
from ..corpus.records import Task
from ..corpus.run import Limits, Numbered, computed
from ..corpus.work import Result
from ..devices.device import free_bytes
from ..devices.memory import available_bytes, check_memory, peak_bytes
from ..devices.threads import threads
from ..devices.units import format_bytes
from ..errors import UsageError
from ..lm import LM
from ..storage.paths import user_path
from . import report

ENGINES = ("local", "ray")
FEW = 64  # records: with fewer, starting processes would take longer than computing them


def counted(count: int) -> str:
    """A count with its noun: "1 record", "2 records"."""
    return f"{count} record{'' if count == 1 else 's'}"


class Here(NamedTuple):
    """The engine of one process: this one."""

    lm: LM
    task: Task
    limits: Limits

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, in completion order."""
        return computed(self.lm, records, self.task, self.limits)

    def close(self) -> None:
        """There is nothing to close."""


def engine_for(args: argparse.Namespace, lm: LM, model: Model, task: Task, left: int, total: int) -> Any:
    """The engine that the flags name, for `left` of `total` records; says how much memory it takes."""
    limits = Limits(args.batch_size, args.window)
    if not left:
        return Here(lm, task, limits)
    if args.engine == "ray":
        return on_ray(args, lm, model, task, limits, left)
    return local(args, lm, model, task, limits, left, total)


def on_ray(args: argparse.Namespace, lm: LM, model: Model, task: Task, limits: Limits, left: int) -> OnRay:
    """The engine "ray", started: what comes after it may draw a progress bar."""
    workers = args.workers or 1
    cores = (args.threads or 1) if args.address else max(1, threads() // workers)
    most = "Ray's memory on each machine" if args.memory is None else f"{args.memory:g} GB on each machine"
    report.note(f"npllm: {counted(left)} in {workers} Ray worker{'' if workers == 1 else 's'}, with at most {most}")
    limits = limits._replace(memory=None if args.memory is None else int(args.memory * 1e9))
    if args.model and user_path(args.model, args.model).exists():  # a cluster's workers run in other folders
        model = model._replace(name=str(user_path(args.model, args.model).resolve()))
    engine = OnRay(Setup(model, task, limits, workers, cores, path_of(lm)), args.address)
    engine.start()
    return engine


def local(
    args: argparse.Namespace, lm: LM, model: Model, task: Task, limits: Limits, left: int, total: int
) -> Here | Processes:
    """The engine "local". Raises NotEnoughMemoryError if not even the shortest record would fit."""
    least = least_bytes(lm, task)
    gpu = free_bytes(lm.weights.norm) if is_cupy_array(lm.weights.norm) else None
    if gpu is not None:
        if args.workers not in (None, 1):
            raise UsageError(f"--workers: expected 1 on a GPU, got {args.workers}; several GPUs: --engine ray")
        check_memory({"for the shortest record": least}, gpu // 2, REMEDY)
        limits = limits._replace(memory=gpu // 2)
        engine: Here | Processes = Here(lm, task, limits)
        where, bound = "this process", most_bytes(lm, task, limits.memory, args.batch_size)
    else:
        memory, own = total_bytes(args), (peak_bytes() or 0) + RECORD * total
        count = args.workers or workers_for(left, memory, own, least)
        if count == 1:
            limits = limits._replace(memory=budget(memory, 1, own, least))
            engine = Here(lm, task, limits)
            where, bound = "this process", own + most_bytes(lm, task, limits.memory, args.batch_size)
        else:
            limits = limits._replace(memory=budget(None if memory is None else max(0, memory - own), count, own, least))
            engine = Processes(model, task, limits, count, max(1, threads() // count), left)
            where, bound = f"{count} processes", own + engine.bytes
    report.note(f"npllm: {counted(left)} in {where}, with at most {format_bytes(bound)} of memory")
    return engine


def total_bytes(args: argparse.Namespace) -> int | None:
    """What all processes may take together; None if it is unknown how much is free."""
    if args.memory is not None:
        return int(args.memory * 1e9)
    free = available_bytes()
    return None if free is None else free // 2 + (peak_bytes() or 0)


def workers_for(left: int, total: int | None, own: int, least: int) -> int:
    """How many processes are worth starting: one per thread, if there is memory for all of them."""
    if left < FEW:
        return 1
    fitting = threads() if total is None else (total - own) // (own + max(least, 4 * OVERHEAD))
    return max(1, min(threads(), left // FEW + 1, fitting))
