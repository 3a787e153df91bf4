"""Several processes on this machine, each with the model and one part of the threads.

Threads that share a step wait for each other after each product, and while one of them chooses the tokens, the others
have nothing to do. Processes share no step. No result depends on how many there are.

Each gets a part of the records and sends back every result as it is finished. If this process ends, however it ends,
the others do, too: their pipe has no other end any more.
"""

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
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
        """The model. Raises ModelFileError if it is another one than this process has loaded."""
        lm = load(self.name, **self.how)
        if model_hash(lm) != self.hash:
            raise ModelFileError(f"{self.name}: expected the model that the command has loaded, got another one here")
        return lm


def serve(pipe: Connection, model: Model, task: Task, limits: Limits, threads: int) -> None:
    """What each process runs: sends its memory, then a result for each record, and None after each list of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends the processes
    warnings.simplefilter("ignore")  # the command has shown them
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore of the system, which stays if the process is killed
    try:
        try:
            set_threads(threads)
            lm = model.load()
            pipe.send((peak_bytes() or 0) + most_bytes(lm, task, limits.memory))
            while True:
                for result in computed(lm, pipe.recv(), task, limits):
                    pipe.send(result)
                pipe.send(None)
        except (NpllmError, MemoryError) as error:
            pipe.send(error)
    except (EOFError, ConnectionError):  # the command has ended
        return


class Processes:
    """An engine for `run`: the results of the records, as the processes finish them.

    bytes : what all of them take at most
    """

    def __init__(self, model: Model, task: Task, limits: Limits, count: int, threads: int, records: int) -> None:
        """Start the processes, and wait until each has loaded the model.

        threads : of each
        records : how many there are
        """
        self.limits, self.left = limits, records
        rounds = -(-records // (count * LARGEST))
        self.texts = -(-records // (count * max(1, rounds))) or 1  # of a batch: the same for all, which so end together
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[Any, Any] = {}
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, model, task, limits, threads), daemon=True)
                process.start()
                theirs.close()  # the process has its own, and when it ends, the pipe does
                self.pipes[ours] = process
            self.bytes = sum(self.received(pipe) for pipe in self.pipes)
        except BaseException:
            self.close()
            raise

    def received(self, pipe: Any) -> Any:
        """The next message. Raises the error that it is, or UnavailableError if the process has died."""
        try:
            message = pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.pipes[pipe].join(1)
            code = self.pipes[pipe].exitcode
            raise UnavailableError(
                f"a process of the batch ended with exit code {code}; the same command goes on where it stopped,"
                " with --workers 1 it takes less memory"
            ) from error
        if isinstance(message, BaseException):
            raise message
        return message

    def fed(self, pipe: Any, records: Iterator[Numbered]) -> bool:
        """Send the process its next records: as many full batches as a window holds, fewer towards the end."""
        batches = min(self.limits.window, self.left // (2 * len(self.pipes))) // self.texts
        size = self.texts * max(1, batches)
        part = list(islice(records, size))
        self.left -= len(part)
        if part:
            pipe.send(part)
        return bool(part)

    def __call__(self, records: Iterable[Numbered]) -> Iterator[Result]:
        """The results, as they come."""
        rest = iter(records)
        working = [pipe for pipe in self.pipes if self.fed(pipe, rest)]
        while working:
            for pipe in wait(working):
                message = self.received(pipe)
                if message is not None:
                    yield message
                elif not self.fed(pipe, rest):
                    working.remove(pipe)

    def close(self) -> None:
        """End the processes."""
        for pipe, process in self.pipes.items():
            pipe.close()
            process.terminate()
            process.join()
