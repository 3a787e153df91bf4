"""Signals that end the process, while it has temporary files to remove."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# kill, a terminal that is closed, Ctrl-\, Ctrl-C. Windows has only two of them.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT") if hasattr(signal, name)]


class Ended(BaseException):
    """Raised where the main thread was when a signal arrived. It never leaves `orderly_end`."""


@contextmanager
def orderly_end() -> Iterator[None]:
    """Within it, a signal that would end the process at once first unwinds the stack, which removes temporary files.

    Then the process dies of the same signal, as it would have without `orderly_end`. Only signals with the default
    action are caught: a program's own handlers stay, and so does Python's for Ctrl-C, which unwinds the stack already.
    Only the main thread can catch signals: in another one, nothing changes.
    """
    received: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # a second one must not interrupt the cleanup
            raise Ended

    main = threading.current_thread() is threading.main_thread()
    caught = [number for number in SIGNALS if main and signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in caught:
            signal.signal(number, end)
        yield
    except Ended:
        if not received:  # it belongs to an outer `orderly_end`
            raise
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        if received:  # also if the exception was lost, as in a __del__
            signal.raise_signal(received[0])
