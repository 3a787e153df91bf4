"""Normalization: keeps the elements of the residual stream in a range that the next layer can work with.

Source: "The Transformer Block" (Figures 3-29, 3-30); Ba, Kiros and Hinton 2016, "Layer normalization"; Zhang and
Sennrich 2019, "Root mean square layer normalization".
"""

from .arrays import Array, Float, array_namespace


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """x / sqrt(mean(x²) + eps) · weight: each vector scaled to length sqrt(D), roughly, then by learned weights.

    >>> import numpy as np
    >>> rms_norm(np.array([[1.0, 7.0]], dtype=np.float32), np.ones(2, dtype=np.float32), eps=0.0)
    array([[0.2, 1.4]], dtype=float32)
    """
    xp = array_namespace(x)
    x32 = xp.astype(x, xp.float32, copy=False)  # squares of float16 overflow
    mean_square = xp.mean(x32 * x32, axis=-1, keepdims=True)  # [..., 1]
    eps = mean_square - mean_square + eps  # NaN if a square overflowed: division by infinity would hide it as zeros
    return xp.astype(x32 / xp.sqrt(mean_square + eps), x.dtype, copy=False) * weight


def layer_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """(x - mean) / sqrt(variance + eps) · weight + bias: the norm of the original Transformer and of GPT-2.

    >>> import numpy as np
    >>> layer_norm(np.array([[1.0, 7.0]], dtype=np.float32), np.ones(2, np.float32), np.zeros(2, np.float32), eps=0.0)
    array([[-1.,  1.]], dtype=float32)
    """
    xp = array_namespace(x)
    x32 = xp.astype(x, xp.float32, copy=False)
    centred = x32 - xp.mean(x32, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)  # [..., 1]
    eps = variance - variance + eps  # as above
    return xp.astype(centred / xp.sqrt(variance + eps), x.dtype, copy=False) * weight + bias
