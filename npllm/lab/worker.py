"""The one thread that computes, and how requests take turns.

A request's work is a generator: it yields what is to be sent. The worker takes one item of each request in turn, so a
click, even in another tab, is answered between two tokens of a running answer. A newer request of the same tab for the
same thing cancels the older one; so does a closed page. Each pass calls `Job.tap` with its values, and the tap raises
once nobody waits for the answer: a long pass stops within a layer.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from ..arrays import Array

Item = dict[str, Any]
Name = tuple[str, str]  # a client and what it asks for


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Job:
    """The work for one request.

    Parameters
    ----------
    name : a newer job of this name cancels the older one
    work : makes the generator of items from the job's tap; called in the worker's thread
    deliver : called there with each item, and finally with None or the exception that ended the work
    """

    def __init__(
        self,
        name: Name,
        work: Callable[[Callable[[str, Array], Array]], Iterator[Item]],
        deliver: Callable[[Item | Exception | None], None],
    ) -> None:
        self.name, self.work, self.deliver = name, work, deliver
        self.items: Iterator[Item] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Make the work end at its next tapped value or item. Any thread may call this, at any time."""
        self.is_cancelled = True

    def tap(self, name: str, value: Array) -> Array:
        """The value, unchanged. Raises Cancelled after `cancel`."""
        if self.is_cancelled:
            raise Cancelled
        return value

    def step(self) -> bool:
        """Compute and deliver one item; return whether there may be more."""
        try:
            if self.is_cancelled:
                raise Cancelled
            if self.items is None:
                self.items = self.work(self.tap)
            self.deliver(next(self.items))
            return True
        except StopIteration:
            self.deliver(None)
        except Exception as error:  # noqa: BLE001 - the request's answer reports it; the worker serves the next one
            self.deliver(error)
        self.items = None  # runs what is in its `finally`
        return False


class Worker:
    """The thread, with the jobs that wait for their turn."""

    def __init__(self) -> None:
        self.turns: SimpleQueue[Job] = SimpleQueue()
        self.latest: dict[Name, Job] = {}
        self.lock = Lock()
        Thread(target=self.run, name="npllm lab", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Take a job; cancel the older one of its name."""
        with self.lock:
            older = self.latest.get(job.name)
            self.latest[job.name] = job
        if older is not None:
            older.cancel()
        self.turns.put(job)

    def run(self) -> None:
        """Give every job its turn, for ever."""
        while True:
            job = self.turns.get()
            if job.step():
                self.turns.put(job)
                continue
            with self.lock:
                if self.latest.get(job.name) is job:
                    del self.latest[job.name]
