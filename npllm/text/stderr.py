"""Lines on stderr."""

import os
import sys
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
