"""The input of a corpus: records from a .jsonl file, a .txt file with a prompt in each line, a .parquet file, or stdin.

Records are identified by line number; blank lines are skipped.
"""

import codecs
import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UnavailableError, UsageError
from ..storage.files import write_errors
from ..storage.json_file import LARGEST_JSON
from ..storage.paths import input_path
from .records import Line

ROWS = 1024  # of a parquet file, read at a time
JSON_LINES, TEXT, PARQUET = (".jsonl", ".ndjson"), (".txt",), (".parquet",)


class Source:
    """An input file, or what stdin held; the lines can be read more than once.

    fingerprint : the SHA-256 of its content
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        with self.path.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()

    def count(self) -> int:
        """How many records there are."""
        if self.kind in PARQUET:
            with parquet_file(self.path) as file:
                return int(file.metadata.num_rows)
        return sum(1 for _ in self.lines())

    def lines(self) -> Iterator[Line]:
        """The records, as JSON."""
        if self.kind in PARQUET:
            yield from parquet_rows(self.path)
            return
        with self.path.open("rb") as file:
            for number, data in enumerate(read_lines(file), 1):
                if len(data) > LARGEST_JSON:
                    yield Line(number, b"", f"expected at most {LARGEST_JSON} bytes in a line, got more")
                elif data.strip():
                    yield text_line(number, data) if self.kind in TEXT else Line(number, data)


def text_line(number: int, data: bytes) -> Line:
    """The record of a line of a .txt file: its prompt."""
    data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
    try:
        text = data.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        return Line(number, b"{}", f"expected UTF-8, got the byte 0x{data[error.start]:02x} at byte {error.start}")
    return Line(number, json.dumps({"prompt": text}).encode())


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one longer than LARGEST_JSON, the first LARGEST_JSON + 1 bytes."""
    while data := file.readline(LARGEST_JSON + 1):
        rest = data
        while not rest.endswith(b"\n") and (rest := file.readline(LARGEST_JSON)):
            pass
        yield data


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An open parquet file. Raises UsageError if it, or what is read from it within the context, is broken."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UnavailableError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UsageError(f"{path}: expected a parquet file, got: {str(error).splitlines()[0]:.200}") from error


def parquet_rows(path: Path) -> Iterator[Line]:
    """The rows of a parquet file, as JSON."""
    with parquet_file(path) as file:
        rows = (row for group in file.iter_batches(ROWS) for row in group.to_pylist())
        for number, row in enumerate(rows, 1):
            try:
                line = Line(number, json.dumps(row, default=as_text).encode())
            except UnicodeDecodeError:
                line = Line(number, b"", "expected UTF-8 in binary columns, got other bytes")
            yield line


def as_text(value: Any) -> str:
    """A parquet value that JSON cannot hold, as text: bytes as UTF-8; a date, say, as Python prints it."""
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """The source of that name. "-" is stdin, as .jsonl: copied to a file, so that it can be fingerprinted and reread.

    Raises
    ------
    UsageError : it cannot be read, or its suffix is not one of a format that npllm reads
    UnavailableError : it is a parquet file, and pyarrow is not installed
    """
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("-: expected records on stdin; pipe them in, or give a file")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stdin.jsonl"
            with write_errors(path), path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            yield Source(path, ".jsonl")
        return
    path = input_path(name, name)
    kinds = (*JSON_LINES, *TEXT, *PARQUET)
    if path.suffix.lower() not in kinds:
        raise UsageError(f"{name}: expected a {', '.join(kinds[:-1])} or {kinds[-1]} file, or - for stdin")
    try:
        source = Source(path, path.suffix.lower())
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror or error}") from error
    yield source
