"""Paths as users give them: to a command, in the environment, to a Python function.

The system refuses to look up some of them: a name that is too long, a loop of symbolic links, a private folder. Once
`user_path` has returned a path, is_dir, is_file and exists answer without an error.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import NpllmError, UsageError


def cache_folder() -> Path | None:
    """npllm's cache folder; None if there is no place for it.

    $NPLLM_CACHE, or npllm in $XDG_CACHE_HOME, ~/.cache, ~/Library/Caches (macOS) or %LOCALAPPDATA% (Windows)
    """
    named = os.environ.get("NPLLM_CACHE")
    if named is None:
        home = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "")}.get(sys.platform, "~/.cache")
        named = f"{os.environ.get('XDG_CACHE_HOME') or home}/npllm"
    try:
        folder = Path(named).expanduser()
    except RuntimeError:  # a user without a home folder
        return None
    return folder if folder.is_absolute() else None


# A model's folder is not called like this; its name may have other dots: "Phi-3.5-mini".
FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".json", ".zip")


@contextmanager
def lookup_errors(what: str, error: type[NpllmError]) -> Iterator[None]:
    """Turn the errors of looking up a path into one of npllm's."""
    try:
        yield
    except OSError as failure:
        raise error(f"{what}: cannot be looked up: {failure.strerror or failure}") from failure
    except ValueError as failure:
        raise error(f"{what}: expected a path, got one with a NUL or an unpaired surrogate") from failure
    except RuntimeError as failure:  # raised by expanduser
        raise error(f"{what}: cannot be looked up: there is no such user, or none with a home folder") from failure


def user_path(name: str | Path, what: str, error: type[NpllmError] = UsageError) -> Path:
    """The path of that name, with ~ as the home folder. Nothing has to exist there.

    what : how an error message names it: "--output x"

    Raises
    ------
    error : the name is empty, no file can have it, or the system refuses to look there
    """
    if not str(name):
        raise error(f"{what}: expected a path, got an empty name")
    with lookup_errors(what, error):
        path = Path(name).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    return path


def input_path(name: str | Path, what: str, error: type[NpllmError] = UsageError, pipes: bool = False) -> Path:
    """The path of a file or folder to read. Nothing has to exist there: opening it will be the error.

    A device is refused, because it may have no end, and a pipe, because opening it may block forever.

    pipes : whether a pipe is allowed, such as the shell's <(command)

    Raises
    ------
    error : as in `user_path`; or it is a device, a pipe or a socket
    """
    path = user_path(name, what, error)
    special = path.exists() and not path.is_file() and not path.is_dir()
    if special and not (pipes and path.is_fifo()):
        raise error(f"{what}: expected a file or a folder, got a device, a pipe or a socket")
    return path


def output_file(name: str | Path, what: str, *suffixes: str) -> Path:
    """The path of a file to write, with links resolved, checked before anything is computed.

    It may be a pipe, or a device such as /dev/stdout or /dev/null, but not a disk.

    suffixes : those that the name may end in; a name without any is fine, too

    Raises
    ------
    UsageError : as in `user_path`; it has another suffix, which would say that it is something else; its folder does
        not exist; it is a folder, a disk or a socket; it is write-protected
    """
    path = user_path(name, what)
    if path.is_fifo() or path.is_char_device():
        return path  # /dev/stdout resolves to a name that cannot be opened
    if suffixes and path.suffix and path.suffix.lower() not in suffixes and not path.is_dir():
        raise UsageError(f"{what}: expected a name that ends in {' or '.join(suffixes)}, got {path.suffix}")
    with lookup_errors(what, UsageError):  # the current folder may be gone
        path = path.resolve()
    if not path.parent.is_dir():
        raise UsageError(f"{what}: expected an existing folder, got {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise UsageError(f"{what}: expected the name of a file, got a folder, a disk or a socket")
    check_writable(path.parent, what)
    if path.exists():
        check_writable(path, what)
    return path


def output_folder(name: str | Path, what: str) -> Path:
    """The path of a folder to write, with links resolved, checked before anything is computed.

    Raises
    ------
    UsageError : as in `user_path`; it is no folder, or has the name of a file; it is write-protected, or is to be made
        in a folder that is missing or write-protected
    """
    path = user_path(name, what)
    if path.suffix.lower() in FILE_SUFFIXES and not path.exists():
        raise UsageError(f"{what}: expected the name of a folder, got that of a {path.suffix} file; give another name")
    with lookup_errors(what, UsageError):
        path = path.resolve()
    if path.exists() and not path.is_dir():
        raise UsageError(f"{what}: expected a new folder or an empty one, got a file; give another name")
    if not path.parent.is_dir():
        raise UsageError(f"{what}: expected an existing folder, got {path.parent}; make it first")
    check_writable(path if path.exists() else path.parent, what)
    return path


def check_writable(path: Path, what: str) -> None:
    """Raise UsageError for a file or folder that is write-protected. Renaming onto a protected file would succeed."""
    if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
        raise UsageError(f"{what}: cannot be written: {path} is write-protected")
