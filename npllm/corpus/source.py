"""The input of a corpus: records from a .jsonl file, a .txt file with a prompt in each line, a .parquet file, or stdin.

A record is known by the number of its line. Empty lines are no records.
"""

import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import UsageError
from ..storage.json_file import LARGEST_JSON
from ..storage.paths import input_path
from .records import Line

JSON_LINES, TEXT, PARQUET = (".jsonl", ".ndjson"), (".txt",), (".parquet",)


class Source:
    """An input file, or what stdin held; the lines can be read more than once.

    fingerprint : the SHA-256 of its content
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        with self.path.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()

    def lines(self) -> Iterator[Line]:
        """The records, as JSON."""
        if self.kind in PARQUET:
            yield from parquet_rows(self.path)
            return
        with self.path.open("rb") as file:
            for number, data in enumerate(read_lines(file), 1):
                if not data.strip():
                    continue
                if self.kind in TEXT:
                    text = data.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")
                    data = json.dumps({"prompt": text}).encode()
                yield Line(number, data)


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than any record may be, only so much that it will be refused."""
    while data := file.readline(LARGEST_JSON + 1):
        rest = data
        while not rest.endswith(b"\n") and (rest := file.readline(LARGEST_JSON)):
            pass
        yield data


def parquet_rows(path: Path) -> Iterator[Line]:
    """The rows of a parquet file, as JSON."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    number = 0
    try:
        for group in parquet.ParquetFile(path).iter_batches():
            for row in group.to_pylist():
                number += 1
                given = {name: value for name, value in row.items() if value is not None}
                yield Line(number, json.dumps(given, default=str).encode())
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UsageError(f"{path}: expected a parquet file, got: {str(error).splitlines()[0]:.200}") from error


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """The source of that name. "-" is stdin, as .jsonl: it is copied to a temporary file, to be known by its content.

    Raises
    ------
    UsageError : it cannot be read, or its suffix is not one of a format that npllm reads
    """
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("-: expected records on stdin; pipe them in, or give a file")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stdin.jsonl"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            yield Source(path, ".jsonl")
        return
    path = input_path(name, name)
    kinds = (*JSON_LINES, *TEXT, *PARQUET)
    if path.suffix.lower() not in kinds:
        raise UsageError(f"{name}: expected a file {', '.join(kinds)}, or - for stdin")
    try:
        source = Source(path, path.suffix.lower())
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror or error}") from error
    yield source
