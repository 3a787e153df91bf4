"""A checkpoint in Hugging Face layout: config.json, and safetensors files, one or several with an index.

A safetensors file is 8 bytes (the length of the header), the header (a JSON object: for each tensor its dtype, its
shape, and from which byte to which it goes), and the numbers. Nothing in it is ever executed, unlike in .bin files.
"""

import json
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import ModelFileError
from ..storage.stored import FORMATS, Stored

LARGEST_JSON = 100_000_000  # bytes; also the safetensors library's own limit for a header
ENTRY = ("dtype", "shape", "data_offsets")
BYTES = ("I8", "U8")  # dtypes of one byte that are no numbers of a model: codes, masks
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def parse_json(text: bytes, where: Path) -> dict[str, Any]:
    """JSON that must be an object."""
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are not UTF-8
        raise ModelFileError(f"{where}: expected JSON, got {error}; get the file again") from error
    if not isinstance(keys, dict):
        raise ModelFileError(f"{where}: expected a JSON object, got {type(keys).__name__}; get the file again")
    return keys


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must be an object."""
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, there is none; take the whole folder of the checkpoint")
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ModelFileError(f"{path}: expected at most {LARGEST_JSON} bytes of JSON, got {size}")
    return parse_json(path.read_bytes(), path)


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder, by name: from model.safetensors, or the files of model.safetensors.index.json.

    Only the headers are read. Raises ModelFileError for files that are missing, cut short or contradict themselves.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return read_header(whole)
    if not index.is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f"only {pickled[0]}, which could run code when it is read" if pickled else "neither"
        raise ModelFileError(
            f"{folder}: expected {whole.name} or {index.name}, got {found}; take a checkpoint that has safetensors"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelFileError(f"{index}: weight_map: expected an object of file names, got {str(weight_map)[:80]!r}")
    shards = {file: read_header(folder / checked_name(file, index)) for file in sorted(set(weight_map.values()))}
    lost = [name for name, file in weight_map.items() if name not in shards[file]]
    if lost:
        raise ModelFileError(
            f"{index}: expected {lost[0]} in {weight_map[lost[0]]}, which does not have it"
            f" ({len(lost)} such tensors); get the index and the files from the same place"
        )
    return {name: shards[file][name] for name, file in weight_map.items()}


def checked_name(file: str, index: Path) -> str:
    """The name of a file beside the index; one that leads out of the folder is refused."""
    if "/" in file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
        raise ModelFileError(f"{index}: expected the name of a .safetensors file in the same folder, got {file!r}")
    return file


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors that one safetensors file says it has, after comparing what it says with the file's size."""
    if not path.is_file():
        raise ModelFileError(f"{path}: expected this file, there is none; get the missing part of the checkpoint")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_JSON):
            raise ModelFileError(
                f"{path}: expected a header of {length} bytes, got a file of {size} bytes; it is cut short or no"
                " safetensors file: get it again"
            )
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    start = 8 + length
    stored, ends = {}, [(0, 0)]
    for name, entry in header.items():
        dtype, shape, begin, end = read_entry(entry, name, path)
        stored[name] = Stored(path, name, dtype, shape, start + begin)
        ends.append((begin, end))
        size_of = prod(shape) if dtype in BYTES else stored[name].nbytes if dtype in FORMATS else end - begin
        if end - begin != size_of:
            expected = f"{size_of} bytes for {dtype} {list(shape)}"
            raise ModelFileError(f"{path}: {name}: expected {expected}, got {end - begin}")
    ends.sort()
    for (_, end), (begin, _) in pairwise(ends):
        if begin != end:
            raise ModelFileError(f"{path}: expected a tensor to begin at byte {end}, got {begin}: they overlap or gape")
    if start + ends[-1][1] != size:
        raise ModelFileError(f"{path}: expected {start + ends[-1][1]} bytes, got {size}; get the file again")
    return stored


def read_entry(entry: Any, name: str, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, first and last byte of one tensor in a header, checked one by one."""

    def is_counts(value: Any) -> TypeGuard[list[int]]:
        return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)

    dtype, shape, span = (entry.get(key) if isinstance(entry, dict) else None for key in ENTRY)
    if (
        not isinstance(dtype, str)
        or not dtype.isupper()
        or not is_counts(shape)
        or not is_counts(span)
        or len(span) != 2
        or len(shape) > 8
    ):
        raise ModelFileError(f"{path}: {name}: expected {', '.join(ENTRY)}, got {str(entry)[:80]!r}")
    if span[0] > span[1]:
        raise ModelFileError(f"{path}: {name}: expected data_offsets in order, got {span}")
    return dtype, tuple(shape), span[0], span[1]
