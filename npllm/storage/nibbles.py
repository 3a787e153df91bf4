"""Two 4-bit codes in a byte, 16 · upper + lower.

A group of codes is cut in half: the first half goes into the lower four bits of its bytes, the second half into the
upper four. GGUF does the same, which is why its 4-bit codes are copied as they are.
"""

from ..arrays import Array, array_namespace


def pack(codes: Array) -> Array:
    """Codes from 0 to 15, uint8 [..., n], as bytes [..., n / 2].

    >>> import numpy as np
    >>> pack(np.array([1, 2, 3, 4], dtype=np.uint8)).tolist()  # 1 + 16 · 3, 2 + 16 · 4
    [49, 66]
    """
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4)


def unpack(packed: Array) -> Array:
    """Bytes [..., n / 2] as codes [..., n]: all lower codes, then all upper ones.

    >>> import numpy as np
    >>> unpack(np.array([49, 66], dtype=np.uint8)).tolist()
    [1, 2, 3, 4]
    """
    xp = array_namespace(packed)
    return xp.concat([packed & 15, packed >> 4], axis=-1)
