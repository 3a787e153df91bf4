"""The block formats of GGUF: blocks of 32 or 256 elements, split into codes, scales and minima.

The "K" formats have blocks of 256 elements in groups of 32 or 16, and the scales of the groups are themselves integers
times a scale of the block. Codes of 2 to 4 bits are packed as nibbles.py does, as 4-bit codes are in most files. The
"IQ4" formats have 4-bit numbers of a table of integers, which become 8-bit codes.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h for the layouts.
"""

import numpy as np

from .blocks import BlockFormat, Split
from .mxfp4 import MXFP4
from .nibbles import pack, unpack

# What the 4-bit numbers of the IQ4 formats stand for: closer to each other around 0, as weights are.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8)
SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]  # of four 2-bit numbers in a byte


def halves(raw: np.ndarray) -> np.ndarray:
    """Float16 numbers, given as bytes, as float32."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def fifth_bits(raw: np.ndarray) -> np.ndarray:
    """The fifth bits of 32 codes, 0 or 16 each, from 4 bytes [blocks, 4]."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << 4


def q8_0(raw: np.ndarray) -> Split:
    """A scale and 32 8-bit codes."""
    return Split(raw[:, None, 2:].view(np.int8), halves(raw[:, :2]), None)


def q4_0(raw: np.ndarray) -> Split:
    """A scale and 32 4-bit codes, which stand for -8 to 7."""
    return Split(raw[:, None, 2:], halves(raw[:, :2]), None)


def q4_1(raw: np.ndarray) -> Split:
    """A scale, a minimum and 32 4-bit codes."""
    return Split(raw[:, None, 4:], halves(raw[:, :2]), halves(raw[:, 2:4]))


def q5_0(raw: np.ndarray) -> Split:
    """A scale, the fifth bits of 32 codes, and their lower four; they stand for -16 to 15."""
    codes = unpack(raw[:, 6:]) | fifth_bits(raw[:, 2:6])
    return Split(codes.view(np.int8)[:, None] - np.int8(16), halves(raw[:, :2]), None)


def q5_1(raw: np.ndarray) -> Split:
    """A scale, a minimum, the fifth bits of 32 codes, and their lower four."""
    codes = unpack(raw[:, 8:]) | fifth_bits(raw[:, 4:8])
    return Split(codes[:, None], halves(raw[:, :2]), halves(raw[:, 2:4]))


def scales_of_8_groups(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and minima of the 8 groups of a Q4_K or Q5_K block, float32 [blocks, 8] each.

    The block begins with two float16 numbers, the units of the scales and of the minima. Then 12 bytes hold 8 scales
    and 8 minima of 6 bits each. The first four scales are the lower 6 bits of bytes 0-3, the first four minima those of
    bytes 4-7. The other scales and minima have their lower 4 bits in the halves of bytes 8-11, and their upper 2 bits
    in the bits of bytes 0-7 that are still free.
    """
    packed = raw[:, 4:16]
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, rest & 15 | (low >> 6) << 4], axis=-1)
    minimum = np.concatenate([high & 63, rest >> 4 | (high >> 6) << 4], axis=-1)
    return halves(raw[:, :2]) * scale, -(halves(raw[:, 2:4]) * minimum)


def codes_of_8_groups(raw: np.ndarray) -> np.ndarray:
    """The 4-bit codes of 8 groups, [blocks, 8, 32], from 128 bytes: each 32 bytes hold two groups."""
    return unpack(raw.reshape(len(raw), 4, 32)).reshape(len(raw), 8, 32)


def q4_k(raw: np.ndarray) -> Split:
    """Scales and minima of 8 groups, and 256 4-bit codes."""
    return Split(codes_of_8_groups(raw[:, 16:]), *scales_of_8_groups(raw))


def q5_k(raw: np.ndarray) -> Split:
    """Scales and minima of 8 groups, the fifth bits (group i has bit i of 32 bytes), and the lower four."""
    fifth = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return Split(codes_of_8_groups(raw[:, 48:]) | fifth, *scales_of_8_groups(raw))


def q6_k(raw: np.ndarray) -> Split:
    """The lower four bits of 256 codes, the upper two, the scales of 16 groups, and their unit; from -32 to 31."""
    lower = unpack(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    upper = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> SHIFTS & 3) << 4
    codes = (lower | upper).reshape(-1, 16, 16).view(np.int8) - np.int8(32)
    return Split(codes, halves(raw[:, 208:]) * raw[:, 192:208].view(np.int8), None)


def codes_of_16_groups(raw: np.ndarray) -> np.ndarray:
    """The 2-bit codes of 16 groups, [blocks, 16, 16], from 64 bytes: each 32 bytes hold eight groups."""
    return (raw.reshape(-1, 2, 1, 32) >> SHIFTS & 3).reshape(-1, 16, 16)


def q2_k(raw: np.ndarray) -> Split:
    """The scales and minima of 16 groups, of 4 bits each, 256 2-bit codes, and the units of scales and minima."""
    scale, minimum = halves(raw[:, 80:82]) * (raw[:, :16] & 15), halves(raw[:, 82:]) * (raw[:, :16] >> 4)
    return Split(pack(codes_of_16_groups(raw[:, 16:80])), scale, -minimum)


def q3_k(raw: np.ndarray) -> Split:
    """The third bits of 256 codes (group pair i has bit i of 32 bytes), the lower two, 16 scales of 6 bits, their unit.

    Codes stand for -4 to 3. The lower four bits of the scales are the halves of 8 bytes, the upper two are in 4 more.
    """
    third = (raw[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 2
    lower = np.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=-1)
    upper = (raw[:, None, 104:108] >> SHIFTS & 3) << 4
    scale = (lower | upper.reshape(-1, 16)).view(np.int8) - np.int8(32)
    return Split(
        pack(codes_of_16_groups(raw[:, 32:96]) | third.reshape(-1, 16, 16)), halves(raw[:, 108:]) * scale, None
    )


def iq4_nl(raw: np.ndarray) -> Split:
    """A scale and 32 4-bit numbers of the table."""
    return Split(IQ4_VALUES[unpack(raw[:, None, 2:])], halves(raw[:, :2]), None)


def iq4_xs(raw: np.ndarray) -> Split:
    """The unit of 8 scales, their upper two bits, their lower four, and 256 4-bit numbers of the table."""
    lower = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    upper = (raw[:, 2:4, None] >> SHIFTS[:, 0] & 3).reshape(-1, 8) << 4
    scale = (lower | upper).view(np.int8) - np.int8(32)
    return Split(IQ4_VALUES[unpack(raw[:, 8:].reshape(-1, 8, 16))], halves(raw[:, :2]) * scale, None)


BLOCK_FORMATS = {
    "Q8_0": BlockFormat(32, 34, group=32, bits=8, smallest=-128, has_minimum=False, split=q8_0),
    "Q4_0": BlockFormat(32, 18, group=32, bits=4, smallest=-8, has_minimum=False, split=q4_0),
    "Q4_1": BlockFormat(32, 20, group=32, bits=4, smallest=0, has_minimum=True, split=q4_1),
    "Q5_0": BlockFormat(32, 22, group=32, bits=8, smallest=-16, has_minimum=False, split=q5_0),
    "Q5_1": BlockFormat(32, 24, group=32, bits=8, smallest=0, has_minimum=True, split=q5_1),
    "Q2_K": BlockFormat(256, 84, group=16, bits=4, smallest=0, has_minimum=True, split=q2_k),
    "Q3_K": BlockFormat(256, 110, group=16, bits=4, smallest=-4, has_minimum=False, split=q3_k),
    "Q4_K": BlockFormat(256, 144, group=32, bits=4, smallest=0, has_minimum=True, split=q4_k),
    "Q5_K": BlockFormat(256, 176, group=32, bits=8, smallest=0, has_minimum=True, split=q5_k),
    "Q6_K": BlockFormat(256, 210, group=16, bits=8, smallest=-32, has_minimum=False, split=q6_k),
    "IQ4_NL": BlockFormat(32, 18, group=32, bits=8, smallest=-127, has_minimum=False, split=iq4_nl),
    "IQ4_XS": BlockFormat(256, 136, group=32, bits=8, smallest=-127, has_minimum=False, split=iq4_xs),
    "MXFP4": MXFP4,
}
