"""The array libraries that the tests run on."""

import importlib
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest


class Library(NamedTuple):
    """An array library and the device to use of it."""

    xp: Any
    device: Any = None

    def array(self, value: Any) -> Any:
        """The value as an array: floating-point numbers as float32, whole numbers as int64."""
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = value.astype(np.float32)
        return self.xp.asarray(value.copy(), device=self.device)

    def tree(self, values: Any) -> Any:
        """`array` for each array in a NamedTuple or tuple; anything that is not an array stays."""
        if isinstance(values, np.ndarray):
            return self.array(values)
        if isinstance(values, tuple):
            parts = (self.tree(value) for value in values)
            return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
        return values


NUMPY = Library(np)
NAMES = ("numpy", "array_api_strict", "torch", "cupy", "jax")


def library(name: str) -> Library:
    """The library of that name; the test is skipped, with the reason, where it cannot be had."""
    module = pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
    if name == "array_api_strict":
        # Its second device: an array made on the default device, by forgetting `device=`, is refused there.
        return Library(module, module.Device("device1"))
    if name == "cupy":
        try:
            module.zeros(1)
        # A driver, a device or a library is missing: CuPy has a class for each, and no common base.
        except Exception as error:  # noqa: BLE001
            pytest.skip(f"cupy is installed but does not work: {error}")
        # CuPy's argmax gives int64 by C's other name for it, "long long", which jaxtyping takes for another type: from
        # here on it checks no annotations.
        jaxtyping.config.update("jaxtyping_disable", True)
    if name == "torch":
        module.set_num_threads(1)  # arrays as small as these wait for a second thread longer than they are computed
    if name in ("torch", "cupy"):  # their own functions do not take `device=` or `axis=` everywhere
        return Library(importlib.import_module(f"array_api_compat.{name}"))
    if name == "jax":
        module.config.update("jax_enable_x64", True)  # it has int64, as all others, and a slip into float64 is seen
        return Library(importlib.import_module("jax.numpy"))
    return Library(module)
