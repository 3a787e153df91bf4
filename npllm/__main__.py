"""The process of the command npllm, and of python -m npllm: what surrounds cli/main.py."""

import os
import sys

try:
    from .cli.signals import INTERRUPTED, at_once, leave
except KeyboardInterrupt:  # while that module imports Python's `signal`
    os._exit(130)


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default that of the process; return its exit code."""
    at_once()
    os.environ["PYTHONSAFEPATH"] = "1"  # the processes that we start must not import modules from the current folder
    # Numba would color its messages by a library that writes an escape sequence when the process ends.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    try:
        from .cli.main import main as run  # here, because Ctrl-C may come while it is imported

        code = run(argv)
    except KeyboardInterrupt:  # a second one, while the first was being reported
        code = INTERRUPTED
    at_once()
    if code == INTERRUPTED:
        leave()  # Python would first wait for all threads, such as that of a download
    return code


if __name__ == "__main__":
    sys.exit(main())
