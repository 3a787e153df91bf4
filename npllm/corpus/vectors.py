"""Vectors in safetensors files, and the lines of the index, which name the file and the row of each.

OUT.jsonl is the index; its files are OUT-00000.safetensors, OUT-00001.safetensors, and so on. A file is complete before
the index names it. What an interruption leaves without a line in the index is written again, under the same name.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..storage.files import write_file
from ..storage.safetensors_file import Entry, header
from .work import Result

ROWS, BYTES = 2000, 2**28  # a file has at most about so much


def indexed(results: Iterable[Result], index: Path, number: int) -> Iterator[list[Result]]:
    """The results in groups, each when its vectors are in a file, which their answers name; without vectors one by one.

    number : of the first file
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
            yield in_file(group, index, number)
            group, rows, size, number = [], 0, 0, number + 1
    if group:
        yield in_file(group, index, number)


def in_file(group: list[Result], index: Path, number: int) -> list[Result]:
    """Write the vectors of these results to one file, as its tensor "vectors" [rows, ...]."""
    found = [result.vectors for result in group if result.vectors is not None]
    path = index.with_name(f"{index.stem}-{number:05}.safetensors")
    shape = (sum(map(len, found)), *found[0].shape[1:])
    start = header([Entry("vectors", "F32", shape)], {"made_by": "npllm batch"})
    write_file(path, [start, *(vectors.data for vectors in found)])
    named, row = [], 0
    for result in group:
        place: dict[str, Any] = {}
        if result.vectors is not None:
            place = {"file": path.name, "row": row}
            row += len(result.vectors)
        named.append(result._replace(answer=result.answer | place, vectors=None))
    return named
