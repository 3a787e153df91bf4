"""The same records on Ray Data: an actor on each worker holds the model, and Ray hands out the records.

Ray restarts a worker that died and gives its records to another one (`map_batches` over actors retries by default), and
it holds records back while the workers are busy. The results come to this process, which writes them as those of the
local engine.

Source: Moritz et al. 2018, "Ray: A distributed framework for emerging AI applications"; Ray's documentation, "Offline
batch inference".
"""

import importlib
import io
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..compiled.step import LARGEST
from ..devices.device import first_line
from ..devices.memory import available_bytes, peak_bytes
from ..devices.threads import set_threads, threads
from ..errors import NpllmError, UnavailableError
from .memory import budget
from .processes import Model
from .records import Task
from .run import Limits, Numbered, computed
from .work import Result

AT_ONCE = 100_000  # records handed to Ray at a time: they are held in its object store


class Worker:
    """What each of Ray's actors runs: the model, and the results of some records."""

    def __init__(self, model: Model, task: Task, limits: Limits, cores: int) -> None:
        """cores : of this worker; the memory of its machine is shared by as many workers as its cores allow"""
        set_threads(cores)
        self.lm, self.task = model.load(), task
        free, own = available_bytes(), peak_bytes() or 0
        total = limits.memory or (None if free is None else free // 2)
        beside = max(1, (os.cpu_count() or 1) // cores)
        self.limits = limits._replace(memory=budget(total, beside, own))

    def __call__(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The results of a block of records, as columns."""
        records = [(int(line), json.loads(text)) for line, text in zip(rows["line"], rows["record"], strict=True)]
        found = list(computed(self.lm, records, self.task, self.limits))
        return {
            "line": np.array([result.line for result in found]),
            "answer": np.array([json.dumps(result.answer) for result in found], dtype=object),
            "tokens": np.array([result.tokens for result in found]),
            "shape": np.array([json.dumps(shape_of(result)) for result in found], dtype=object),
            "vectors": np.array([b"" if r.vectors is None else r.vectors.tobytes() for r in found], dtype=object),
        }


def shape_of(result: Result) -> list[int] | None:
    """The shape of a result's vectors."""
    return None if result.vectors is None else list(result.vectors.shape)


def quiet() -> ExitStack:
    """A context without what Ray prints, and its libraries on descriptor 2; sys.stderr gets a descriptor of its own."""
    stack = ExitStack()
    nothing = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 - the stack closes it
    stack.enter_context(redirect_stdout(nothing))
    with suppress(AttributeError, OSError, ValueError):
        if sys.stderr.fileno() == 2:
            own = io.TextIOWrapper(io.FileIO(os.dup(2), "wb"), sys.stderr.encoding, write_through=True)
            os.dup2(nothing.fileno(), 2)
            stack.callback(lambda: os.dup2(own.fileno(), 2))  # which keeps it open until then
            stack.enter_context(redirect_stderr(own))
    return stack


def reachable(address: str) -> str:
    """The address of a cluster. Raises OSError at once if nothing answers there: Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
    return address


class OnRay:
    """An engine for `run`: the results of the records, as Ray's workers finish them."""

    def __init__(self, model: Model, task: Task, limits: Limits, workers: int, address: str | None) -> None:
        """Start Ray on this machine, or connect to a cluster.

        Raises UnavailableError if Ray is not installed, or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray: Any = importlib.import_module("ray")
            self.data: Any = importlib.import_module("ray.data")
        except ImportError as error:
            raise UnavailableError("--engine ray needs Ray: pip install 'npllm-reference[ray]'") from error
        self.model, self.task, self.limits, self.workers = model, task, limits, workers
        self.cores = max(1, threads() // workers) if address is None else 1
        self.quiet = quiet()
        try:
            here: dict[str, Any] = {"num_cpus": workers * self.cores, "include_dashboard": False}
            where = here if address is None else {"address": reachable(address)}
            self.ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except Exception as error:
            self.close()
            raise UnavailableError(f"--address {address}: no cluster of Ray: {first_line(error)}") from error
        warnings.filterwarnings("ignore", module=r"ray\.")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self.data.DataContext.get_current().enable_progress_bars = False

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, as they come."""
        rest = iter(records)
        while part := list(islice(rest, AT_ONCE)):
            rows = [{"line": line, "record": json.dumps(record)} for line, record in part]
            size = min(self.limits.window, max(LARGEST, len(rows) // (4 * self.workers)))
            blocks = min(len(rows), max(self.workers, -(-len(rows) // size)))
            results = self.data.from_items(rows, override_num_blocks=blocks).map_batches(
                Worker,
                fn_constructor_args=(self.model, self.task, self.limits, self.cores),
                batch_size=size,
                compute=self.data.ActorPoolStrategy(size=self.workers),
                num_cpus=self.cores,
            )
            try:
                for row in results.iter_rows():
                    shape = json.loads(row["shape"])
                    vectors = None if shape is None else np.frombuffer(row["vectors"], np.float32).reshape(shape)
                    yield Result(int(row["line"]), json.loads(row["answer"]), vectors, int(row["tokens"]))
            except self.ray.exceptions.RayError as error:
                cause: Any = error
                while cause is not None and not isinstance(cause, NpllmError):
                    cause = getattr(cause, "cause", None) or cause.__cause__
                raise cause or UnavailableError(f"--engine ray: {error}") from error

    def close(self) -> None:
        """Stop Ray on this machine, or leave the cluster."""
        self.ray.shutdown()
        self.quiet.close()
