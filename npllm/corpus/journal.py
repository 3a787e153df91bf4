"""The output file: one line per record, resumable after any interruption.

A side file, OUT.jsonl.run, holds what produced the output: fingerprints of the input and the model, and the options.
Rerunning the same command resumes; a different one is refused. The output is locked while it is written, and the system
releases the lock when the process ends, however it ends.

Each result is one line, written at once. kill -9 and a full disk may leave the last line incomplete; after a power
failure, lines that had not reached the disk may be missing. On resuming, the file is truncated at the first incomplete
line and the rest is recomputed.
"""

import glob
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ModelFileError, UsageError
from ..storage.files import write_errors, write_file
from ..storage.json_file import json_text, read_json
from ..storage.paths import output_file

if sys.platform != "win32":
    import fcntl

SYNC = 1.0  # seconds between fsyncs
SUFFIXES = (".jsonl", ".ndjson")
CHANGED = {"input": "the input has changed", "model": "the model differs"}  # else a setting, shown in the message
OURS = {"made_by": "npllm batch"}  # the first key of a side file


def output_path(name: str | Path) -> Path:
    """The path of an output. Raises UsageError if it cannot be written, or another process writes it."""
    if str(name) == "-":
        raise UsageError("-o -: expected a file name, because a run must be resumable; cat the file afterwards")
    path = output_file(name, f"-o {name}", *SUFFIXES)
    if path.exists():
        if not path.is_file():
            raise UsageError(f"-o {name}: expected a regular file, because a run must be resumable")
        with write_errors(path), path.open("ab") as file:
            lock(file, path)
    return path


def lock(file: BinaryIO, path: Path) -> None:
    """Lock the output, where the system supports it. Raises UsageError if another process has locked it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{path}: another npllm batch is writing it; wait for it, or stop it") from error
        except OSError:  # a file system without locks
            return


class Journal:
    """An output file, open for appending. As a context manager, it removes a new output if an error leaves it empty.

    done : the ids of the records with results
    failed : the line numbers of failed records
    files : number of the next file of vectors
    removed : how many failed records were removed, to be computed again
    cut : bytes of incomplete lines that were removed
    """

    def __init__(self, name: str | Path, made_from: Mapping[str, Any], retry_failed: bool = False) -> None:
        """Open a new output, or resume one started with the same `made_from` (JSON values).

        Raises
        ------
        UsageError : it cannot be written, another process writes it, it was started with something else, or it would
            replace a file that npllm batch did not write
        """
        self.path = output_path(name)
        self.side = self.path.with_name(f"{self.path.name}.run")
        self.embeds = made_from.get("task") == "embed"
        self.synced = time.monotonic()
        self.removed = 0
        self.open()
        try:
            self.check_side(json.loads(json.dumps({**OURS, **made_from})))
            self.read()
            if retry_failed and self.failed:
                self.remove_failed()
        except BaseException:
            self.file.close()
            raise

    def open(self) -> None:
        """Open and lock the file."""
        with write_errors(self.path):
            self.file: Any = self.path.open("a+b", buffering=0)
        try:
            lock(self.file, self.path)
            if not self.path.exists() or not os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                raise UsageError(f"{self.path}: another npllm batch has just replaced it; try again")
        except BaseException:
            self.file.close()
            raise

    def check_side(self, now: Mapping[str, Any]) -> None:
        """Write the side file of a new output; refuse to resume one that was started with something else."""
        empty = not self.path.stat().st_size
        if not self.side.exists():
            if not empty:
                raise UsageError(f"{self.path}: already exists and was not written by npllm batch; choose another name")
            before: Mapping[str, Any] = {}
        else:
            try:
                before = read_json(self.side)
                if before.get("made_by") != OURS["made_by"]:
                    raise ModelFileError(f"{self.side}: already exists and was not written by npllm batch")
            except ModelFileError as error:
                raise UsageError(f"{error}; choose another name for the output than {self.path}") from error
        if empty:
            files = self.vector_files()
            if before == now:  # killed before the first line: one file may be there, with --ordered several
                files = [] if now.get("ordered") else files[1:]
            if files:
                raise UsageError(f"{files[0]}: already exists; move it, or choose another name for the output")
            write_file(self.side, [json_text(now).encode()])
            return
        for key in [*now, *before]:
            if before.get(key) != now.get(key):
                differs = f"started with {key}={before.get(key)!r:.60}, now {key}={now.get(key)!r:.60}"
                raise UsageError(
                    f"{self.path}: {CHANGED.get(key, differs)}; choose another output name, or delete the file to start"
                    " over"
                )

    def vector_files(self) -> list[str]:
        """The files that have names of this output's vectors."""
        found = self.path.parent.glob(f"{glob.escape(self.path.stem)}-{'[0-9]' * 5}.*")
        return sorted(str(path) for path in found if path.suffix in (".safetensors", ".parquet"))

    def read(self) -> None:
        """Read the lines, and truncate the file where the last ones are incomplete."""
        self.done: set[str | int] = set()
        self.failed: set[int] = set()
        self.files = whole = 0
        bad = 0  # number of the first incomplete line
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                found = result_of(line)
                if found is None:
                    bad = bad or number
                    continue
                if bad:
                    raise UsageError(
                        f"{self.path}: line {bad}: not a result, although later lines are; delete this line to"
                        " recompute its record"
                    )
                if "error" in found:
                    self.failed.add(found["line"])
                else:
                    self.done.add(found["id"])
                if self.embeds and "file" in found:
                    self.files = max(self.files, int(Path(found["file"]).stem.rpartition("-")[2]) + 1)
                whole += len(line)
        self.cut = self.path.stat().st_size - whole
        self.file.truncate(whole)
        self.size = whole

    def remove_failed(self) -> None:
        """Remove the lines of failed records, so that these are computed again."""
        self.removed, cut = len(self.failed), self.cut

        def others() -> Iterator[bytes]:
            with self.path.open("rb") as lines:
                yield from (line for line in lines if "error" not in json.loads(line))

        if sys.platform == "win32":  # where an open file cannot be replaced
            self.file.close()
        write_file(self.path, others())
        self.file.close()
        self.open()
        self.read()
        self.cut = cut

    def write(self, results: list[Mapping[str, Any]]) -> None:
        """Append the lines of some results.

        Raises UsageError if writing fails, e.g. on a full disk; the file still ends with a complete line.
        """
        text = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in results)
        data = memoryview(text.encode(errors="backslashreplace"))
        try:
            with write_errors(self.path):
                written = 0
                while written < len(data):
                    written += self.file.write(data[written:])
                if time.monotonic() - self.synced > SYNC:
                    self.sync()
        except BaseException:
            with suppress(OSError):
                self.file.truncate(self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def close(self) -> None:
        """Wait until all lines are on the disk, and release the lock."""
        with write_errors(self.path):
            try:
                self.sync()
            finally:
                self.file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close the output; after an error, remove it if it is empty."""
        if kind is not None and not self.size and not self.removed and not (self.embeds and self.vector_files()):
            for path in (self.side, self.path):
                with suppress(OSError):
                    path.unlink()
        self.close()


def result_of(line: bytes) -> dict[str, Any] | None:
    """The result in a line of the output; None if it is incomplete."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line) if line.endswith(b"\n") else None
        if isinstance(found, dict) and ("line" if "error" in found else "id") in found:
            return found
    return None
