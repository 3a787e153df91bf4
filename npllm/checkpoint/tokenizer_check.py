"""The check of a folder's tokenizer before it is used: some files hang, crash or kill the process that uses them.

The `tokenizers` library runs what tokenizer.json describes: regular expressions that backtrack forever, replacements
that double a text forty times, a model that fails on the first unknown character. A panic of its Rust code prints many
lines; running out of memory ends the process. So the files are first tried in a process that may die (child.py), which
runs tokenizer_probe.py.

Files that passed are remembered by their sha256 in the user's cache folder (storage/paths.py), so they are tried once.

The check cannot prove that no text fails. An error on a later text is still one line (text/library_errors.py).
"""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

import tokenizers

from ..errors import ModelFileError
from ..storage.paths import cache_folder
from .child import Child, ChildError

VERSION = 1  # of tokenizer_probe.py: a file that passed an older one is tried again
SECONDS = 5.0  # and one more for each megabyte of the file


def check_tokenizer(folder: Path, files: list[bytes]) -> None:
    """Try the tokenizer of a folder in another process, unless it is known to be good.

    files : what folder_tokenizer.py reads, tokenizer.json first

    Raises
    ------
    ModelFileError : it fails
    UnavailableError : the process does not start
    """
    digest = digest_of(files)
    known = place(digest, folder)
    if remembered(known):
        return
    path, size = folder / "tokenizer.json", len(files[0])
    child = Child(f"{__package__}.tokenizer_probe", memory=2**29 + 40 * size)
    try:
        answer = child.ask(str(folder.absolute()), seconds=SECONDS + size // 10**6)
    except ChildError as error:
        answer = {"fails": str(error)}
    finally:
        child.close()
    if "refused" in answer:
        raise ModelFileError(answer["refused"])
    if "fails" in answer:
        raise ModelFileError(
            f"{path}: expected a tokenizer that works for any text, got one that fails: {answer['fails']}; take another"
            " copy of the model"
        )
    if answer["digest"] != digest:
        raise ModelFileError(
            f"{path}: expected files that do not change, but they changed while they were checked; try again"
        )
    remember(known)


def digest_of(files: list[bytes]) -> str:
    """The name under which these files are remembered: a sha256 of them and of the versions that tried them."""
    parts = [f"{VERSION} {tokenizers.__version__}".encode(), *files]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def place(digest: str, folder: Path) -> Path | None:
    """The empty file that marks files as good; None if there is no folder for it, or it would be in the model's."""
    cache = cache_folder()
    if cache is None:
        return None
    above = cache / "tokenizers"
    try:
        safe = not above.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of symbolic links
        return None
    return above / digest if safe else None


def remembered(path: Path | None) -> bool:
    """Whether these files are known to be good. A mark counts only if no other user could have written it."""
    if path is None:
        return False
    try:
        status, above = path.lstat(), path.parent.stat()
    except OSError:
        return False
    return sys.platform == "win32" or (status.st_uid == above.st_uid == os.getuid() and not above.st_mode & 0o22)


def remember(path: Path | None) -> None:
    """Remember that these files are good. Where nothing can be written, they are tried again the next time."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
