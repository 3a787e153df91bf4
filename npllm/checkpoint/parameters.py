"""Tensors of transformers that are named unlike the weights of a linear layer: gpt-oss's sinks and experts.

X, X_bias                here X.weight, X.bias: parameters that belong to no linear layer
X_blocks, X_scales       here one tensor X of dtype "mxfp4", see storage/mxfp4.py
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby

from ..errors import ModelFileError
from ..storage.mxfp4 import GROUP
from ..storage.safetensors_file import Entry
from ..storage.stored import Stored

METHOD = "mxfp4"  # quantization_config's quant_method
BLOCKS, SCALES = "_blocks", "_scales"


def joined_pairs(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a folder, with one entry for the blocks and scales of each matrix.

    Raises
    ------
    ModelFileError : blocks without scales; another dtype or shape
    """
    together = dict(tensors)
    for name in tensors:
        if name.endswith(BLOCKS):
            whole = name.removesuffix(BLOCKS)
            together[whole] = joined_pair(whole, together)
    return together


def joined_pair(whole: str, tensors: dict[str, Stored]) -> Stored:
    """One tensor of matrices in MXFP4. Its blocks and scales are removed from `tensors`."""
    blocks, scales = tensors.pop(whole + BLOCKS), tensors.pop(whole + SCALES, None)
    if scales is None:
        raise ModelFileError(
            f"{blocks.path}: expected {whole}{SCALES} with {whole}{BLOCKS}, found none; download it again"
        )
    if blocks.dtype != "U8" or len(blocks.shape) < 3 or blocks.shape[-1] != GROUP // 2:
        raise unexpected(blocks, f"U8 [..., {GROUP // 2}]")
    if scales.dtype != "U8" or scales.shape != blocks.shape[:-1]:
        raise unexpected(scales, f"U8 {list(blocks.shape[:-1])}")
    shape = (*scales.shape[:-1], scales.shape[-1] * GROUP)
    return Stored(blocks.path, whole, "mxfp4", shape, blocks.offset, scales._replace(dtype="E8M0"))


def unexpected(stored: Stored, expected: str) -> ModelFileError:
    """The error for blocks or scales with another dtype or shape."""
    return ModelFileError(
        f"{stored.path}: {stored.name}: expected {expected}, got {stored.dtype} {list(stored.shape)}; download it again"
    )


def with_kinds(tensors: Mapping[str, Stored], bare: Collection[str]) -> dict[str, Stored]:
    """The tensors, those whose names end like one of `bare` renamed: X to X.weight, X_bias to X.bias."""
    kinds = {f".{leaf}": ".weight" for leaf in bare} | {f".{leaf}_bias": ".bias" for leaf in bare}

    def renamed(name: str) -> str:
        end = next((end for end in kinds if name.endswith(end)), None)
        return name if end is None else name.removesuffix("_bias" if end.endswith("_bias") else "") + kinds[end]

    return {renamed(name): stored for name, stored in tensors.items()}


def bare_entry(entry: Entry, bare: Collection[str]) -> Entry:
    """The inverse for a tensor to write. A matrix of an expert, X.3.weight, becomes one of several in X, [1, F, D]."""
    stem, _, kind = entry.name.rpartition(".")
    whole, _, number = stem.rpartition(".")
    of_expert = number.isdigit()
    name = whole if of_expert else stem
    if kind not in ("weight", "bias") or not name.endswith(tuple(f".{leaf}" for leaf in bare)):
        return entry
    shape = (1, *entry.shape) if of_expert else entry.shape
    return Entry(name + ("_bias" if kind == "bias" else ""), entry.dtype, shape)


def stacked_entries(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, with consecutive ones of the same name as one tensor, stacked along the first axis."""
    several = (list(group) for _, group in groupby(entries, key=lambda entry: entry.name))
    return [
        first._replace(shape=(first.shape[0] + sum(other.shape[0] for other in others), *first.shape[1:]))
        for first, *others in several
    ]
