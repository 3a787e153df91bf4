"""The linear layer: every projection of the model, and the LM head."""

from .arrays import Array, Float, Weight, array_namespace, is_packed


def product(x2d: Float[Array, "T D"], weight: Float[Array, "F D"]) -> Float[Array, "T F"]:
    """x Wᵀ for a plain matrix. x is cast to the weight's dtype (float16 on a GPU), the result back to that of x."""
    if weight.dtype == x2d.dtype:
        return x2d @ weight.T
    xp = array_namespace(x2d)
    return xp.astype(xp.astype(x2d, weight.dtype) @ weight.T, x2d.dtype)


def linear(x: Float[Array, "... D"], weight: Weight, bias: Float[Array, " F"] | None = None) -> Float[Array, "... F"]:
    """y = x Wᵀ + b. Checkpoints store W as [out, in], so each row of W produces one element of the output.

    Batch and time are folded into one axis, because with more axes some array libraries copy the whole weight.

    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    array([[1., 2., 3.]])
    """
    xp = array_namespace(x)
    x2d = x if x.ndim == 2 else xp.reshape(x, (-1, x.shape[-1]))
    y = weight.matmul(x2d) if is_packed(weight) else product(x2d, weight)
    y = y if x.ndim == 2 else xp.reshape(y, (*x.shape[:-1], weight.shape[0]))
    return y if bias is None else y + bias
