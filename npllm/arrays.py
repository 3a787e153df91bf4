"""Arrays of any library, and what a stored weight offers.

`Float[Array, "... T D"]` reads: an array of floating-point numbers whose last two axes are T and D. The tests execute
these annotations (jaxtyping); in normal use they are only read. shapes.py says what the letters mean.
"""

from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import array_api_compat
from jaxtyping import Bool as Bool
from jaxtyping import Float, Int

# An array of any library that has the array API's functions: NumPy, CuPy, torch, JAX, array-api-strict.
Array: TypeAlias = Any

NAMESPACES: dict[type, Any] = {}


def array_namespace(x: Array) -> Any:
    """The library that x belongs to, as a module `xp` with the array API's functions: xp.exp, xp.sum, ...

    This is array-api-compat's function of the same name, called once per type of array: a block asks for it 14 times,
    which would take a tenth of a small model's time.

    >>> import numpy as np
    >>> array_namespace(np.zeros(3)).__name__
    'array_api_compat.numpy'
    """
    kind = type(x)
    if kind not in NAMESPACES:
        NAMESPACES[kind] = array_api_compat.array_namespace(x)
    return NAMESPACES[kind]


@runtime_checkable
class Packed(Protocol):
    """A weight matrix in a storage of its own (16, 8 or 4 bits) that knows how to multiply.

    `linear` and `embed` are the only functions that ask for one; all others pass it on. The storages are in storage/.
    Large models are loaded into them; small models mostly become plain arrays.
    """

    shape: tuple[int, int]  # [F, D]
    dtype: Any  # of the storage
    nbytes: int

    def matmul(self, x2d: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """x2d @ W.T"""
        ...

    def rows(self, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
        """W[ids]"""
        ...


def is_packed(weight: Any) -> TypeGuard[Packed]:
    """Whether a weight is Packed. (isinstance gives the same answer, but takes 9 µs instead of 0.06.)"""
    return hasattr(weight, "rows") and hasattr(weight, "matmul")


Weight: TypeAlias = Float[Array, "F D"] | Packed
