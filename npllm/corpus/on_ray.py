"""The same records on Ray Data: an actor per worker holds the model, and Ray hands out the records.

If a worker dies, Ray restarts it and reassigns its records. Results return to this process, which writes them.

Source: Moritz et al. 2018, "Ray: A distributed framework for emerging AI applications".
"""

import importlib
import logging
import os
import pickle  # nosec B403 - what this run sends to its own workers, by Ray, which pickles everything itself
import socket
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from ..compiled.cpu import path_of
from ..compiled.step import LARGEST
from ..devices.device import free_bytes
from ..devices.memory import peak_bytes
from ..devices.threads import set_threads
from ..errors import NpllmError, UnavailableError
from ..lm import LM
from ..text.one_line import line_of
from ..text.stderr import discarded
from ..version import __version__
from .memory import budget, least_bytes
from .processes import Model
from .records import Task
from .run import Limits, Numbered, computed
from .work import Result

PART, PER_WORKER = 100_000, 1024  # records given to Ray at a time, at least: its object store holds them
RETRIES = {"max_restarts": 3, "max_task_retries": 3}  # if a worker dies more often, its records may be the reason


class Setup(NamedTuple):
    """What each worker needs to know."""

    model: Model
    task: Task
    limits: Limits  # memory: bytes for all workers of a machine; None: what Ray lets them have
    workers: int  # on all machines
    cores: int  # of each
    path: str | None  # the backend, see `path_of`
    version: str = __version__


class Worker:
    """What each of Ray's actors runs. Errors are returned as results, because Ray would raise them as pages of text."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def lm(self) -> LM:
        """The model. Raises UnavailableError if this node has other software than the command's."""
        set_threads(self.setup.cores)
        lm = self.setup.model.load()
        if (path_of(lm), __version__) != (self.setup.path, self.setup.version):
            here = f"{__version__} with {path_of(lm) or 'a GPU'}; install the same npllm and extras everywhere"
            wanted = f"npllm {self.setup.version} with {self.setup.path or 'a GPU'} on every machine"
            raise UnavailableError(f"--engine ray: expected {wanted}, got {here}")
        return lm

    @cached_property
    def limits(self) -> Limits:
        """This worker's limits: the workers on a machine share its memory equally."""
        if self.setup.path is None and (free := free_bytes(self.lm.weights.norm)) is not None:
            return self.setup.limits._replace(memory=free // 2)
        ray = importlib.import_module("ray")
        here = ray.get_runtime_context().get_node_id()
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
        total = self.setup.limits.memory or resources.get("memory")
        count = max(1, min(self.setup.workers, int(resources.get("CPU", 1)) // self.setup.cores))
        share = budget(total and int(total), count, peak_bytes() or 0, least_bytes(self.lm, self.setup.task))
        return self.setup.limits._replace(memory=share)

    def __call__(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The results of a block of records, or an error."""
        records = map(pickle.loads, rows["record"])
        try:
            results: list[object] = [*computed(self.lm, records, self.setup.task, self.limits)]
        except (NpllmError, MemoryError) as error:
            results = [error]
        return {"result": np.array([pickle.dumps(result) for result in results], dtype=object)}


class OnRay:
    """An engine for `run`: the results as Ray's workers finish them, on this machine or on the cluster at `address`."""

    def __init__(self, setup: Setup, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray, self.data = importlib.import_module("ray"), importlib.import_module("ray.data")
        except ImportError as error:
            raise UnavailableError("--engine ray needs Ray: pip install 'npllm-reference[ray]'") from error
        self.setup, self.address, self.stack = setup, address, ExitStack()
        self.close = self.stack.close

    def start(self) -> None:
        """Start Ray, or connect to the cluster. Raises UnavailableError if there is none."""
        self.stack.enter_context(discarded())
        self.stack.callback(self.ray.shutdown)
        host, _, port = (self.address or "").removeprefix("ray://").rpartition(":")
        options = {"num_cpus": None if self.address else self.setup.workers * self.setup.cores, "log_to_driver": False}
        try:
            if port.isdecimal():  # Ray would try for minutes
                socket.create_connection((host, int(port)), 10).close()
            self.ray.init(self.address or "local", include_dashboard=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            what = f"--address {self.address}: no Ray cluster" if self.address else "Ray cannot start"
            raise UnavailableError(f"{what}: {line_of(error)}") from error
        warnings.filterwarnings("ignore", module=r"ray\.")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self.data.DataContext.get_current().enable_progress_bars = False
        needs = {"CPU": self.setup.cores, "GPU": int(self.setup.path is None)}
        if not any(all(node["Resources"].get(k, 0) >= n for k, n in needs.items()) for node in self.ray.nodes()):
            raise UnavailableError(f"--engine ray: expected a machine that has {needs} for a worker, got none")

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, as they come."""
        rest, workers = iter(records), self.setup.workers
        while part := list(islice(rest, max(PART, PER_WORKER * workers))):
            rows = [{"record": pickle.dumps(record)} for record in part]
            size = min(self.setup.limits.window, max(LARGEST, len(rows) // (4 * workers)))  # records per block
            dataset = self.data.from_items(rows, override_num_blocks=max(workers, -(-len(rows) // size)))
            results = dataset.map_batches(
                Worker,
                fn_constructor_args=(self.setup,),
                batch_size=None,  # a block
                compute=self.data.ActorPoolStrategy(size=workers),
                num_cpus=self.setup.cores,
                num_gpus=int(self.setup.path is None),
                **RETRIES,
            )
            try:
                for row in results.iter_rows():
                    result = pickle.loads(row["result"])  # nosec B301 - as above
                    if isinstance(result, Exception):
                        raise result
                    yield result
            except self.ray.exceptions.RayError as error:
                raise UnavailableError(f"--engine ray: {line_of(error)}") from error
