"""Matrices of 8 or 4 bits in a folder, as `npllm convert` writes them, so that loading need not quantize again.

In place of X.weight [F, D] there are

    X.weight.codes     8 bits: int8 [F, D]; 4 bits: uint8 [F, D / 2], of each 32 the first 16 in the lower four bits
    X.weight.scale     8 bits: float32, 4 bits: bfloat16; [F, D / 32]
    X.weight.minimum   bfloat16 [F, D / 32], for 4 bits only

and W = scale · codes + minimum, for 32 numbers at a time. config.json says so, and with how many bits:

    "quantization_config": {"quant_method": "npllm", "bits": 4, "group": 32}

The rows are those of the matrix, in their order: nothing of how storage/packed.py keeps them in memory is in the file.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ModelFileError
from ..storage.gguf_blocks import OWN_FORMATS
from ..storage.stored import Stored

METHOD, GROUP = "npllm", 32
CODES, SCALE, MINIMUM = ".codes", ".scale", ".minimum"
DTYPE_OF_CODES = {8: "I8", 4: "U8"}
DTYPE_OF_SCALES = {8: "F32", 4: "BF16"}


def quantization_config(bits: int) -> dict[str, Any]:
    """What config.json says of matrices of so many bits."""
    return {"quant_method": METHOD, "bits": bits, "group": GROUP}


def joined(keys: Mapping[str, Any], tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """The tensors of a folder with each quantized matrix as one; those of a folder that has none as they are.

    Raises
    ------
    ModelFileError : config.json names another method; a part of a matrix is missing or of another dtype or shape
    """
    said = keys.get("quantization_config")
    if said is None:
        return dict(tensors)
    known = [quantization_config(bits) for bits in DTYPE_OF_CODES]
    if said not in known:
        raise ModelFileError(
            f"{where}: quantization_config: expected {' or '.join(str(one) for one in known)}, got {str(said)[:200]};"
            " npllm does not read it: take the model without, and quantize it with --dtype or npllm convert"
        )
    bits = said["bits"]
    dtype = f"int{bits}/{GROUP}"
    together = dict(tensors)
    for name, codes in tensors.items():
        if not name.endswith(CODES):
            continue
        weight = name.removesuffix(CODES)
        check(codes, DTYPE_OF_CODES[bits], None, GROUP * bits // 8)
        shape = (codes.shape[0], codes.shape[1] * 8 // bits)
        beside = [SCALE, MINIMUM] if OWN_FORMATS[dtype].has_minimum else [SCALE]
        for suffix in beside:
            if weight + suffix not in tensors:
                raise ModelFileError(f"{codes.path}: expected {weight}{suffix} beside {name}, there is none")
            check(tensors[weight + suffix], DTYPE_OF_SCALES[bits], (shape[0], shape[1] // GROUP))
        parts = [together.pop(weight + suffix) for suffix in (CODES, *beside)]
        together[weight] = Stored(codes.path, weight, dtype, shape, codes.offset, *parts[1:])
    return together


def check(stored: Stored, dtype: str, shape: tuple[int, ...] | None, times: int = 1) -> None:
    """Refuse a part of a matrix that has another dtype, or shape; without one, rows not a multiple of so many bytes."""
    fits = len(stored.shape) == 2 and stored.shape[1] % times == 0 if shape is None else stored.shape == shape
    if stored.dtype != dtype or not fits:
        expected = f"rows of a multiple of {times} bytes" if shape is None else list(shape)
        raise ModelFileError(
            f"{stored.path}: {stored.name}: expected {dtype} {expected}, got {stored.dtype} {list(stored.shape)};"
            " get the file again"
        )
