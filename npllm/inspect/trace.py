"""Traces: every value of a pass over a text, by its name, to inspect or to store in a file.

A trace file is a safetensors file. Each value is a tensor under its name (docs/taps.md lists them), without a batch
axis. The metadata are:

    names      a JSON list of the names in the order of execution, because a safetensors file is unordered
    ids        the token ids of the text: 504,3575,282
    model, dtype, device, made_by    what computed the values

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6).
"""

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from errno import ENOENT
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
from array_api_compat import device

from ..arrays import Array, array_namespace
from ..cache import empty_cache
from ..devices.device import to_host
from ..devices.memory import check_memory
from ..errors import ModelFileError, NotEnoughMemoryError, NpllmError, UsageError
from ..lm import LM, forward
from ..options import check_prompt
from ..storage.files import write_file
from ..storage.json_file import parse_value
from ..storage.paths import input_path
from ..storage.safetensors_file import Entry, header, read_whole_header
from ..storage.stored import Stored, read_exactly
from ..tap import Tap, untapped
from ..text.arguments import check_model, checked, token_ids
from .record import matches, record

# The dtypes of a tensor in a trace file; npllm writes F32.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "BOOL": np.bool_}
MOST_IDS = 2**20  # a trace of so long a text would take terabytes


def trace(
    lm: LM, ids: Sequence[int], only: str = "*", tap: Tap = untapped, chunks: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The tapped values of the tokens, by name, and the logits: in float32 on the host, in the order of execution.

    Parameters
    ----------
    only : the names to record, as in `record`; the logits are always recorded
    tap : applied to every value before it is recorded, such as `patch`
    chunks : how many tokens to compute at a time, with the KV cache: [4, 1] for 5 tokens is all but the last, then one
        step. By default, all in one pass without a cache

    Raises
    ------
    UsageError : a pattern in `only` matches nothing; there are too many ids, or one is outside the vocabulary
    NotEnoughMemoryError : the values do not fit
    """
    check_model(lm)
    checked("only", only, str, lambda _: True, "a pattern of names")
    ids = check_prompt(ids, lm.config, new=0)
    chunks = None if chunks is None else token_ids(chunks, "chunks", "a list of whole numbers")
    if chunks is not None and (sum(chunks) != len(ids) or min(chunks) < 1):
        raise UsageError(f"chunks: expected parts of {len(ids)} tokens, got {list(chunks)}")
    like = lm.weights.norm
    xp = array_namespace(like)
    on_device = xp.asarray(list(ids), device=device(like))

    # A pass over only the first token gives the names, and the sizes that the values of all tokens will have.
    first: dict[str, Array] = {}
    forward(on_device[:1], lm, tap=record(first))
    check_patterns(only, first)
    patterns = f"{only},logits"
    sizes = {
        name: 4 * prod(value.shape) * len(ids) ** (2 if name.endswith((".scores", ".weights")) else 1)
        for name, value in first.items()
    }
    scores = 3 * 4 * lm.config.num_attention_heads * len(ids) ** 2  # of one layer: raw, masked, and as weights
    recorded = sum(size for name, size in sizes.items() if matches(name, patterns))
    check_memory({"traced values": recorded, "attention scores": scores})

    seen: dict[str, np.ndarray] = {}
    keep = record(seen, patterns)

    def recorder(name: str, value: Array) -> Array:
        value = tap(name, value)
        if matches(name, patterns):  # copies views, and moves values off the GPU
            keep(name, np.ascontiguousarray(to_host(value), dtype=np.float32))
        return value

    cache = None if chunks is None else empty_cache(lm.config, len(ids), like=like)
    start = 0
    for count in chunks or [len(ids)]:
        part = on_device[start : start + count]
        forward(part, lm, cache, total_length=len(ids), tap=recorder)
        start += count
    return seen


def check_patterns(only: str, names: Collection[str], where: str = "--only") -> None:
    """Raise UsageError for a pattern that matches no name, with similar names.

    >>> check_patterns("*.wieghts", ["layers.0.attention.weights", "norm"])
    Traceback (most recent call last):
    npllm.errors.UsageError: --only: no value is named *.wieghts; did you mean *.weights?
    """
    for pattern in only.split(","):
        if not any(matches(name, pattern) for name in names):
            any_layer = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
            ends = dict.fromkeys("*." + name.rsplit(".", 1)[-1] for name in any_layer if "." in name)
            near = difflib.get_close_matches(pattern, [*any_layer, *ends, *names][:1000], n=3)
            if any(matches(name, re.sub(r"\d+", "*", pattern)) for name in names):
                hint = f"the layers are 0 to {max(int(i) for name in names for i in re.findall(r'[0-9]+', name))}"
            elif near:
                hint = f"did you mean {', '.join(near)}?"
            else:
                hint = f"the names are {', '.join(any_layer)}"
            raise UsageError(f"{where}: no value is named {pattern}; {hint}")


def write_trace(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write the values to a trace file, atomically; an existing file is replaced. See `write_file`.

    The order of `arrays` becomes the order of execution. The same values and metadata give the same bytes.

    Raises
    ------
    UsageError : it cannot be written: no permission, no space
    """
    data = {name: np.ascontiguousarray(array, dtype="<f4") for name, array in arrays.items()}
    entries = [Entry(name, "F32", array.shape) for name, array in data.items()]
    # The name of a model's folder may have bytes that are not UTF-8, which Python reads as unpaired surrogates.
    texts = {key: value.encode(errors="backslashreplace").decode() for key, value in metadata.items()}
    start = header(entries, {"names": json.dumps(list(arrays)), **texts})
    write_file(path, [start, *(array.data for array in data.values())])


def read_trace(path: str | Path, only: str = "*") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The values in a trace file, in float32 and in the order of execution, and its metadata.

    only : the names to read, as in `record`; the masks ("visible") are always read

    Raises
    ------
    UsageError : the file cannot be read, or a pattern in `only` matches nothing in it
    ModelFileError : the file is not a valid trace
    NotEnoughMemoryError : the values do not fit
    """
    path = input_path(path, str(path))
    try:
        stored, metadata = read_trace_header(path)
        names = names_of(path, metadata, stored)
        check_patterns(only, names, f"{path}: --only")
        check_tokens(path, stored, metadata)
        wanted = [stored[name] for name in names if matches(name, f"{only},*.visible")]
        check_memory({str(path): sum(4 * prod(one.shape) for one in wanted)})
        return {one.name: read_value(one) for one in wanted}, metadata
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        if isinstance(error, NpllmError):
            raise
        raise NotEnoughMemoryError(f"{path}: the values do not fit ({error}); choose some with --only") from error


def read_trace_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors and the metadata of a trace file."""
    if not path.is_file():
        found = "it is not a file" if path.exists() else os.strerror(ENOENT)
        raise UsageError(f"{path}: cannot be read: {found}")
    try:
        return read_whole_header(path)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: expected a trace, which is a safetensors file, got {error}") from error


def check_tokens(path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Refuse a trace whose values are not all of the same number of tokens, that of its ids."""
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPES or len(tensor.shape) < 2 or 0 in tensor.shape:
            raise ModelFileError(
                f"{path}: {name}: expected a tensor ({', '.join(DTYPES)}) with two or more axes, got {tensor.dtype}"
                f" {list(tensor.shape)}"
            )
    tokens = {tensor.shape[-2] for tensor in stored.values()}
    if "ids" in metadata:
        tokens.add(len(parse_ids(metadata["ids"], f"{path}: ids", ModelFileError)))
    if len(tokens) != 1:
        raise ModelFileError(
            f"{path}: expected values of equally many tokens, got {sorted(tokens)[:5]}; write the file again"
        )


def read_value(tensor: Stored) -> np.ndarray:
    """A value in float32."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw: np.ndarray = np.empty(tensor.shape, DTYPES[tensor.dtype])
        read_exactly(file, raw, tensor)
    with np.errstate(over="ignore", invalid="ignore"):  # to infinity and NaN, which `compare` counts
        return raw.astype(np.float32, copy=False)


def names_of(path: Path, metadata: Mapping[str, str], tensors: Collection[str]) -> list[str]:
    """The names in a trace file, in the order of execution, checked to be printable."""
    try:
        names = parse_value(metadata.get("names", "null").encode(), path)
    except ModelFileError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise ModelFileError(
            f'{path}: expected a trace, got a safetensors file without a list of "names" in its metadata;'
            " npllm trace and tools/hf_trace.py write one"
        )
    if len(names) != len(set(names)) or set(names) != set(tensors):
        odd = sorted(set(names) ^ set(tensors))
        raise ModelFileError(
            f'{path}: expected "names" to list each tensor once; mismatched: {", ".join(map(repr, odd[:3]))}'
        )
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        raise ModelFileError(f"{path}: expected printable names, got {unprintable[0]!r}")
    return names


def parse_ids(text: str, where: str, error: type[UsageError] | type[ModelFileError] = UsageError) -> list[int]:
    """The token ids in a comma-separated text."""
    if text.count(",") >= MOST_IDS:
        raise error(f"{where}: expected at most {MOST_IDS} token ids, got {text.count(',') + 1}")
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text, re.ASCII):
        raise error(f"{where}: expected comma-separated token ids, got {text[:80]!r}")
    return [int(part) for part in text.split(",")]
