"""The estimates in docs/gpu.md are those that tools/gpu_model.py computes."""

from pathlib import Path

import gpu_model
import pytest
from gpu_model import GPU, GPUS, bytes_read, config, estimate, matrix_weights, table

PAGE = (Path(__file__).parent.parent / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_that_the_tool_computes():
    assert f"\n\n{table()}\n\n" in PAGE


@pytest.mark.parametrize("name", ["CALL", "SMALL", "REACHED", "BUSY"])
def test_the_page_tells_the_assumptions(name):
    value = getattr(gpu_model, name)
    assert (f"{1e6 * value:g} µs" if value < 1e-3 else f"{value:.0%}".replace("%", " %")) in PAGE


def test_the_weights_of_phi3_mini():
    """3,821,079,552 parameters, without norms and embeddings."""
    c = config()
    norms, embeddings = (2 * c.num_hidden_layers + 1) * c.hidden_size, c.vocab_size * c.hidden_size
    assert matrix_weights(c) + norms + embeddings == 3_821_079_552
    assert bytes_read(c, 0) == 2 * matrix_weights(c)
    assert bytes_read(c, 1) - bytes_read(c, 0) == 2 * 393_216  # 393,216 bytes per token in 16 bits, here in 32


def test_the_longest_part_decides():
    slow = GPU("slow memory", 1e9, 1e15)
    assert estimate(slow) == (bytes_read(config(), 74) / 0.8e9 + gpu_model.PLAIN * 2e-6, "reading")
    fast = GPU("fast", 1e14, 1e18)
    assert estimate(fast) == (gpu_model.PLAIN * 8e-6, "launching")
    assert estimate(fast, kernels=True)[0] < 1e-3
    assert estimate(GPU("few units", 1e14, 1e11), use_cache=False)[1] == "arithmetic"


def test_no_gpu_is_estimated_to_be_faster_without_the_cache():
    assert all(estimate(gpu, use_cache=False)[0] >= estimate(gpu)[0] for gpu in GPUS)
