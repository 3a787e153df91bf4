"""What can go wrong, one class for each exit code of the command line.

Every message is one line: what, where (file, tensor), what was expected, what was found and, where that is not plain,
what to do.
"""


class NpllmError(Exception):
    """The base of the errors below; none is raised as such."""

    exit_code = 70


class UsageError(NpllmError, ValueError):
    """An argument, a prompt or a sampling value that cannot be used."""

    exit_code = 2


class UnavailableError(NpllmError, OSError):
    """A model or a device that cannot be had here."""

    exit_code = 3


class ModelFileError(NpllmError, ValueError):
    """A model's files are there, and wrong."""

    exit_code = 4


class NotEnoughMemoryError(NpllmError, MemoryError):
    """The weights, the KV cache and the largest temporary do not fit into the memory."""

    exit_code = 5
