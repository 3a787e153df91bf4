"""The errors, one class per exit code. A message is one line: what, where, what was expected, found, and what to do."""

from .text.one_line import one_line


class NpllmError(Exception):
    """The base class of the errors below; never raised itself."""

    exit_code = 70

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UsageError(NpllmError, ValueError):
    """An argument, a prompt or an option is invalid, or an output cannot be written."""

    exit_code = 2


class UnavailableError(NpllmError, OSError):
    """A model or a device is not available."""

    exit_code = 3


class ModelFileError(NpllmError, ValueError):
    """The files of a model exist but are invalid."""

    exit_code = 4


class NotEnoughMemoryError(NpllmError, MemoryError):
    """The weights, the KV cache and the largest temporary do not fit in memory."""

    exit_code = 5
