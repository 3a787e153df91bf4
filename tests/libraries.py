"""The array libraries that the tests run on."""

import importlib
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest


class Library(NamedTuple):
    """An array library and the device to use."""

    xp: Any
    device: Any = None

    def array(self, value: Any) -> Any:
        """The value as an array: floats as float32, integers as int64."""
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = value.astype(np.float32)
        return self.xp.asarray(value.copy(), device=self.device)

    def tree(self, values: Any) -> Any:
        """Apply `array` to each array in a NamedTuple or tuple. Everything else is left unchanged."""
        if isinstance(values, np.ndarray):
            return self.array(values)
        if isinstance(values, tuple):
            parts = (self.tree(value) for value in values)
            return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
        return values


NUMPY = Library(np)
NAMES = ("numpy", "array_api_strict", "torch", "cupy", "jax")


def library(name: str) -> Library:
    """The library with this name. Skips the test, with the reason, if it is not available."""
    module = pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
    if name == "array_api_strict":
        # Its second device: it rejects arrays created on the default device because `device=` was forgotten.
        return Library(module, module.Device("device1"))
    if name == "cupy":
        try:
            module.zeros(1)
        # A missing driver, device or library: CuPy has an error class for each, with no common base.
        except Exception as error:  # noqa: BLE001
            pytest.skip(f"cupy is installed but does not work: {error}")
        # CuPy's argmax returns int64 under its other C name, "long long", which jaxtyping takes for a different type.
        # From here on annotations are not checked.
        jaxtyping.config.update("jaxtyping_disable", True)
    if name == "torch":
        module.set_num_threads(1)  # with arrays this small, waiting for a second thread takes longer than the work
    if name in ("torch", "cupy"):  # their own functions do not take `device=` or `axis=` everywhere
        return Library(importlib.import_module(f"array_api_compat.{name}"))
    if name == "jax":
        module.config.update("jax_enable_x64", True)  # int64 as in the other libraries, and an accidental float64 shows
        return Library(importlib.import_module("jax.numpy"))
    return Library(module)
