"""Vectors in safetensors or parquet files, and the lines of the index, which name the file and the row of each.

OUT.jsonl is the index; its files are OUT-00000.safetensors, OUT-00001.safetensors, and so on. A file is complete before
the index names it. What an interruption leaves without a line in the index is written again, under the same name.
"""

import importlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnavailableError
from ..storage.files import write_file
from ..storage.safetensors_file import Entry, header
from .work import Result

ROWS, BYTES = 2000, 2**28  # a file has at most about so much


def check_format(name: str) -> str:
    """The format. Raises UnavailableError for parquet where pyarrow is not installed."""
    if name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise UnavailableError("--format parquet needs pyarrow: pip install pyarrow") from error
    return name


def indexed(results: Iterable[Result], index: Path, number: int, kind: str = "safetensors") -> Iterator[list[Result]]:
    """The results in groups, each when its vectors are in a file, which their answers name; without vectors one by one.

    number : of the first file
    kind : of the files, "safetensors" or "parquet"
    """
    group: list[Result] = []
    rows = size = 0
    for result in results:
        group.append(result)
        if result.vectors is not None:
            rows, size = rows + len(result.vectors), size + result.vectors.nbytes
        if rows == 0:
            yield [result]
            group = []
        elif rows >= ROWS or size >= BYTES:
            yield in_file(group, index, number, kind)
            group, rows, size, number = [], 0, 0, number + 1
    if group:
        yield in_file(group, index, number, kind)


def in_file(group: list[Result], index: Path, number: int, kind: str) -> list[Result]:
    """Write the vectors of these results to one file, and name it in their answers."""
    full = [(result.answer["id"], result.vectors) for result in group if result.vectors is not None]
    ids = [name for name, rows in full for _ in rows]
    vectors = np.concatenate([rows for _, rows in full])
    path = index.with_name(f"{index.stem}-{number:05}.{kind}")
    write_file(path, parquet(ids, vectors) if kind == "parquet" else safetensors(vectors))
    named, row = [], 0
    for result in group:
        place: dict[str, Any] = {}
        if result.vectors is not None:
            place = {"file": path.name, "row": row}
            row += len(result.vectors)
        named.append(result._replace(answer=result.answer | place, vectors=None))
    return named


def safetensors(vectors: np.ndarray) -> list[Any]:
    """The parts of a safetensors file with one tensor, "vectors" [rows, ...]."""
    return [header([Entry("vectors", "F32", vectors.shape)], {"made_by": "npllm batch"}), vectors.data]


def parquet(ids: list[str | int], vectors: np.ndarray) -> list[Any]:
    """A parquet file with the columns "id", as text, and "vector", lists of one length (of lists, for a value of each
    head)."""
    arrow, writer = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    column = arrow.array(vectors.ravel())
    for width in vectors.shape[:0:-1]:
        column = arrow.FixedSizeListArray.from_arrays(column, width)
    file = io.BytesIO()
    writer.write_table(arrow.table({"id": [str(one) for one in ids], "vector": column}), file)
    return [file.getbuffer()]
