"""Arrays of any library, and the interface of a packed weight.

`Float[Array, "... T D"]` reads: a floating-point array with T and D as its last two axes. The tests enforce these
annotations (jaxtyping); in normal use they are ignored. shapes.py defines the letters.
"""

from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import array_api_compat
from jaxtyping import Bool as Bool
from jaxtyping import Float, Int

# An array of any library that implements the array API: NumPy, CuPy, torch, JAX, array-api-strict.
Array: TypeAlias = Any

NAMESPACES: dict[type, Any] = {}


def array_namespace(x: Array) -> Any:
    """The library of x, as a module `xp` with the array API's functions: xp.exp, xp.sum, ...

    This caches array-api-compat's function of the same name by array type: a block calls it 14 times, which would
    otherwise take a tenth of a small model's time.

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
    """A weight matrix that does its own multiplication, mostly because it is stored in 16, 8 or 4 bits.

    Only `linear` and `embed` check for it; a pass hands it on. storage/ has the formats. Large models are loaded into
    them; small models mostly become plain arrays.
    """

    shape: tuple[int, int]  # [F, D]
    dtype: Any  # as stored
    nbytes: int

    def matmul(self, x2d: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """x2d @ W.T"""

    def rows(self, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
        """W[ids]"""


def is_packed(weight: Any) -> TypeGuard[Packed]:
    """Whether a weight is Packed. (isinstance gives the same answer, but takes 9 µs instead of 0.06.)"""
    return hasattr(weight, "rows") and hasattr(weight, "matmul")


Weight: TypeAlias = Float[Array, "F D"] | Packed
