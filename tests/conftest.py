"""How hard hypothesis tries, and the fixture that runs a test on every array library."""

import importlib.util
import os

import pytest
from hypothesis import Phase, settings
from libraries import NAMES, Library, library

# derandomize: the same examples in every run. `HYPOTHESIS_PROFILE=thorough pytest` looks for others.
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True, database=None)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=50)
settings.register_profile("thorough", max_examples=500, deadline=None)
# tools/mutate.py asks only whether a test fails, and not for the simplest example of it.
settings.register_profile("mutants", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", params=[name for name in NAMES if importlib.util.find_spec(name)])
def lib(request) -> Library:
    """The same test for every array library that is installed; test_shapes.py skips once for each that is not."""
    return library(request.param)
