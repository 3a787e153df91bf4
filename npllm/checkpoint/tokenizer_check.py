"""The check of a folder's tokenizer before it is used: some files hang, crash or kill the process that uses them.

The `tokenizers` library runs what tokenizer.json describes: regular expressions that backtrack for ever, replacements
that double a text forty times, a model that fails at the first unknown character. A panic of its Rust code prints many
lines; running out of memory ends the process. So the files are first tried in a process that may die (child.py): it
loads them as npllm does, and encodes and decodes texts that tokenizers fail at.

Files that passed are remembered by their sha256 in the user's cache folder, so they are tried once:

    $NPLLM_CACHE, or npllm in $XDG_CACHE_HOME, ~/.cache, ~/Library/Caches (macOS) or %LOCALAPPDATA% (Windows)

The check cannot prove that no text fails. An error at a later text is still one line (text/library_errors.py).
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import ModelFileError, UnavailableError
from .child import Child, ChildError

VERSION = 1  # of the probes: a file that passed an older check is tried again
SECONDS = 5.0  # and one more for each megabyte of the file
LONG = 10_000  # characters: makes quadratic time visible
RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
LETTERS = "aA1 \n\t.éß船🙂\u0301\u200d\x00\x1b\ufffd▁Ġ#@<>[]|'\"\\-_/"


def check_tokenizer(folder: Path, files: list[bytes]) -> None:
    """Try the tokenizer of a folder in another process, unless it is known to be good.

    files : what folder_tokenizer.py reads, tokenizer.json first

    Raises
    ------
    ModelFileError : it fails
    UnavailableError : there is no process to try it in
    """
    digest = digest_of(files)
    known = place(digest, folder)
    if remembered(known):
        return
    path, size = folder / "tokenizer.json", len(files[0])
    child = Child(__name__, memory=2**29 + 40 * size)
    try:
        child.ask(None, seconds=60.0)
    except ChildError as error:
        raise UnavailableError(f"{path}: expected a process to try it in, got none: {error}") from error
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
        raise ModelFileError(f"{path}: expected files at rest, got others a moment later; try again")
    remember(known)


def digest_of(files: list[bytes]) -> str:
    """The name under which these files are remembered: their sha256, with that of what they were tried with."""
    parts = [f"{VERSION} {tokenizers.__version__}".encode(), *files]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def place(digest: str, folder: Path) -> Path | None:
    """The empty file that says that files are good; None if there is no folder for it, or it is within the model's."""
    named = os.environ.get("NPLLM_CACHE")
    if named is None:
        home = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "")}.get(sys.platform, "~/.cache")
        named = f"{os.environ.get('XDG_CACHE_HOME') or home}/npllm"
    try:
        above = Path(named).expanduser() / "tokenizers"
        safe = above.is_absolute() and not above.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links; a user without a home
        return None
    return above / digest if safe else None


def remembered(path: Path | None) -> bool:
    """Whether these files are known to be good. Only what no other user can write counts."""
    if path is None:
        return False
    try:
        status, above = path.lstat(), path.parent.stat()
    except OSError:
        return False
    return sys.platform == "win32" or (status.st_uid == above.st_uid == os.getuid() and not above.st_mode & 0o22)


def remember(path: Path | None) -> None:
    """Remember that these files are good. Where nothing can be written they are tried again the next time."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)


# What the other process runs


def answer(request: Any) -> Any:
    """The digest of a folder's files, if its tokenizer works; or why not. None for None: the process is there."""
    from .folder_tokenizer import build, read_files  # here, because that module imports this one

    if request is None:
        return None
    try:
        files = read_files(Path(request))
        probe(build(Path(request), files)[0], files[0])
    except ModelFileError as error:
        return {"refused": str(error)}
    except BaseException as error:  # a panic is no Exception
        if isinstance(error, MemoryError):
            raise
        return {"fails": " ".join(str(error).split())[:200]}
    return {"digest": digest_of(files)}


def probe(backend: tokenizers.Tokenizer, data: bytes) -> None:
    """Encode and decode texts that tokenizers fail at."""
    for text in texts(data, [token.content for token in backend.get_added_tokens_decoder().values()]):
        backend.decode(backend.encode(text).ids)
    ids = sorted(backend.get_vocab().values())
    for start in range(0, len(ids), 1000):
        backend.decode(ids[start : start + 1000])
    for i in ids[:: len(ids) // 500 + 1]:
        backend.decode([i], skip_special_tokens=False)


def texts(data: bytes, added: list[str]) -> Iterator[str]:
    """Texts to try. Those for regular expressions repeat what the expressions mention."""
    yield from ("", "The ship sails at 10:45, doesn't it? Ça va, naïve 北京 🙂\u200d🙂.\r\n\n\tx = [1, 2];  y--\n")
    yield "".join(map(chr, range(0x250)))
    yield "".join(added[:: len(added) // 100 + 1])
    yield "The ships. " * (LONG // 10)
    for letter in LETTERS:
        yield from (letter, letter * LONG)
    rules = {key: value for key, value in json.loads(data).items() if key in RULES}
    for rule in {LETTERS, *strings(rules)}:
        for part in sorted({*LETTERS, *rule[:1000], *re.findall(r"\w+", rule[:1000])}):
            yield part * 50 + "\x01" + rule  # a text in which a match nearly succeeds takes the longest


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)
