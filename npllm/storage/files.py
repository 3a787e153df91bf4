"""Files and folders that are written completely or not at all.

Each is written in a temporary folder next to its destination. That folder has a random name, and only its owner can
open it. The file or folder moves to its destination at the end, when it has reached the disk. An error, Ctrl-C and
signals such as SIGTERM remove the temporary folder. After kill -9 or a crash it stays, and the next writer of the same
destination removes it.

How does that writer know that nobody is using it? A writer holds a lock on its folder (flock), and the system releases
the lock when the process ends. Windows and some network file systems have no such lock: there it has to be removed by
hand.
"""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import NpllmError, UsageError
from .ending import orderly_end
from .paths import output_file

if sys.platform != "win32":
    import fcntl


def temporary(destination: Path) -> Path:
    """A new name next to the destination; a long name is cut, because file systems allow 255 bytes."""
    return destination.with_name(f"{stem(destination)}.{secrets.token_hex(8)}.part")


def stem(destination: Path) -> str:
    """How the names of its temporary folders begin."""
    name = destination.name
    return name if len(os.fsencode(name)) <= 200 else name[:50]


@contextmanager
def write_errors(destination: Path) -> Iterator[None]:
    """Turn an error of the operating system into a UsageError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NpllmError | BrokenPipeError):  # a pipe whose reader is gone ends a command quietly
            raise
        raise UsageError(f"{destination}: cannot be written: {error.strerror or error}") from error


def in_temporary_folder(destination: Path, use: Callable[[Path], None]) -> None:
    """Call `use` with a locked folder next to the destination, for this process alone, and then remove the folder.

    A function and no context manager: Ctrl-C may come in the middle of entering or leaving a context.

    Raises
    ------
    UsageError : it cannot be written
    """
    remove_stale(destination)
    part = temporary(destination)
    new = part.with_suffix(".new")  # until it is locked, so that no other writer takes it for a stale one
    with write_errors(destination), orderly_end():
        try:
            try:
                new.mkdir(mode=0o700)
                with locked(new):
                    new.rename(part)
                    use(part)
            finally:
                remove(new, part)
        finally:  # once more: Ctrl-C may have interrupted the first time
            remove(new, part)


def remove(*folders: Path) -> None:
    """Remove those of the folders that exist, as far as possible: it may be the disk that fails."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, where the system has one."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system that has no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
    else:
        yield


def remove_stale(destination: Path) -> list[Path]:
    """Remove the temporary folders that earlier writers of this destination left behind; return those still in use."""
    used: list[Path] = []
    if sys.platform != "win32":
        name = re.compile(re.escape(stem(destination)) + r"\.[0-9a-f]{16}\.part")
        with suppress(OSError):  # a folder that may be written but not listed
            for part in [path for path in destination.parent.iterdir() if name.fullmatch(path.name)]:
                with suppress(OSError):  # not ours to open, or no folder
                    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        remove(part)
                    except BlockingIOError:
                        used.append(part)
                    finally:
                        os.close(descriptor)
    return used


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that does not exist yet, open for writing; it has reached the disk when the context ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        written, size = file.tell(), os.fstat(file.fileno()).st_size
        if size != written:
            raise OSError(f"expected a file of {written} bytes, got {size}; the disk may be full")


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can: Windows cannot."""
    with suppress(OSError):  # also a folder that may not be read; the files are complete
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(name: str | Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file completely or not at all. A file of that name is replaced; the new one has its mode and owner.

    If the name is a link, the file that it leads to is replaced, and the link stays. Other hard links to the file keep
    the old content. A pipe or a device, such as /dev/stdout, cannot be replaced: the parts are written to it one
    after the other.

    Raises
    ------
    UsageError : it cannot be written: no permission, no space; see `output_file`
    BrokenPipeError : it is a pipe whose reader is gone
    """
    path = output_file(name, str(name))
    if path.exists() and not path.is_file():
        with write_errors(path), path.open("wb") as file:
            file.writelines(parts)
        return

    def write(folder: Path) -> None:
        complete = folder / "file"
        with new_file(complete) as file:
            file.writelines(parts)
        if path.exists():
            keep_owner_and_mode(complete, path)
        complete.replace(path)
        sync(path.parent)

    in_temporary_folder(path, write)


def keep_owner_and_mode(new: Path, old: Path) -> None:
    """Give a file the owner and the mode of the one that it replaces."""
    before = old.stat()
    if sys.platform != "win32":
        for user, group in ((-1, before.st_gid), (before.st_uid, -1)):
            with suppress(PermissionError):  # only root may give a file to another user
                os.chown(new, user, group)
    new.chmod(before.st_mode & 0o777)


def write_folder(path: Path, fill: Callable[[Path], None], last: str) -> None:
    """Write a folder of files completely or not at all.

    path : a folder that does not exist, or that is empty; an empty one stays the same folder: it may be the current
        one, a mount point, or one with special permissions
    fill : writes the files into the folder that it is called with
    last : the name of the file without which the others mean nothing; it comes last

    Raises
    ------
    UsageError : it cannot be written, or another process has written there
    """

    def write(part: Path) -> None:
        folder = part / "folder"
        folder.mkdir()
        fill(folder)
        sync(folder)
        folder.rename(path)
        sync(path.parent)

    def write_inside(part: Path) -> None:
        fill(part)
        move_files(part, path, last)

    if path.is_dir():
        in_temporary_folder(path / path.name, write_inside)
    else:
        in_temporary_folder(path, write)


def move_files(part: Path, path: Path, last: str) -> None:
    """Move the files of a temporary folder to the empty folder that it is in: all of them or none."""
    others = sorted(other.name for other in path.iterdir() if other != part)
    if others:
        raise UsageError(
            f"{path}: expected an empty folder, got {others[0]!r}, which appeared in the meantime; try again"
        )
    files = sorted(part.iterdir(), key=lambda file: file.name == last)
    try:
        for file in files:
            file.rename(path / file.name)
        sync(path)
    except BaseException:  # also Ctrl-C
        for file in files:
            (path / file.name).unlink(missing_ok=True)
        raise
