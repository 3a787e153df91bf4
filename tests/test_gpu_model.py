"""The paper model in docs/gpu.md is computed by tools/bench/gpu_model.py, not typed in."""

from pathlib import Path

import pytest
from bridge import tool

gpu_model = tool("gpu_model")
PAGE = (Path(__file__).parent.parent / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_that_the_tool_computes():
    assert f"\n\n{gpu_model.table()}\n\n" in PAGE


@pytest.mark.parametrize("name", ["CALL", "SMALL", "REACHED", "BUSY"])
def test_the_page_tells_the_assumptions(name):
    value = getattr(gpu_model, name)
    assert (f"{1e6 * value:g} µs" if value < 1e-3 else f"{value:.0%}".replace("%", " %")) in PAGE


def test_the_weights_of_phi3_mini():
    """3,821,079,552 parameters, without norms and embeddings."""
    c = gpu_model.config()
    norms, embeddings = (2 * c.num_hidden_layers + 1) * c.hidden_size, c.vocab_size * c.hidden_size
    assert gpu_model.matrix_weights(c) + norms + embeddings == 3_821_079_552
    assert gpu_model.bytes_read(c, 0) == 2 * gpu_model.matrix_weights(c)
    cached = gpu_model.bytes_read(c, 1) - gpu_model.bytes_read(c, 0)
    assert cached == 2 * 393_216  # 393,216 bytes per token in 16 bits; here 32


def test_the_longest_part_decides():
    slow = gpu_model.GPU("slow memory", 1e9, 1e15)
    read = gpu_model.bytes_read(gpu_model.config(), 74)
    assert gpu_model.estimate(slow) == (read / 0.8e9 + gpu_model.PLAIN * 2e-6, "reading")
    fast = gpu_model.GPU("fast", 1e14, 1e18)
    assert gpu_model.estimate(fast) == (gpu_model.PLAIN * 8e-6, "launching")
    assert gpu_model.estimate(fast, kernels=True)[0] < 1e-3
    assert gpu_model.estimate(gpu_model.GPU("few units", 1e14, 1e11), use_cache=False)[1] == "arithmetic"


def test_no_gpu_is_estimated_to_be_faster_without_the_cache():
    assert all(gpu_model.estimate(gpu, use_cache=False)[0] >= gpu_model.estimate(gpu)[0] for gpu in gpu_model.GPUS)
