"""Logits that are not finite: what is to blame, and what to do.

The norms turn an overflow into NaN, and NaN reaches everything that is computed from it. So checking the logits finds
an overflow, or a damaged weight, in any layer.
"""

from typing import Any

from ..arrays import Array, array_namespace
from ..cache import Cache
from ..errors import ModelFileError, NpllmError, UsageError


def not_finite(where: str, got: Any, cache: Cache | None = None) -> NpllmError:
    """The error for a result that is not finite, with the first layer whose keys or values in the cache are not.

    If a float16 cache holds infinities, its dtype is to blame: the numbers were beyond 65,504, the largest float16.
    """
    place = ""
    if cache is not None:
        place = ", after the keys and values of all layers"
        for layer, name, array in ((i, n, a) for i, both in layers(cache) for n, a in both):
            xp = array_namespace(array)
            if bool(xp.all(xp.isfinite(array))):
                continue
            if array.dtype == xp.float16 and not bool(xp.any(xp.isnan(array))):
                return UsageError(
                    f"cache_dtype: expected bfloat16 or float32 for this model, got float16: {name} of layer {layer}"
                    " are beyond 65,504, its largest number"
                )
            place = f", first in the {name} of layer {layer}"
            break
    return ModelFileError(
        f"{where}: expected finite numbers, got {got}{place}; the weights are damaged or too large, or were rounded to"
        " a dtype too narrow for them (then try --dtype float32)"
    )


def layers(cache: Cache) -> list[tuple[int, list[tuple[str, Array]]]]:
    """The index of each layer, and its arrays by name."""
    pairs = zip(cache["keys"], cache["values"], strict=True)
    return [(layer, [("keys", keys), ("values", values)]) for layer, (keys, values) in enumerate(pairs)]


def check_finite(result: Array, where: str) -> None:
    """Raise ModelFileError if a result has a NaN or an infinity."""
    xp = array_namespace(result)
    if not bool(xp.all(xp.isfinite(result))):
        raise not_finite(where, "NaN or inf")
