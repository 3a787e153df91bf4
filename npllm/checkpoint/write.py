"""Writing a model to a folder in Hugging Face layout, with its weights in another dtype: `npllm convert`.

A few tensors at a time are in memory, never the whole model. The folder is written under a temporary name and renamed
when it is complete. config.json, without which it is not a model, is written last.

A model in 8 or 4 bits loads without being quantized again. npllm keeps no hidden cache of quantized weights; a
converted folder serves as one.
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..devices.memory import check_memory, format_bytes
from ..errors import ModelFileError, UsageError
from ..families import FAMILIES, family_of, read_config
from ..families.family import Family
from ..storage.blocks import Split
from ..storage.files import new_file, remove_stale, write_errors, write_folder
from ..storage.groups import GroupLayout, quantize_groups
from ..storage.json_file import LARGEST_JSON, json_text
from ..storage.nibbles import pack
from ..storage.own_format import CODES, own_format, tensors_of
from ..storage.paths import output_folder
from ..storage.read_ahead import READERS, read_ahead
from ..storage.safetensors_file import Entry, header
from ..storage.stored import PIECE, Stored
from .gguf_config import config_keys, llama3_scaling
from .gguf_tokenizer import special_ids
from .hub import find
from .load import DTYPES, Files, of_folder, open_files, plan_folder, refusals
from .narrow import HALVES, QUANTIZED, in_order, layout_for, read_half, read_splits, row_order
from .parameters import bare_entry, stacked_entries
from .plan import Part
from .quantized import quantization_config
from .weights import read_weight, weight_shape

SHARD_BYTES = 5_000_000_000
NAMES_IN_FILES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
METADATA = {"format": "pt"}  # transformers refuses a file without it
# The files of the tokenizer and of generation, which are copied. The last four are for other libraries than npllm.
COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt"),
)


class Job(NamedTuple):
    """A tensor of the source, and the tensors that it becomes."""

    part: Part
    layout: GroupLayout | None  # None: a plain dtype
    outputs: list[Entry]
    turned: bool = False  # it becomes the transposed tensor, as in Hugging Face's files of GPT-2 and gpt-oss
    halves: Sequence[Part] = ()  # two tensors of the source, whose rows take turns in this one: gate and up of gpt-oss


class Written(NamedTuple):
    """The result of a conversion."""

    folder: Path
    files: int  # safetensors files
    nbytes: int  # of the weights
    part: str = ""  # what was written, if npllm does not compute the whole model, and the class that loads it
    quantized: int = 0  # matrices in 8 or 4 bits


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
    """Write a model to a new folder with its weights as dtype, and return what was written.

    `load` reads the folder, and so does transformers unless it is quantized. If npllm computes a part of the model
    only, such as the text part of one that reads pictures, that part is written, as the model that it is.

    Parameters
    ----------
    source, revision, cache_dir, offline, progress : as in `load`
    destination : a folder that does not exist or is empty
    dtype : "float32", "float16" or "bfloat16", for all tensors; "int8" or "int4" for the matrices, the rest float32
    shard_bytes : the weights are split into files of at most this size

    Raises
    ------
    UsageError : an unknown dtype; a destination that is not empty or cannot be written, or a full disk
    And those of `load`
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if shard_bytes < 1:
        raise UsageError(f"shard size: expected a positive number of bytes, got {shard_bytes}")
    place = checked_place(destination)
    path = find(None if source is None else str(source), revision, cache_dir, offline)
    with refusals(path):
        files = open_files(path)
        keys, small, part = described(files, path, dtype)
        jobs = planned(files, path, dtype, FAMILIES[keys["model_type"]])
        check_reading(files, keys, jobs, place, part)
        shards = in_shards(stacked_entries([output for job in jobs for output in job.outputs]), shard_bytes)
        check_room(jobs, place)

        def fill(folder: Path) -> None:
            write_shards(folder, shards, jobs, files.tensors, path, dtype, progress)
            write_texts(folder, small, shards, keys)

        write_folder(place, fill, last="config.json")
    nbytes = sum_bytes(output for group in shards.values() for output in group)
    return Written(place, len(shards), nbytes, part, sum(job.layout is not None for job in jobs))


def checked_place(destination: str | Path) -> Path:
    """The folder to write: it does not exist or is empty, and its parent exists. Links are resolved."""
    place = output_folder(destination, str(destination))
    if remove_stale(place / place.name if place.is_dir() else place):
        raise UsageError(f"{place}: another process is writing it; wait for it, or give another name")
    with write_errors(place):  # it may be a folder that cannot be listed
        if place.is_dir() and any(place.iterdir()):
            raise UsageError(
                f"{place}: expected a new folder or an empty one, got one with files in it; give another name"
            )
    return place


def planned(files: Files, path: Path, dtype: str, family: Family) -> list[Job]:
    """The tensors to write, in the order of the pass. `family` is that of the new folder: another for a part."""
    jobs, from_folder, own_names = [], path.is_dir(), path.is_dir() and family is family_of(files.config)
    for ours, parts in files.plans.items():
        plain = without_numbers(ours).removesuffix("_bias")
        halves = parts if plain in family.alternating and not from_folder else ()
        if halves:
            parts = [parts[0]._replace(shape=weight_shape(parts))]
        names = [part.name for part in parts] if own_names else hugging_face_names(ours, len(parts), family.names)
        for part, name in zip(parts, names, strict=True):
            if from_folder:  # a folder's rows stay in their order
                part = part._replace(interleaved_heads=0)
            shape = part.shape[::-1] if part.transposed else part.shape
            formats = [files.tensors[part.name].dtype]
            layout = layout_for(shape, formats, dtype, ours) if dtype in QUANTIZED else None
            if isinstance(layout, GroupLayout):
                tensors = tensors_of(own_format(layout.bits), shape)
                outputs = [Entry(name + suffix, *dtype_and_shape) for suffix, dtype_and_shape in tensors.items()]
                jobs.append(Job(part, layout, outputs, halves=halves))
            else:
                turned = len(shape) == 2 and plain in family.transposed and not part.transposed
                entry = Entry(name, NAMES_IN_FILES.get(dtype, "F32"), part.shape[:: -1 if turned else 1])
                jobs.append(Job(part, None, [bare_entry(entry, family.bare)], turned, halves))
    first = {name: i for i, name in reversed([*enumerate(job.outputs[0].name for job in jobs)])}
    return sorted(jobs, key=lambda job: first[job.outputs[0].name])  # what goes into one tensor is together


def without_numbers(ours: str) -> str:
    """Our name of a weight without its layer and its expert.

    >>> without_numbers("layers.3.experts.5.down_proj")
    'experts.down_proj'
    """
    return re.sub(r"^layers\.\d+\.|(?<=experts\.)\d+\.", "", ours)


def hugging_face_names(ours: str, parts: int, names: Mapping[str, str]) -> list[str]:
    """The names in a folder for the parts of a weight in a .gguf file.

    >>> from npllm.families import FAMILIES
    >>> hugging_face_names("layers.3.gate_up_proj", 2, FAMILIES["llama"].names)
    ['model.layers.3.mlp.gate_proj.weight', 'model.layers.3.mlp.up_proj.weight']
    """
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", ours)  # of the layer, and of the expert
    plain = without_numbers(ours)
    kind = "bias" if plain.endswith("_bias") else "weight"
    spellings = [spelling.split() for spelling in names[plain.removesuffix("_bias")].split(" | ")]
    spelling = next(spelling for spelling in spellings if len(spelling) == parts)
    for mark, number in zip("*#", numbers, strict=False):
        spelling = [name.replace(mark, number) for name in spelling]
    return [f"{name}.{kind}" for name in spelling]


def described(files: Files, path: Path, dtype: str) -> tuple[dict[str, Any], dict[str, str | bytes], str]:
    """The keys of config.json, the other small files by name, and what is written, if it is not the whole model."""
    part = ""
    if path.is_dir():
        of_part, part = family_of(files.config).part(files.keys)
        # auto_map names code in files that are not copied.
        left_out = ("dtype", "torch_dtype", "quantization_config", "auto_map")
        keys = {key: value for key, value in of_part.items() if key not in left_out}
        small: dict[str, str | bytes] = {name: small_file(path / name) for name in COPIED if (path / name).is_file()}
    else:
        keys, small = described_gguf(files, path)
    keys["torch_dtype"] = dtype if dtype in NAMES_IN_FILES else "float32"  # newer versions also read it as "dtype"
    if dtype in QUANTIZED:
        keys["quantization_config"] = quantization_config(QUANTIZED[dtype])
    return keys, small, f"{part}, as {', '.join(keys['architectures'])}" if part else ""


def small_file(path: Path) -> bytes:
    """The bytes of a file that is copied as it is. A link to a file of another folder is refused.

    Such a link in a model from elsewhere could put a private file into the new folder, which may be published. The
    local cache of the Hub consists of links from models--owner--name/snapshots to models--owner--name/blobs.
    """
    target = path.resolve()
    cached = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not cached and not target.is_relative_to(path.parent.resolve()):
        raise ModelFileError(
            f"{path}: expected a file of this folder, got a link to {target}; copy the file itself here"
        )
    size = target.stat().st_size
    if size > LARGEST_JSON:
        raise ModelFileError(f"{path}: expected at most {LARGEST_JSON} bytes, got {size}; remove it or get it again")
    return target.read_bytes()


def described_gguf(files: Files, path: Path) -> tuple[dict[str, Any], dict[str, str | bytes]]:
    """The same for a .gguf file, from its metadata."""
    metadata, tokenizer, config = files.keys, files.tokenizer, files.config
    assert tokenizer is not None  # a .gguf file without one is refused
    texts = tokenizer.pieces(range(len(tokenizer)))
    special = special_ids(metadata, texts)
    ids = {f"{name}_id": special.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    ends = sorted(tokenizer.end_ids.union(config.eos_token_id))
    keys = config_keys(path, metadata, files.tensors) | ids
    keys = {"hidden_act": "silu"} | keys | {"architectures": [family_of(config).lm_class]}
    if config.rope_scaling is not None and config.rope_scaling.kind == "factors":
        keys["rope_scaling"] = llama3_scaling(config)
    tokenizer_config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer_config |= {name: texts[i] for name, i in special.items()}
    tokenizer_config |= {"clean_up_tokenization_spaces": False, "model_max_length": config.max_position_embeddings}
    if tokenizer.chat_template is not None:
        tokenizer_config["chat_template"] = tokenizer.chat_template
    return keys, {
        "generation_config.json": json_text(ids | {"eos_token_id": ends}),
        "tokenizer.json": tokenizer.backend.to_str(pretty=True),
        "tokenizer_config.json": json_text(tokenizer_config),
    }


def check_reading(files: Files, keys: Mapping[str, Any], jobs: list[Job], place: Path, part: str) -> None:
    """Refuse a model that would not load again as the same one, before anything is written.

    part : what is written, if it is not the whole model: it may be of another family

    Raises
    ------
    ModelFileError : config.json cannot express the source's configuration, or a folder has no name for a tensor
    """
    config = read_config(keys, where=str(place / "config.json"))
    ours = files.config
    same = replace(
        config,
        family=ours.family if part else config.family,
        architectures=ours.architectures,
        rope_scaling=ours.rope_scaling,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
    )
    if same != ours:
        different = [f"{key} {value!r}" for key, value in vars(ours).items() if getattr(same, key) != value]
        raise ModelFileError(f"{place}: expected the same in config.json, which cannot express {', '.join(different)}")
    if "lm_head" in files.plans:
        # A tied model whose LM head differs from its embeddings: the new folder will have both. The plan would find out
        # by reading them, but they are not written yet.
        config = replace(config, tie_word_embeddings=False)
    tensors = {}
    for entry in stacked_entries([job.outputs[0] for job in jobs]):
        tensors[entry.name] = Stored(place, entry.name, entry.dtype, entry.shape, 0)
    for job in jobs:
        if job.layout is not None:
            shape = job.part.shape[::-1] if job.part.transposed else job.part.shape
            codes = job.outputs[0].name
            whole = codes.removesuffix(CODES)
            tensors[whole] = tensors.pop(codes)._replace(name=whole, dtype=own_format(job.layout.bits), shape=shape)
    plan_folder(config, of_folder(config, tensors), place)


def check_room(jobs: list[Job], place: Path) -> None:
    """Refuse a conversion that does not fit in memory or on the disk, before anything is written."""
    total = sum(sum_bytes(job.outputs) for job in jobs)
    largest = max(
        4 * prod(job.part.shape) if job.part.transposed or job.halves else sum_bytes(job.outputs) for job in jobs
    )
    check_memory({f"{2 * READERS + 1} tensors": (2 * READERS + 1) * largest, "buffers": READERS * 32 * PIECE})
    free = shutil.disk_usage(place if place.is_dir() else place.parent).free
    if total > free:
        raise UsageError(
            f"{place}: expected {format_bytes(total)} of free disk space, got {format_bytes(free)}; free some, or"
            " choose another disk"
        )


def write_shards(
    folder: Path,
    shards: Mapping[str, list[Entry]],
    jobs: list[Job],
    tensors: Mapping[str, Stored],
    path: Path,
    dtype: str,
    progress: bool,
) -> None:
    """Write the safetensors files."""

    def read(job: Job) -> list[np.ndarray]:
        with refusals(path):
            return arrays(job, tensors, dtype)

    total = sum(sum_bytes(outputs) for outputs in shards.values())
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=not progress, leave=False)
    with bar, closing(read_ahead(read, jobs, waiting=READERS)) as made:
        flat = (array for several in made for array in several)
        for name, outputs in shards.items():
            with new_file(folder / name) as file:
                file.write(header(outputs, METADATA))
                for output in outputs:
                    left = output.nbytes
                    while left > 0:  # several arrays, if the experts are in one tensor
                        array = next(flat)
                        file.write(array.reshape(-1).view(np.uint8))
                        bar.update(array.nbytes)
                        left -= array.nbytes
                    assert left == 0, f"{output.name}: {output.nbytes - left} bytes for {output}"


def write_texts(
    folder: Path, small: Mapping[str, str | bytes], shards: Mapping[str, list[Entry]], keys: Mapping[str, Any]
) -> None:
    """Write the files other than the weights, config.json last."""
    texts = dict(small)
    if len(shards) > 1:
        weight_map = {output.name: name for name, outputs in shards.items() for output in outputs}
        total = sum(sum_bytes(outputs) for outputs in shards.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        texts["model.safetensors.index.json"] = json_text(index)
    texts["config.json"] = json_text(keys)
    for name, text in texts.items():
        with new_file(folder / name) as file:
            file.write(text.encode() if isinstance(text, str) else text)


def sum_bytes(outputs: Iterable[Entry]) -> int:
    """The bytes of some tensors together."""
    return sum(output.nbytes for output in outputs)


def arrays(job: Job, tensors: Mapping[str, Stored], dtype: str) -> list[np.ndarray]:
    """The data of the job's outputs."""
    part, layout = job.part._replace(first=0), job.layout
    if layout is not None:
        if part.transposed or job.halves:
            weight = read_weight(job.halves or [part], tensors, dtype)
            splits = iter([quantize_groups(by_turns(weight) if job.halves else weight, layout.bits)])
        else:
            splits = read_splits(tensors[part.name], layout)
        whole = in_order([packed(split, layout) for split in splits], row_order(part))
        return [array for array in whole if array is not None]
    as_stored, out = part._replace(transposed=False), np.empty(part.shape, dtype=HALVES.get(dtype, np.float32))
    if job.halves:
        out[...] = by_turns(read_weight(job.halves, tensors, dtype))
    elif dtype in HALVES:
        read_half(out.reshape(part.shape[0], -1), as_stored, tensors[part.name])
    else:
        read_weight([as_stored], tensors, dtype, out)
    return [np.ascontiguousarray(out.T) if job.turned else out]


def by_turns(weight: np.ndarray) -> np.ndarray:
    """The rows of the first half and of the second alternately.

    >>> by_turns(np.array([1, 2, 3, 4]))
    array([1, 3, 2, 4])
    """
    return weight.reshape(2, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


def packed(split: Split, layout: GroupLayout) -> Split:
    """The split with 4-bit codes packed, as files have them."""
    one_by_one = layout.bits == 4 and split.codes.shape[-1] == layout.group
    return split._replace(codes=pack(split.codes)) if one_by_one else split


def in_shards(outputs: list[Entry], most: int) -> dict[str, list[Entry]]:
    """The tensors of each file by its name, which has a number if there are several files."""
    groups: list[list[Entry]] = [[]]
    for output in outputs:
        if groups[-1] and sum_bytes(groups[-1]) + output.nbytes > most:
            groups.append([])
        groups[-1].append(output)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}
