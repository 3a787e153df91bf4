"""How GGUF files write matrices in few bits: blocks of numbers with scales, taken apart.

Every kind comes down to the same: whole numbers (codes) in groups of 32 or 16, and for each group a scale and perhaps a
minimum, of which the numbers are scale · code + minimum. The "K" kinds have blocks of 256 numbers, whose groups' scales
are themselves whole numbers times a scale of the block.

Codes of 4 bits stay two in a byte where a group's first half is in the lower bits of its bytes: `Groups` keeps them so.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h for the layouts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Split(NamedTuple):
    """Blocks taken apart."""

    codes: np.ndarray  # [blocks, groups, numbers], int8 or uint8; two in a byte: [blocks, groups, numbers / 2], uint8
    scale: np.ndarray  # [blocks, groups], float32; bfloat16 of our own 4 bits
    minimum: np.ndarray | None  # of that shape and dtype, or None where it is 0


class BlockFormat(NamedTuple):
    """One of GGUF's kinds of blocks."""

    numbers: int  # in a block
    bytes: int  # of a block
    group: int  # numbers that share a scale
    bits: int  # 4 if code - smallest is 0 to 15, else 8
    smallest: int  # the smallest code there can be
    has_minimum: bool
    split: Callable[[Any], Split]  # uint8 [blocks, bytes]

    def codes(self, split: Split) -> np.ndarray:
        """The codes, one number each: [blocks, groups, numbers]."""
        if split.codes.shape[-1] == self.group:
            return split.codes
        return nibbles(split.codes).view(np.int8) + np.int8(self.smallest)

    def widen(self, raw: Any) -> np.ndarray:
        """The numbers, float32 [blocks, numbers]."""
        split = self.split(raw)
        numbers = self.codes(split) * split.scale[..., None].astype(np.float32, copy=False)
        if split.minimum is not None:
            numbers += split.minimum[..., None].astype(np.float32, copy=False)
        return numbers.reshape(-1, self.numbers)


def halves(raw: np.ndarray) -> np.ndarray:
    """The float16 numbers in some bytes, as float32."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def nibbles(raw: np.ndarray) -> np.ndarray:
    """Bytes [..., n] to the numbers 0 to 15 in them [..., 2n]: first all of the lower halves, then all upper ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def fifth_bits(raw: np.ndarray) -> np.ndarray:
    """4 bytes [blocks, 4] to 32 numbers, 0 or 16: what 5-bit codes have beside their nibbles."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << 4


def q8_0(raw: np.ndarray) -> Split:
    """A scale, and 32 numbers of 8 bits."""
    return Split(raw[:, None, 2:].view(np.int8), halves(raw[:, :2]), None)


def q4_0(raw: np.ndarray) -> Split:
    """A scale, and 32 numbers of 4 bits, meaning -8 to 7."""
    return Split(raw[:, None, 2:], halves(raw[:, :2]), None)


def q4_1(raw: np.ndarray) -> Split:
    """A scale, a minimum, and 32 numbers of 4 bits."""
    return Split(raw[:, None, 4:], halves(raw[:, :2]), halves(raw[:, 2:4]))


def q5_0(raw: np.ndarray) -> Split:
    """A scale, the fifth bits of 32 numbers, and their other four, meaning -16 to 15."""
    codes = nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])
    return Split(codes.view(np.int8)[:, None] - np.int8(16), halves(raw[:, :2]), None)


def q5_1(raw: np.ndarray) -> Split:
    """A scale, a minimum, the fifth bits of 32 numbers, and their other four."""
    codes = nibbles(raw[:, 8:]) | fifth_bits(raw[:, 4:8])
    return Split(codes[:, None], halves(raw[:, :2]), halves(raw[:, 2:4]))


def scales_of_8_groups(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and minima of the 8 groups of a Q4_K or Q5_K block, float32 [blocks, 8] each.

    Two float16 numbers, which the scales and the minima count in; then 12 bytes that hold 8 scales and 8 minima of 6
    bits: of the first four the lower 6 bits of bytes 0-3 and 4-7, of the others a half of bytes 8-11, and the upper 2
    bits that the first four have left.
    """
    packed = raw[:, 4:16]
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, rest & 15 | (low >> 6) << 4], axis=-1)
    minimum = np.concatenate([high & 63, rest >> 4 | (high >> 6) << 4], axis=-1)
    return halves(raw[:, :2]) * scale, -(halves(raw[:, 2:4]) * minimum)


def codes_of_8_groups(raw: np.ndarray) -> np.ndarray:
    """128 bytes to 8 groups of 32 numbers of 4 bits [blocks, 8, 32]: each 32 bytes hold two groups."""
    return nibbles(raw.reshape(len(raw), 4, 32)).reshape(len(raw), 8, 32)


def q4_k(raw: np.ndarray) -> Split:
    """Scales and minima of 8 groups, and their 256 numbers of 4 bits."""
    return Split(codes_of_8_groups(raw[:, 16:]), *scales_of_8_groups(raw))


def q5_k(raw: np.ndarray) -> Split:
    """Scales and minima of 8 groups, the fifth bits (group i has bit i of 32 bytes), and the other four."""
    fifth = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return Split(codes_of_8_groups(raw[:, 48:]) | fifth, *scales_of_8_groups(raw))


def q6_k(raw: np.ndarray) -> Split:
    """Of 256 numbers the lower four bits, the upper two, scales of 16 groups, and what these count in: -32 to 31."""
    lower = nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    upper = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    codes = (lower | upper).reshape(-1, 16, 16).view(np.int8) - np.int8(32)
    return Split(codes, halves(raw[:, 208:]) * raw[:, 192:208].view(np.int8), None)


BLOCK_FORMATS = {
    "Q8_0": BlockFormat(32, 34, group=32, bits=8, smallest=-128, has_minimum=False, split=q8_0),
    "Q4_0": BlockFormat(32, 18, group=32, bits=4, smallest=-8, has_minimum=False, split=q4_0),
    "Q4_1": BlockFormat(32, 20, group=32, bits=4, smallest=0, has_minimum=True, split=q4_1),
    "Q5_0": BlockFormat(32, 22, group=32, bits=8, smallest=-16, has_minimum=False, split=q5_0),
    "Q5_1": BlockFormat(32, 24, group=32, bits=8, smallest=0, has_minimum=True, split=q5_1),
    "Q4_K": BlockFormat(256, 144, group=32, bits=4, smallest=0, has_minimum=True, split=q4_k),
    "Q5_K": BlockFormat(256, 176, group=32, bits=8, smallest=0, has_minimum=True, split=q5_k),
    "Q6_K": BlockFormat(256, 210, group=16, bits=8, smallest=-32, has_minimum=False, split=q6_k),
}
# What `npllm convert` writes, see quantized.py: there codes, scales and minima are tensors of their own.
OWN_FORMATS = {
    "int8/32": BlockFormat(32, 32, group=32, bits=8, smallest=-128, has_minimum=False, split=lambda split: split),
    "int4/32": BlockFormat(32, 16, group=32, bits=4, smallest=0, has_minimum=True, split=lambda split: split),
}
