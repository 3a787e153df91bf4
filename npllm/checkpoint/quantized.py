"""Folders that `npllm convert` quantized: what config.json says, and each matrix from its tensors.

    "quantization_config": {"quant_method": "npllm", "bits": 4, "group": 32}

storage/own_format.py describes the tensors.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ModelFileError
from ..storage.own_format import CODES, DTYPE_OF_CODES, GROUP, OWN_FORMATS, own_format, tensors_of
from ..storage.stored import Stored
from . import parameters

METHOD = "npllm"


def quantization_config(bits: int) -> dict[str, Any]:
    """The entry of config.json for matrices in 8 or 4 bits."""
    return {"quant_method": METHOD, "bits": bits, "group": GROUP}


def joined(keys: Mapping[str, Any], tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """The tensors of a folder, with one entry for each quantized matrix.

    keys : config.json; without a "quantization_config" the tensors stay as they are

    Raises
    ------
    ModelFileError : config.json names another method; a part of a matrix is missing or has another dtype or shape
    """
    found = keys.get("quantization_config")
    if found is None:
        return dict(tensors)
    if isinstance(found, Mapping) and found.get("quant_method") == parameters.METHOD:
        return parameters.joined_pairs(tensors)
    known = [quantization_config(kind.bits) for kind in OWN_FORMATS.values()]
    if found not in known:
        raise ModelFileError(
            f"{where}: quantization_config: expected {' or '.join(str(one) for one in known)}, got {str(found)[:200]};"
            " npllm does not read it: take the model without, and quantize it with --dtype or npllm convert"
        )
    bits = int(found["bits"])  # a file may say 4.0
    together = dict(tensors)
    for name in tensors:
        if name.endswith(CODES):
            weight = name.removesuffix(CODES)
            together[weight] = joined_matrix(weight, together, own_format(bits))
    return together


def joined_matrix(weight: str, tensors: dict[str, Stored], dtype: str) -> Stored:
    """One quantized matrix. Its codes, scales and minima are removed from `tensors`."""
    codes, kind = tensors[weight + CODES], OWN_FORMATS[dtype]
    codes_dtype = DTYPE_OF_CODES[kind.bits]
    if codes.dtype != codes_dtype or len(codes.shape) != 2 or codes.shape[1] % kind.bytes:
        raise unexpected(codes, f"{codes_dtype} rows of a multiple of {kind.bytes} bytes")
    shape = (codes.shape[0], codes.shape[1] * 8 // kind.bits)
    expected = tensors_of(dtype, shape)
    for suffix, (part_dtype, part_shape) in expected.items():
        if weight + suffix not in tensors:
            raise ModelFileError(
                f"{codes.path}: expected {weight}{suffix} with {weight}{CODES}, found none; download the file again"
            )
        part = tensors[weight + suffix]
        if (part.dtype, part.shape) != (part_dtype, part_shape):
            raise unexpected(part, f"{part_dtype} {list(part_shape)}")
    parts = [tensors.pop(weight + suffix) for suffix in expected]
    return Stored(codes.path, weight, dtype, shape, codes.offset, *parts[1:])


def unexpected(stored: Stored, expected: str) -> ModelFileError:
    """The error for a part of a matrix with another dtype or shape."""
    return ModelFileError(
        f"{stored.path}: {stored.name}: expected {expected}, got {stored.dtype} {list(stored.shape)};"
        " download the file again"
    )
