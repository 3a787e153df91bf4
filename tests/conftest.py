"""How hard hypothesis tries, and the fixture that runs a test on every array library."""

import importlib.util
import os

# A process of tests for each core (`-n auto`; `pytest -n 0` has one): BLAS's threads would be in their way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from command_line import folder, npllm  # noqa: F401
from emulated import cupy, emulator  # noqa: F401
from hypothesis import Phase, settings
from kernel_models import counted  # noqa: F401
from libraries import NAMES, Library, library

# derandomize: the same examples in every run. `HYPOTHESIS_PROFILE=thorough pytest` looks for others.
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True, database=None)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=25)
settings.register_profile("thorough", max_examples=500, deadline=None)
# JAX compiles each operation anew for each shape, so its tests have a marker and a profile of their own.
settings.register_profile("jax", settings.get_profile("quick"), max_examples=3)
# tools/checks/mutate.py asks only whether a test fails, and not for the simplest example of it.
settings.register_profile("mutants", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

INSTALLED = [name for name in NAMES if importlib.util.find_spec(name)]
MARKS = {"torch": pytest.mark.torch, "jax": pytest.mark.jax, "cupy": pytest.mark.cuda}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=MARKS.get(name, [])) for name in INSTALLED],
)
def lib(request) -> Library:
    """The same test for every array library that is installed; test_shapes.py skips once for each that is not."""
    return library(request.param)


@pytest.fixture(scope="session")
def writable_lib(lib) -> Library:
    """`lib`, for a test that writes to a KV cache: JAX computes all of the math, but nobody can write to its arrays."""
    if lib.xp.__name__ == "jax.numpy":
        pytest.skip("jax arrays cannot be written to; the KV cache is")
    return lib
