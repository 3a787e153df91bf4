"""Several worker processes on this machine, each with the model and a share of the threads.

Threads that share a step synchronize after every product and idle while one of them samples. Separate processes do
neither. No result depends on how many there are.

Each worker gets some of the records and sends back every result as it is finished. However the main process ends, the
workers see their pipe close and exit.
"""

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from tqdm import tqdm

from ..checkpoint.load import load
from ..compiled.step import LARGEST
from ..devices.memory import peak_bytes
from ..devices.threads import set_threads
from ..errors import ModelFileError, NpllmError, UnavailableError
from .memory import most_bytes
from .model_hash import model_hash
from .records import Task
from .run import Limits, Numbered, computed
from .work import Result


class Model(NamedTuple):
    """A model that another process loads."""

    name: str | None
    how: Mapping[str, Any]  # the options of `npllm.load`
    hash: str  # its `model_hash`

    def load(self) -> Any:
        """The model. Raises ModelFileError if it is not the one that the main process has loaded."""
        lm = load(self.name, **self.how)
        if model_hash(lm) != self.hash:
            name = self.name or "the default model"
            raise ModelFileError(f"{name}: expected the model that the main process has loaded, got another one")
        return lm


def serve(pipe: Connection, model: Model, task: Task, limits: Limits, threads: int) -> None:
    """What a worker runs: sends its memory, then a result for each record, and None after each list of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where `uninterrupted` does nothing
    warnings.simplefilter("ignore")  # the main process has shown them
    tqdm.set_lock(threading.RLock())  # the default is a system semaphore, which leaks when the process is killed
    try:
        try:
            set_threads(threads)
            lm = model.load()
            pipe.send((peak_bytes() or 0) + most_bytes(lm, task, limits.memory, limits.batch_size))
            while True:
                for result in computed(lm, pipe.recv(), task, limits):
                    pipe.send(result)
                pipe.send(None)
        except (NpllmError, MemoryError) as error:
            pipe.send(error)
    except (EOFError, ConnectionError):  # the main process has ended
        return


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defers Ctrl-C. Processes started within inherit the blocked signal; the main process ends them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else it starts with the first process, and that unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """An engine for `run`: the results of the records, as the workers finish them.

    bytes : an upper bound for the memory of all workers
    texts : of a batch; equal batches let the workers finish at about the same time
    """

    def __init__(self, model: Model, task: Task, limits: Limits, count: int, threads: int, records: int) -> None:
        """Start the workers, and wait until each has loaded the model.

        threads : of each
        records : how many there are
        """
        self.limits, self.left = limits, records
        rounds = -(-records // (count * LARGEST))
        self.texts = -(-records // (count * max(1, rounds))) or 1
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[Any, Any] = {}
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, model, task, limits, threads), daemon=True)
                with uninterrupted():
                    process.start()
                theirs.close()  # the worker has its own, and when it ends, the pipe does
                self.pipes[ours] = process
            self.bytes = sum(self.receive(pipe) for pipe in self.pipes)
        except BaseException:
            self.close()
            raise

    def receive(self, pipe: Any) -> Any:
        """The next message; raises it if it is an error."""
        with self.connected(pipe):
            message = pipe.recv()
        if isinstance(message, BaseException):
            raise message
        return message

    @contextmanager
    def connected(self, pipe: Any) -> Iterator[None]:
        """Raise UnavailableError if the worker at the other end of a pipe has died."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self.pipes[pipe].join(1)
            code = self.pipes[pipe].exitcode
            raise UnavailableError(
                f"a worker ended with exit code {code}; rerun the command to resume, with --workers 1 if memory was"
                " short"
            ) from error

    def feed(self, pipe: Any, records: Iterator[Numbered]) -> bool:
        """Send the worker its next records: as many full batches as a window holds, fewer towards the end. Returns
        whether there were any."""
        batches = min(self.limits.window, self.left // (2 * len(self.pipes))) // self.texts
        size = self.texts * max(1, batches)
        part = list(islice(records, size))
        self.left -= len(part)
        if part:
            with self.connected(pipe):
                pipe.send(part)
        return bool(part)

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, as they come."""
        rest = iter(records)
        working = [pipe for pipe in self.pipes if self.feed(pipe, rest)]
        while working:
            for pipe in wait(working):
                message = self.receive(pipe)
                if message is not None:
                    yield message
                elif not self.feed(pipe, rest):
                    working.remove(pipe)

    def close(self) -> None:
        """End the workers."""
        for pipe, process in self.pipes.items():
            pipe.close()
            process.terminate()
            process.join()
