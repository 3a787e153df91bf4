"""The dtypes of a KV cache, by name."""

from typing import Any

import ml_dtypes
from array_api_compat import is_numpy_array

from ..arrays import Array, array_namespace
from ..errors import UsageError


def dtype_like(name: str, like: Array) -> Any:
    """The dtype of that name, in the library of the array `like`. NumPy has no bfloat16; ml_dtypes adds it.

    >>> import numpy as np
    >>> np.dtype(dtype_like("bfloat16", np.zeros(1))).itemsize
    2
    """
    if name == "bfloat16" and is_numpy_array(like):
        return ml_dtypes.bfloat16
    xp = array_namespace(like)
    if not hasattr(xp, name):
        raise UsageError(f"cache_dtype: expected one that {xp.__name__} has, got {name}")
    return getattr(xp, name)
