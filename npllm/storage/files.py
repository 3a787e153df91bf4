"""Files and folders that are written completely or not at all.

Each is written next to its destination under a random name that must not exist yet, and renamed at the end. What is
left of an attempt that fails is removed.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import NpllmError, UsageError


def temporary(destination: Path) -> Path:
    """A new name next to the destination."""
    return destination.with_name(f"{destination.name}.{secrets.token_hex(4)}.part")


@contextmanager
def write_errors(destination: Path) -> Iterator[None]:
    """Turn an error of the operating system into a UsageError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UsageError(f"{destination}: cannot be written: {error.strerror or error}") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that does not exist yet, open for writing; it has reached the disk when the context ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file completely or not at all. A file of that name is replaced.

    Raises
    ------
    UsageError : it cannot be written: no permission, no space
    """
    part = temporary(path)
    with write_errors(path):
        try:
            with new_file(part) as file:
                for data in parts:
                    file.write(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill. It is renamed to `path` when the context ends, and removed if there is an error.

    path : a folder that does not exist or is empty

    Raises
    ------
    UsageError : it cannot be written
    """
    part = temporary(path)
    with write_errors(path):
        part.mkdir()
        try:
            yield part
            if path.exists():
                path.rmdir()  # it is empty; some systems do not rename onto it
            part.rename(path)
        except BaseException:  # also Ctrl-C
            shutil.rmtree(part, ignore_errors=True)
            raise
