"""The threads that run a compiled function together: all of them are inside it at once.

Numba's own parallel loops start and end a parallel region for each loop, which costs 20 to 120 µs; a decode step has
150. Here the threads enter a function once. Inside, they take pieces of work by counting (`take`), so a thread that the
system holds up takes fewer, and wait for each other where one needs what all have written (`wait`).

After a call the threads spin for 0.2 ms, waiting for the next one, then they sleep. A sleeping thread takes 50 µs to
wake, and often does so on the core of the thread that woke it.
"""

import os
import threading
from typing import Any

import numpy as np

from ..text.stderr import note
from .jit import COMPILES, current, is_compiled, jit, pause, take

SPINS = 100_000  # before a waiting thread lets others have its core: about 1 ms. Yielding costs a time slice, 3 ms
LOOKS = 20000  # before a thread without work sleeps: about 200 µs
GIVEN_UP = 0  # the counter that says so
LINE = 8  # counters that share a cache line slow each other down: one in eight is used


@jit
def count(counters, i):
    """The next unclaimed piece of work: 0, 1, 2, ... Counter i belongs to this work."""
    return take(counters, (i + 1) * LINE)


@jit
def wait(counters, i, threads):
    """Return when all threads have arrived, or the call was abandoned. Counter i belongs to this place."""
    take(counters, (i + 1) * LINE)
    spins = 0
    while current(counters, (i + 1) * LINE) < threads:
        spins += 1
        if spins > SPINS:  # one of them may need this core
            if current(counters, GIVEN_UP) > 0:
                return
            pause()


@jit
def add_one(state, i):
    """Counter i of a team is one more. (Only compiled code counts without a gap between reading and writing.)"""
    take(state, i * LINE)


@jit
def look_for(state, number, looks):
    """Whether call `number` has come, checking at most `looks` times."""
    for _ in range(looks):  # noqa: SIM110, Numba compiles no generator
        if current(state, 0) >= number:
            return True
    return False


@jit
def await_all(state, number):
    """Return when the other threads have completed this many calls (counter 1)."""
    spins = 0
    while current(state, LINE) < number:
        spins += 1
        if spins > SPINS:
            pause()


class Team:
    """As many threads as the loops may use, including the calling thread.

    All models share one team. Of two concurrent calls, one waits.
    """

    def __init__(self, threads: int) -> None:
        self.asked, self.threads = threads, threads if COMPILES else 1
        self.announced = False  # that something must be compiled
        self.start()

    def start(self) -> None:
        """Start the threads of this process."""
        self.lock, self.process = threading.Lock(), os.getpid()
        self.state = np.zeros(2 * LINE, dtype=np.int64)  # the calls made, and those completed by the other threads
        self.call: Any = None
        self.error: BaseException | None = None
        self.sleeping = [False] * self.threads
        self.beds = [threading.Semaphore(0) for _ in range(self.threads)]
        for number in range(1, self.threads):
            threading.Thread(target=self.serve, args=(number,), name=f"npllm-{number}", daemon=True).start()

    def run(self, function: Any, phases: int, *args: Any) -> None:
        """Call function(thread, threads, *args, counters) in every thread; return when all have returned.

        phases : the number of its counters, for `count` and `wait`
        """
        if self.process != os.getpid():  # a forked process has our memory, but not our threads
            self.start()
        compiled = getattr(function, "signatures", True)  # none before the first call; plain functions lack it
        if not (compiled or self.announced or is_compiled(function)):
            self.announced = True
            note("compiling the loops for this processor, once: about half a minute")
        counters = np.zeros((phases + 1) * LINE, dtype=np.int64)
        with self.lock:
            self.error, self.call = None, (function, (self.threads, *args, counters))
            others = self.threads - 1
            try:
                if others:
                    add_one(self.state, 0)
                    self.wake()
                function(0, self.threads, *args, counters)
            except BaseException:  # such as Ctrl-C
                counters[GIVEN_UP] = 1  # nobody waits for this thread any more
                raise
            finally:
                self.finish()
                self.call = None  # it would keep the arrays
            if self.error is not None:
                raise self.error

    def wake(self) -> None:
        """Wake the threads that sleep."""
        for number, asleep in enumerate(self.sleeping):
            if asleep:
                self.beds[number].release()

    def finish(self) -> None:
        """Return when the other threads have completed all calls, even if Ctrl-C comes in between."""
        interrupt = None
        while self.threads > 1:
            try:
                self.wake()  # again: Ctrl-C may have come before all were awake
                await_all(self.state, (self.threads - 1) * int(self.state[0]))
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def serve(self, number: int) -> None:
        """Run each call in this thread, forever."""
        state, done = self.state, 0
        while True:
            if not look_for(state, done + 1, LOOKS):
                self.sleeping[number] = True
                if not look_for(state, done + 1, 1):
                    self.beds[number].acquire()
                self.sleeping[number] = False
                continue
            function, args = self.call
            try:
                function(number, *args)
            except BaseException as error:  # noqa: BLE001, the caller raises it
                self.error = error
                args[-1][GIVEN_UP] = 1
            del function, args
            done += 1
            add_one(state, 1)
