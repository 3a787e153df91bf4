"""The tensors of a folder in Hugging Face layout: one safetensors file, or several with an index."""

from pathlib import Path

from ..errors import ModelFileError
from ..storage.json_file import read_json
from ..storage.safetensors_file import read_header
from ..storage.stored import Stored

WHOLE = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = "adapter_config.json"
# Of a model of sentence-transformers, these heads are complete; ...ForCausalLM is only the name of what it came from.
HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LONGEST_NAME = 255  # bytes, on the systems that npllm runs on


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name: from model.safetensors, or the files in model.safetensors.index.json.

    Only the headers are read.

    Raises
    ------
    ModelFileError : files are missing, truncated or inconsistent
    """
    whole, index = (folder / name for name in WHOLE)
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


def check_kind(folder: Path) -> None:
    """Refuse a folder that is no whole language model or classifier: a LoRA adapter, or of sentence-transformers."""
    if (folder / ADAPTER).is_file():
        if any((folder / name).is_file() for name in WHOLE):
            raise ModelFileError(
                f"{folder}: expected a whole model, got a model with a LoRA adapter beside it; merge the adapter first,"
                f" or remove {ADAPTER}"
            )
        base = str(read_json(folder / ADAPTER).get("base_model_name_or_path"))[:200]
        raise ModelFileError(
            f"{folder}: expected a whole model, got an adapter (LoRA) for {base}; load that one, or merge both with"
            " peft's merge_and_unload and give the folder where save_pretrained writes the result"
        )
    if (folder / "modules.json").is_file():
        names = read_json(folder / "config.json").get("architectures")
        if not any(str(name).endswith(HEADS) for name in (names if isinstance(names, list) else ())):
            raise ModelFileError(
                f"{folder}: expected a language model or a classifier, got one of sentence-transformers (modules.json),"
                " which turns texts into vectors; take the language model that it was trained from"
            )


def checked_name(file: str, index: Path) -> str:
    """The name of a file in the index's folder; a path outside it is refused."""
    outside = any(character in file for character in "/\\\0")
    too_long = len(file.encode("utf-8", "surrogatepass")) > LONGEST_NAME
    if outside or too_long or not file.endswith(".safetensors"):
        raise ModelFileError(f"{index}: expected the name of a .safetensors file in the same folder, got {file!r}")
    return file
