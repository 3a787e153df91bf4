"""Ctrl-C before and after a command runs: the process ends at once. This module imports nothing heavy.

A command catches KeyboardInterrupt: `generate` keeps the text so far, and a half-written file is removed. Before and
after it there is nothing to keep: the exception would only show a traceback, or a library would print it and go on.
"""

import _signal as signal  # type: ignore[import-not-found]  # in C, and there at once: `signal` first imports enum
import os

INTERRUPTED = 130


def leave(*_: object) -> None:
    """The signal handler that ends the process at once, with INTERRUPTED as its exit code."""
    os._exit(INTERRUPTED)


def at_once() -> None:
    """From here on, Ctrl-C ends the process, unless it is ignored, as after `nohup`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def as_exception() -> None:
    """From here on, Ctrl-C raises KeyboardInterrupt again. Without `at_once` before it, this changes nothing."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
