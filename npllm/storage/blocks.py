"""What all block formats have in common: codes in groups, with a scale and perhaps a minimum for each group.

An element is scale · code + minimum. A format says how many elements a block has and how to split its bytes. In some
formats the codes 0 to 15 stand for other integers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import nibbles


class Split(NamedTuple):
    """Codes, scales and minima. `blocks` may also be the rows of a matrix."""

    codes: np.ndarray  # [blocks, groups, elements], int8 or uint8; packed 4-bit codes: [blocks, groups, elements / 2]
    scale: np.ndarray  # [blocks, groups], float32; bfloat16 where npllm made 4-bit codes
    minimum: np.ndarray | None  # like scale, or None where it is 0


class BlockFormat(NamedTuple):
    """A block format of a file."""

    numbers: int  # elements of a block
    bytes: int  # of a block
    group: int  # elements that share a scale
    bits: int  # 4 if code - smallest is 0 to 15, or if there are `values`; else 8
    smallest: int  # the smallest possible code
    has_minimum: bool
    split: Callable[[Any], Split]  # from uint8 [blocks, bytes]; a list of such if scales and minima are tensors
    values: Callable[[np.ndarray], np.ndarray] | None = None  # what codes stand for, where not for code + smallest
    scale_dtype: type = np.float32  # holds every scale and minimum exactly

    def codes(self, split: Split) -> np.ndarray:
        """The codes one by one: [blocks, groups, elements]."""
        if split.codes.shape[-1] == self.group:
            return split.codes
        codes = nibbles.unpack(split.codes)
        return self.values(codes) if self.values else codes.view(np.int8) + np.int8(self.smallest)

    def widen(self, raw: Any) -> np.ndarray:
        """The elements, float32 [blocks, elements]."""
        split = self.split(raw)
        values = self.codes(split) * split.scale[..., None].astype(np.float32, copy=False)
        if split.minimum is not None:
            values += split.minimum[..., None].astype(np.float32, copy=False)
        return values.reshape(-1, self.numbers)
