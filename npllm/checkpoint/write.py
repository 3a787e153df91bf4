"""A model to a folder in Hugging Face layout, with its matrices in another dtype: what `npllm convert` does.

A few tensors at a time are in memory, never the whole model. The folder is written under another name beside its place
and gets its own name when all is there; config.json, without which it is no model, is written last.

A model in 8 or 4 bits loads without quantizing it again. npllm keeps no hidden cache of what it made of a model: a
converted folder serves as one.

Source: https://github.com/huggingface/safetensors for the file format.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..devices.memory import check_memory, format_bytes
from ..errors import ModelFileError, NpllmError, UsageError
from ..families import family_of, read_config
from ..storage.gguf_blocks import Split
from ..storage.packed import quantize_groups
from ..storage.stored import PIECE, READERS, Stored, read_ahead
from .gguf_config import config_keys, llama3_scaling
from .gguf_tokenizer import special_ids
from .hub import find
from .load import DTYPES, Files, open_files, plan_folder, refusals
from .narrow import HALVES, QUANTIZED, Storage, in_order, read_half, read_splits, row_order, storage_for
from .plan import Part
from .quantized import CODES, DTYPE_OF_CODES, DTYPE_OF_SCALES, GROUP, MINIMUM, SCALE, quantization_config
from .weights import read_weight

SHARD_BYTES = 5_000_000_000
NAMES_IN_FILES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
# What belongs to a tokenizer or to generation: copied as it is. The last are for older libraries than npllm's.
COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt"),
)


class Output(NamedTuple):
    """A tensor that is written."""

    name: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return SIZES[self.dtype] * prod(self.shape)


class Job(NamedTuple):
    """A tensor of the source, and what becomes of it."""

    part: Part
    storage: Storage | None  # None: plain numbers
    outputs: list[Output]


class Written(NamedTuple):
    """What a conversion made."""

    folder: Path
    files: int  # with weights
    nbytes: int  # of the weights


def convert(
    source: str | Path | None,
    destination: str | Path,
    dtype: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Write a model with its weights as dtype to a new folder, which `load` takes, and transformers if not quantized.

    Parameters
    ----------
    source, revision, cache_dir, offline, progress : as in `load`
    destination : a folder that is not there, or empty
    dtype : "float32", "float16" or "bfloat16", for all tensors; "int8" or "int4" for the matrices, the rest float32
    shard_bytes : the weights are split into files of at most so many bytes

    Raises
    ------
    UsageError : an unknown dtype; a destination with something in it, that cannot be written, or on a full disk
    Errors of `load`
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if shard_bytes < 1:
        raise UsageError(f"shard size: expected a positive number of bytes, got {shard_bytes}")
    place = checked_place(destination)
    path = find(None if source is None else str(source), revision, cache_dir, offline)
    with refusals(path):
        files = open_files(path)
        jobs = planned(files, path, dtype)
        keys, small = described(files, path, dtype)
        check_reading(files, keys, jobs, place)
        return write(files, jobs, keys, small, path, place, dtype, shard_bytes, progress)


def checked_place(destination: str | Path) -> Path:
    """The folder to be made: not there yet, or empty, in a folder that is there."""
    place = Path(destination).expanduser().resolve()
    if not place.parent.is_dir():
        raise UsageError(f"{place.parent}: expected a folder to write to, there is none")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        found = "one with files in it" if place.is_dir() else "a file"
        raise UsageError(f"{place}: expected a new folder or an empty one, got {found}; give another name")
    return place


def planned(files: Files, path: Path, dtype: str) -> list[Job]:
    """What is written, in the order of the pass."""
    jobs = []
    for ours, parts in files.plans.items():
        names = (
            [part.name for part in parts]
            if path.is_dir()
            else hugging_face_names(ours, len(parts), family_of(files.config).names)
        )
        for part, name in zip(parts, names, strict=True):
            shape = part.shape[::-1] if part.transposed else part.shape
            storage = storage_for(shape, [files.tensors[part.name].dtype], dtype) if dtype in QUANTIZED else None
            outputs = [Output(name, NAMES_IN_FILES.get(dtype, "F32"), part.shape)]
            if storage is not None:
                rows, width = shape
                outputs = [Output(name + CODES, DTYPE_OF_CODES[storage.bits], (rows, width * storage.bits // 8))]
                scaled = [SCALE, MINIMUM] if storage.has_minimum else [SCALE]
                outputs += [
                    Output(name + suffix, DTYPE_OF_SCALES[storage.bits], (rows, width // GROUP)) for suffix in scaled
                ]
            jobs.append(Job(part, storage, outputs))
    return jobs


def hugging_face_names(ours: str, parts: int, names: Mapping[str, str]) -> list[str]:
    """What the parts of a weight of a .gguf file are called in a folder.

    >>> from npllm.families import FAMILIES
    >>> family = FAMILIES["llama"]
    >>> hugging_face_names("layers.3.gate_up_proj", 2, family.names)
    ['model.layers.3.mlp.gate_proj.weight', 'model.layers.3.mlp.up_proj.weight']
    """
    *where, leaf = ours.split(".")
    kind = "bias" if leaf.endswith("_bias") else "weight"
    spellings = [spelling.split() for spelling in names[leaf.removesuffix("_bias")].split(" | ")]
    spelling = next(spelling for spelling in spellings if len(spelling) == parts)
    return [f"{name.replace('*', where[-1] if where else '')}.{kind}" for name in spelling]


def described(files: Files, path: Path, dtype: str) -> tuple[dict[str, Any], dict[str, str | bytes]]:
    """The keys of config.json, and the other small files, by name."""
    if path.is_dir():
        # auto_map names code in files that are not copied, and that nobody needs.
        left_out = ("dtype", "torch_dtype", "quantization_config", "auto_map")
        keys = {key: value for key, value in files.keys.items() if key not in left_out}
        small: dict[str, str | bytes] = {name: (path / name).read_bytes() for name in COPIED if (path / name).is_file()}
    else:
        keys, small = described_gguf(files, path)
    keys["torch_dtype"] = dtype if dtype in NAMES_IN_FILES else "float32"  # also what newer versions call "dtype"
    if dtype in QUANTIZED:
        keys["quantization_config"] = quantization_config(QUANTIZED[dtype])
    return keys, small


def described_gguf(files: Files, path: Path) -> tuple[dict[str, Any], dict[str, str | bytes]]:
    """The same of a .gguf file, from its metadata."""
    metadata, tokenizer, config = files.keys, files.tokenizer, files.config
    assert tokenizer is not None  # every .gguf file has one, or is refused
    texts = tokenizer.pieces(range(len(tokenizer)))
    special = special_ids(metadata, texts)
    ids = {f"{name}_id": special.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    ends = sorted(tokenizer.end_ids.union(config.eos_token_id))
    keys = config_keys(path, metadata, files.tensors) | ids
    keys |= {"architectures": [family_of(config).causal_lm], "hidden_act": "silu"}
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "factors":
        keys["rope_scaling"] = llama3_scaling(config)
    tokenizer_config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer_config |= {name: texts[i] for name, i in special.items()}
    tokenizer_config |= {"clean_up_tokenization_spaces": False, "model_max_length": config.max_position_embeddings}
    if tokenizer.chat_template is not None:
        tokenizer_config["chat_template"] = tokenizer.chat_template
    return keys, {
        "generation_config.json": as_json(ids | {"eos_token_id": ends}),
        "tokenizer.json": tokenizer.backend.to_str(pretty=True),
        "tokenizer_config.json": as_json(tokenizer_config),
    }


def check_reading(files: Files, keys: Mapping[str, Any], jobs: list[Job], place: Path) -> None:
    """Refuse what would not load again as the same model, before anything is written.

    Raises
    ------
    ModelFileError : config.json cannot tell what the source does; its tensors have no names there
    """
    config = read_config(keys, where=str(place / "config.json"))
    ours = files.config
    same = replace(
        config,
        architectures=ours.architectures,
        rope_scaling=ours.rope_scaling,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
    )
    if same != ours:
        different = [f"{key} {value!r}" for key, value in vars(ours).items() if getattr(same, key) != value]
        raise ModelFileError(f"{place}: expected the same in config.json, which cannot say {', '.join(different)}")
    tensors = {}
    for job in jobs:
        output, kept = job.outputs[0], job.storage
        name = output.name if kept is None else output.name.removesuffix(CODES)
        dtype = output.dtype if kept is None else f"int{kept.bits}/{kept.group}"
        shape = job.part.shape[::-1] if kept is not None and job.part.transposed else job.part.shape
        tensors[name] = Stored(place, name, dtype, shape, 0)
    plan_folder(config, tensors, place)


def write(
    files: Files,
    jobs: list[Job],
    keys: Mapping[str, Any],
    small: Mapping[str, str | bytes],
    path: Path,
    place: Path,
    dtype: str,
    shard_bytes: int,
    progress: bool,
) -> Written:
    """All files of the folder."""
    outputs = [output for job in jobs for output in job.outputs]
    total = sum(output.nbytes for output in outputs)
    largest = max(4 * prod(job.part.shape) if job.part.transposed else sum_bytes(job.outputs) for job in jobs)
    check_memory({f"{2 * READERS + 1} tensors": (2 * READERS + 1) * largest, "buffers": READERS * 32 * PIECE})
    free = shutil.disk_usage(place.parent).free
    if total > free:
        raise UsageError(f"{place}: expected room for {format_bytes(total)}, got {format_bytes(free)} on its disk")

    def read(job: Job) -> list[np.ndarray]:
        with refusals(path):
            return arrays(job, files.tensors, dtype)

    shards = in_shards(outputs, shard_bytes)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=not progress)
    with whole_or_nothing(place) as folder, bar, closing(read_ahead(read, jobs, waiting=READERS)) as made:
        flat = (array for several in made for array in several)
        for name, tensors in shards.items():
            with written(folder / name) as file:
                file.write(header(tensors))
                for output in tensors:
                    array = next(flat)
                    assert array.nbytes == output.nbytes, f"{output.name}: {array.nbytes} bytes for {output}"
                    file.write(array.reshape(-1).view(np.uint8))
                    bar.update(array.nbytes)
        texts = dict(small)
        if len(shards) > 1:
            weight_map = {output.name: name for name, tensors in shards.items() for output in tensors}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            texts["model.safetensors.index.json"] = as_json(index)
        texts["config.json"] = as_json(keys)  # the last
        for name, text in texts.items():
            with written(folder / name) as file:
                file.write(text.encode() if isinstance(text, str) else text)
    return Written(place, len(shards), total)


def sum_bytes(outputs: list[Output]) -> int:
    """The bytes of some tensors."""
    return sum(output.nbytes for output in outputs)


def arrays(job: Job, tensors: Mapping[str, Stored], dtype: str) -> list[np.ndarray]:
    """The numbers of the job's outputs."""
    part, storage = job.part._replace(first=0), job.storage
    stored = tensors[part.name]
    if storage is not None:
        order = row_order(part)
        if part.transposed:
            weight = read_weight([part], tensors, dtype)
            pieces = [two_in_a_byte(Split(*quantize_groups(weight, storage.bits)), storage)]
        else:
            pieces = [two_in_a_byte(split, storage) for split in read_splits(stored, storage)]
        whole = in_order(pieces, order)
        return [array for array in whole if array is not None]
    as_it_lies = part._replace(transposed=False)
    if dtype not in HALVES:
        return [read_weight([as_it_lies], tensors, dtype)]
    place: np.ndarray = np.empty(part.shape, dtype=HALVES[dtype])
    read_half(place.reshape(part.shape[0], -1), as_it_lies, stored)
    return [place]


def two_in_a_byte(split: Split, storage: Storage) -> Split:
    """Codes of 4 bits as the file has them: of each group the first half in the lower bits."""
    half = storage.group // 2
    if storage.bits == 8 or split.codes.shape[-1] == half:
        return split
    return split._replace(codes=split.codes[..., :half] | (split.codes[..., half:] << 4))


def in_shards(outputs: list[Output], most: int) -> dict[str, list[Output]]:
    """The tensors of each file; of one file alone the name has no number."""
    groups: list[list[Output]] = [[]]
    for output in outputs:
        if groups[-1] and sum_bytes(groups[-1]) + output.nbytes > most:
            groups.append([])
        groups[-1].append(output)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def header(outputs: list[Output]) -> bytes:
    """What a safetensors file of these tensors begins with, filled up to a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
    begin = 0
    for output in outputs:
        end = begin + output.nbytes
        entries[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def as_json(keys: Mapping[str, Any]) -> str:
    """Keys as a file has them."""
    return json.dumps(keys, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def written(path: Path) -> Iterator[Any]:
    """A new file, on the disk when this ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_or_nothing(place: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `place` at the end, and is removed if that is not reached.

    Raises
    ------
    UsageError : it cannot be written
    """
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        try:
            yield part
            if place.exists():
                place.rmdir()  # it is empty; some systems do not rename onto it
            part.rename(place)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UsageError(f"{place}: cannot be written ({error.strerror or error})") from error
