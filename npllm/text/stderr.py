"""Lines on stderr."""

import io
import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from .one_line import one_line


def note(text: str, end: str = "\n") -> None:
    """Write a line to stderr, control characters escaped.

    If stderr is closed or full, or has lost its reader, the line is dropped: there is nowhere left to say so.
    """
    if sys.stderr is not None:  # print would use stdout instead
        try:
            print(one_line(text), end=end, file=sys.stderr, flush=True)
        except OSError:
            abandon(sys.stderr)


def abandon(stream: Any) -> None:
    """Discard what a stream has buffered, and all that follows; otherwise Python would retry at exit, and fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def discarded() -> ExitStack:
    """Discards what libraries print, native ones too; sys.stderr keeps working through a duplicate descriptor."""
    stack = ExitStack()
    nothing = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 - the stack closes it
    stack.enter_context(redirect_stdout(nothing))
    with suppress(AttributeError, OSError, ValueError):
        if sys.stderr.fileno() == 2:
            own = io.TextIOWrapper(io.FileIO(os.dup(2), "wb"), sys.stderr.encoding, write_through=True)
            os.dup2(nothing.fileno(), 2)
            stack.callback(lambda: os.dup2(own.fileno(), 2))  # the callback also keeps `own` open
            stack.enter_context(redirect_stderr(own))
    return stack
