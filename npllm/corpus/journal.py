"""The output of a corpus: a line for each record, in a file that is continued after any interruption.

A side file, OUT.jsonl.run, says what the output is made from: fingerprints of the input and the model, and the options.
The same command continues the output; any other is refused. The output is locked while it is written, and the system
releases the lock when the process ends, however it ends.

Each result is one line, written at once. kill -9 and a full disk may leave the last line incomplete; after a power
failure, lines may be missing that had not reached the disk. So an output that is continued is first cut before its
first line that is not whole, and the records after that are computed again.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, UsageError
from ..storage.files import write_errors, write_file
from ..storage.json_file import json_text, parse_json, read_json
from ..storage.paths import output_file

if sys.platform != "win32":
    import fcntl

SYNC = 1.0  # seconds: how often the lines are made to reach the disk


class Journal:
    """An output file, open for more lines.

    done : the ids of the records with results
    failed : the numbers of the input's lines whose records became errors
    files : how many files of vectors the lines name
    """

    def __init__(self, name: str | Path, made_from: Mapping[str, Any]) -> None:
        """Open the output: a new one, or one that an earlier run with the same `made_from` (JSON values) has begun.

        Raises
        ------
        UsageError : it cannot be written, another process writes it, or it was made from something else
        """
        self.path = output_file(name, f"-o {name}")
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"-o {name}: expected a file, which can be continued, got a pipe or a device")
        self.side = self.path.with_name(f"{self.path.name}.run")
        self.done: set[str | int] = set()
        self.failed: set[int] = set()
        self.files = 0
        self.cut = 0  # bytes of incomplete lines that were removed
        self.synced = time.monotonic()
        with write_errors(self.path):
            self.file = self.path.open("a+b", buffering=0)
        try:
            self.lock()
            self.check_side(made_from)
            self.read()
        except BaseException:
            self.file.close()
            raise

    def lock(self) -> None:
        """Keep other processes away, where the system has locks."""
        if sys.platform != "win32":
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{self.path}: another npllm batch is writing it; wait for it, or stop it") from error
            except OSError:  # a file system without locks
                return

    def check_side(self, made_from: Mapping[str, Any]) -> None:
        """Write the side file of a new output; refuse to continue one that was made from something else."""
        if not self.path.stat().st_size:
            write_file(self.side, [json_text(made_from).encode()])
            return
        if not self.side.is_file():
            raise UsageError(f"{self.path}: expected a new file, or one that npllm batch has begun; give another name")
        try:
            before = read_json(self.side)
        except ModelFileError as error:
            raise UsageError(f"{error}: it belongs to {self.path}: give another name, or remove both") from error
        now = json.loads(json.dumps(made_from))
        for key in [*now, *before]:
            if before.get(key) != now.get(key):
                raise UsageError(
                    f"{self.path}: it was begun with {key} {before.get(key)!r:.60}, and now it is {now.get(key)!r:.60};"
                    " give another name for the output, or remove it to begin again"
                )

    def read(self) -> None:
        """Read the lines that there are, and cut off what is not whole."""
        whole, files = 0, set()
        with suppress(ModelFileError, KeyError), self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                found = parse_json(line, self.path)
                if "error" in found:
                    self.failed.add(found["line"])
                else:
                    self.done.add(found["id"])
                    files.add(found.get("file"))
                whole += len(line)
        self.files = len(files - {None})
        self.cut = self.path.stat().st_size - whole
        self.file.truncate(whole)
        self.size = whole

    def write(self, results: list[Mapping[str, Any]]) -> None:
        """Add the lines of some results.

        Raises UsageError if the disk is full, say; what is there remains, without half a line.
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
