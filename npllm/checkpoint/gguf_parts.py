"""A model in several .gguf files, as llama.cpp writes large ones: m-00001-of-00003.gguf and so on.

The metadata of each part give its number, counted from 0 (split.no), the number of parts (split.count) and the number
of tensors in all of them (split.tensors.count). All other metadata are in the first part.
Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, UnavailableError
from ..storage.stored import Stored
from .gguf import MOST, read_gguf

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def read_gguf_model(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata of a model, and the locations of its tensors, in one .gguf file or in all parts.

    path : the file, or any of the parts

    Raises
    ------
    ModelFileError : a part is missing, or belongs to another model; and as in `read_gguf`
    """
    metadata, tensors = read_gguf(path)
    if whole(metadata, COUNT, path, absent=1) <= 1:
        return metadata, tensors
    paths = parts_of(path, metadata)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ModelFileError(
            f"{path}: part {1 + metadata[NUMBER]} of {len(paths)}: {missing[0]} is missing; put all parts in one folder"
        )
    known = {path: (metadata, tensors)}
    if path != paths[0]:
        known[paths[0]] = read_gguf(paths[0])
    first = known[paths[0]][0]
    together: dict[str, Stored] = {}
    for number, part in enumerate(paths):
        more, found = known[part] if part in known else read_gguf(part)
        check_part(part, number, first, more)
        twice = sorted(together.keys() & found.keys())
        if twice:
            raise ModelFileError(
                f"{part}: expected each tensor in one part, got {twice[0]} in two; take the parts from one place"
            )
        together |= found
        if len(together) > MOST:
            raise ModelFileError(f"{part}: expected at most {MOST} tensors in all parts, got more")
    total = whole(first, TENSORS, paths[0], absent=len(together))
    if len(together) != total:
        raise ModelFileError(
            f"{paths[0]}: {TENSORS}: expected {total} tensors in all parts, got {len(together)};"
            " take the parts from one place"
        )
    return first, together


def check_part(path: Path, number: int, first: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raise ModelFileError unless this is part `number` of the model: its metadata must agree with the first part's."""
    for key in (NUMBER, COUNT, TENSORS, *metadata):
        expected = number if key == NUMBER else first.get(key, metadata.get(key))
        if metadata.get(key) != expected:
            raise ModelFileError(
                f"{path}: {key}: expected {expected!r:.80}, as in part 1, got {metadata.get(key)!r:.80}; take the parts"
                " from one place"
            )


def parts_of(path: Path, metadata: Mapping[str, Any] | None = None) -> list[Path]:
    """The paths of all parts of a model, of which `path` is one. With metadata, its name must agree with them.

    >>> [part.name for part in parts_of(Path("m-00002-of-00002.gguf"))]
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']

    Raises
    ------
    ModelFileError : the name does not agree with the metadata
    """
    match = NAME.fullmatch(path.name)
    if metadata is not None:
        number, count = whole(metadata, NUMBER, path), whole(metadata, COUNT, path)
        if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
            raise ModelFileError(
                f"{path}: expected a name that ends in -{number + 1:05}-of-{count:05}.gguf, as its metadata say, got"
                f" {path.name}; give the parts such names, in one folder"
            )
    if match is None or int(match[3]) == 0:
        return [path]
    suffix = path.name[-5:]
    return [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}{suffix}") for number in range(1, int(match[3]) + 1)]


def whole(metadata: Mapping[str, Any], key: str, path: Path, absent: int | None = None) -> int:
    """A whole number in the metadata. Raises ModelFileError if the value is anything else."""
    value = metadata.get(key, absent)
    if type(value) is not int or value < 0:
        raise ModelFileError(f"{path}: {key}: expected a whole number, got {value!r:.80}; download the file again")
    return value


def model_in(folder: Path) -> Path:
    """The .gguf file of a folder that has no config.json, or the first part; otherwise the folder itself.

    Raises
    ------
    ModelFileError : there are .gguf files of several models
    UnavailableError : the folder cannot be read
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
        if not files or (folder / "config.json").exists():
            return folder
    except OSError as error:
        raise UnavailableError(f"{folder}: cannot be read ({error.strerror or error})") from error
    models = {parts_of(path)[0]: path for path in reversed(files)}
    if len(models) > 1:
        names = ", ".join(path.name for path in sorted(models.values())[:5]) + (", ..." if len(models) > 5 else "")
        raise ModelFileError(f"{folder}: expected one model, got {len(models)}: {names}; give the name of one")
    return files[0]
