"""npllm's own format for matrices in 8 or 4 bits in a safetensors file, so that loading need not quantize again.

A matrix X.weight [F, D] is stored as

    X.weight.codes     8 bits: int8 [F, D]; 4 bits: uint8 [F, D / 2], each group of 32 packed as in nibbles.py
    X.weight.scale     8 bits: float32, 4 bits: bfloat16; [F, D / 32]
    X.weight.minimum   bfloat16 [F, D / 32], for 4 bits only

and W = scale · codes + minimum, for each group of 32 elements. The rows are those of the matrix, in order: the layout
in memory (groups.py) does not show in the file.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from .blocks import BlockFormat, Split

GROUP = 32
CODES, SCALE, MINIMUM = ".codes", ".scale", ".minimum"
DTYPE_OF_CODES = {8: "I8", 4: "U8"}  # as safetensors calls them
DTYPE_OF_SCALES = {8: "F32", 4: "BF16"}  # also of the minima


def eight_bits(raw: Sequence[np.ndarray]) -> Split:
    """Some groups, [groups, 1, ...], from the bytes of their codes and scales."""
    codes, scale = raw
    return Split(codes.view(np.int8)[:, None], scale.view(np.float32), None)


def four_bits(raw: Sequence[np.ndarray]) -> Split:
    """The same, from the bytes of their codes, scales and minima."""
    codes, scale, minimum = raw
    return Split(codes[:, None], scale.view(ml_dtypes.bfloat16), minimum.view(ml_dtypes.bfloat16))


OWN_FORMATS = {
    "int8/32": BlockFormat(GROUP, 32, group=GROUP, bits=8, smallest=-128, has_minimum=False, split=eight_bits),
    "int4/32": BlockFormat(GROUP, 16, group=GROUP, bits=4, smallest=0, has_minimum=True, split=four_bits),
}


def own_format(bits: int) -> str:
    """The name in OWN_FORMATS."""
    return f"int{bits}/{GROUP}"


def tensors_of(dtype: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, int]]]:
    """The tensors of a matrix by suffix, each with its dtype in safetensors and its shape.

    dtype : a name in OWN_FORMATS

    >>> tensors_of("int4/32", (10, 64))
    {'.codes': ('U8', (10, 32)), '.scale': ('BF16', (10, 2)), '.minimum': ('BF16', (10, 2))}
    """
    kind, (height, width) = OWN_FORMATS[dtype], shape
    codes, scale = (height, width * kind.bits // 8), (height, width // GROUP)
    tensors = {CODES: (DTYPE_OF_CODES[kind.bits], codes), SCALE: (DTYPE_OF_SCALES[kind.bits], scale)}
    return tensors | ({MINIMUM: tensors[SCALE]} if kind.has_minimum else {})
