"""The tensors of a folder in Hugging Face layout: one safetensors file, or several with an index."""

from pathlib import Path

from ..errors import ModelFileError
from ..storage.json_file import read_json
from ..storage.safetensors_file import read_header
from ..storage.stored import Stored

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LONGEST_NAME = 255  # bytes, on the systems that npllm runs on


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name: from model.safetensors, or the files in model.safetensors.index.json.

    Only the headers are read.

    Raises
    ------
    ModelFileError : files are missing, truncated or inconsistent
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
    """The name of a file in the index's folder; a path outside it is refused."""
    outside = any(character in file for character in "/\\\0")
    too_long = len(file.encode("utf-8", "surrogatepass")) > LONGEST_NAME
    if outside or too_long or not file.endswith(".safetensors"):
        raise ModelFileError(f"{index}: expected the name of a .safetensors file in the same folder, got {file!r}")
    return file
