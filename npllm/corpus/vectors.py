"""Vectors in safetensors or parquet files, and the lines of the index, which name the file and the row of each.

OUT.jsonl is the index; its files are OUT-00000.safetensors, OUT-00001.safetensors, and so on. A file is complete before
the index names it. Vectors not yet indexed when a run stops are recomputed and the file overwritten.
"""

import importlib
import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnavailableError
from ..storage.files import write_file
from ..storage.safetensors_file import Entry, header
from .work import Result

# Approximate limits of a file. One is written when its first result is about SECONDS old: kill -9 loses no more.
ROWS, BYTES, SECONDS = 2000, 2**26, 30


def check_format(name: str) -> str:
    """The format. Raises UnavailableError for parquet where pyarrow is not installed."""
    if name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise UnavailableError("--format parquet needs pyarrow: pip install pyarrow") from error
    return name


def indexed(results: Iterable[Result], index: Path, number: int, kind: str = "safetensors") -> Iterator[list[Result]]:
    """Group results by file; write each file, then add "file" and "row". Results without vectors pass through singly.

    An error or Ctrl-C while the results are computed first writes those that are finished.

    number : of the first file
    kind : of the files, "safetensors" or "parquet"
    """
    group: list[Result] = []
    rows = size = 0
    start = 0.0
    try:
        for result in results:
            start = start if group else time.monotonic()
            group.append(result)
            if result.vectors is not None:
                rows, size = rows + len(result.vectors), size + result.vectors.nbytes
            if rows == 0:
                yield [group.pop()]
            elif rows >= ROWS or size >= BYTES or time.monotonic() - start > SECONDS:
                full, group, number = in_file(group, index, number, kind), [], number + 1
                yield full
                rows = size = 0
    except GeneratorExit:  # whoever reads the results has failed: nobody would write them
        raise
    except BaseException:
        if group:
            yield in_file(group, index, number, kind)
        raise
    if group:
        yield in_file(group, index, number, kind)


def in_file(group: list[Result], index: Path, number: int, kind: str) -> list[Result]:
    """Write the vectors of these results to one file, and name it in their answers."""
    vectors = [(result.answer["id"], result.vectors) for result in group if result.vectors is not None]
    path = index.with_name(f"{index.stem}-{number:05}.{kind}")
    write_file(path, parquet(vectors) if kind == "parquet" else safetensors(vectors))
    named, row = [], 0
    for result in group:
        place: dict[str, Any] = {}
        if result.vectors is not None:
            place = {"file": path.name, "row": row}
            row += len(result.vectors)
        named.append(result._replace(answer=result.answer | place, vectors=None))
    return named


Named = list[tuple[str | int, np.ndarray]]  # the id of a record, and its vectors [rows, ...]


def safetensors(vectors: Named) -> list[Any]:
    """The parts of a safetensors file with one tensor, "vectors" [rows, ...]."""
    shape = (sum(len(rows) for _, rows in vectors), *vectors[0][1].shape[1:])
    return [header([Entry("vectors", "F32", shape)], {"made_by": "npllm batch"}), *(rows.data for _, rows in vectors)]


def parquet(vectors: Named) -> list[Any]:
    """A parquet file with the columns "id", as text, and "vector", lists of one length (of lists, for a value of each
    head). The ids 1 and "1" become the same text; the index tells their rows apart."""
    arrow, writer = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    parts = []
    for _, rows in vectors:
        column = arrow.array(rows.ravel())
        for width in rows.shape[:0:-1]:
            column = arrow.FixedSizeListArray.from_arrays(column, width)
        parts.append(column)
    ids = [str(name) for name, rows in vectors for _ in rows]
    file = io.BytesIO()
    writer.write_table(arrow.table({"id": ids, "vector": arrow.chunked_array(parts)}), file)
    return [file.getbuffer()]
