"""MXFP4: floating-point numbers of 4 bits in groups of 32, each group with a power of two as its scale; as in gpt-oss.

A number has a sign, two bits for the exponent and one for the mantissa (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 or minus
that. Twice these are integers, so here a code stands for an integer, and the scale is half the file's. A scale is a
byte e, for 2^(e - 127) (E8M0).

A GGUF file has the scale before the codes of its group, and packs them as nibbles.py does. Hugging Face's files have
two tensors, X_blocks and X_scales, and two neighbours share a byte of the blocks.

Source: Rouhani et al. 2023, "Microscaling data formats for deep learning"; OCP 2023, "Microscaling formats (MX)
specification".
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from .blocks import BlockFormat, Split
from .nibbles import pack

GROUP = 32
E8M0 = ml_dtypes.float8_e8m0fnu


def integers(codes: np.ndarray) -> np.ndarray:
    """Twice the numbers, int8, that the codes 0 to 15 stand for.

    The spacing doubles at 4 and at 8, so the largest of three straight lines gives the magnitude. This takes 0.3 ns for
    each code, a look-up with `np.take` 0.8 or more.

    >>> integers(np.arange(16, dtype=np.uint8)).tolist()
    [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    """
    lower = (codes & 7).view(np.int8)
    magnitude = np.maximum(lower, np.maximum(2 * lower - 4, 4 * lower - 16))
    return magnitude * (1 - ((codes & 8) >> 2).view(np.int8))


def scales(raw: np.ndarray) -> np.ndarray:
    """Half the scales, float32 [groups, 1], from their bytes [groups, 1]; NaN for 255, as in the specification."""
    return raw.view(E8M0).astype(np.float32) / 2


def in_one_tensor(raw: np.ndarray) -> Split:
    """GGUF's blocks: a scale and 32 codes."""
    return Split(raw[:, None, 1:], scales(raw[:, :1]), None)


def in_two_tensors(raw: Sequence[np.ndarray]) -> Split:
    """Hugging Face's blocks and scales. Codes 2i and 2i + 1 share a byte; here codes i and i + 16 do."""
    blocks, exponents = raw
    neighbours = np.stack([blocks & 15, blocks >> 4], axis=-1)
    return Split(pack(neighbours.reshape(-1, 1, GROUP)), scales(exponents), None)


# The powers of two are exact in bfloat16, so a number takes 4.5 bits in memory.
MXFP4 = BlockFormat(
    GROUP,
    bytes=17,
    group=GROUP,
    bits=4,
    smallest=-12,
    has_minimum=False,
    split=in_one_tensor,
    values=integers,
    scale_dtype=ml_dtypes.bfloat16,
)
PAIRED = MXFP4._replace(bytes=16, split=in_two_tensors)
