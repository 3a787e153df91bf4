"""The errors, one class for each exit code of the command line.

Every message is one line: what, where (file, tensor), what was expected, what was found and often what to do.
"""


class NpllmError(Exception):
    """The base class of the errors below; never raised itself."""

    exit_code = 70


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
