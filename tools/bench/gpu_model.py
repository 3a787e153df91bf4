"""Estimates of the time per token of Phi-3-mini on a GPU. No GPU is needed, and nothing is measured.

    python tools/bench/gpu_model.py

The GPU runs one kernel after the other. Reading the weights and the KV cache takes bytes / bandwidth, and each kernel a
few microseconds more. Meanwhile the host launches the next kernels; the longer of the two is the time of a token.
Without the KV cache the whole text is computed again, and arithmetic may take longest.

The assumptions are the constants below. `npllm selftest --device cuda` replaces the estimates by measurements.
"""

from typing import NamedTuple

from make_checkpoint import PRESETS

from npllm.cache import kv_cache_bytes
from npllm.config import Config
from npllm.families import read_config

PROMPT, NEW = 24, 100  # the chapter's: the email to Sarah, 100 tokens
# Kernels and matrix products of a decode step, as counted by tests/test_cuda_budget.py and tests/test_cuda_kernels.py.
PLAIN = 2083  # CuPy's own
KERNELS = 305  # ours; the host launches 291 of them as one graph
NO_CACHE = 2700  # CuPy's own, for a text of up to 256 tokens
CALL = 8e-6  # seconds on the host, in CuPy and the driver, for each
SMALL = 2e-6  # seconds on the GPU for each, on top of what it reads
REACHED = 0.8  # fraction of the memory bandwidth, for sequential reads
BUSY = 0.4  # fraction of the arithmetic, for products of few rows


class GPU(NamedTuple):
    """A GPU, by two figures of its data sheet."""

    name: str
    bandwidth: float  # bytes per second
    flops: float  # per second; float16 with float32 accumulation, without sparsity


GPUS = (
    GPU("T4", 320e9, 65e12),
    GPU("A100 (40 GB)", 1555e9, 312e12),
    GPU("H100 (SXM)", 3350e9, 989e12),
)
CHAPTER = {"cache": 45, "no cache": 218}  # ms per token: 4.5 s and 21.8 s for 100 tokens, on a T4


def config() -> Config:
    """The chapter's model."""
    return read_config(PRESETS["phi-3-mini"])


def matrix_weights(c: Config) -> int:
    """The number of elements in all matrices that a token is multiplied by. Of the embeddings it reads only one row."""
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    heads = c.num_attention_heads + 2 * c.num_key_value_heads
    block = heads * H * D + D * c.num_attention_heads * H + 3 * F * D
    return c.num_hidden_layers * block + c.vocab_size * D


def bytes_read(c: Config, past: int) -> int:
    """Bytes read for one token: all matrices in float16, and the cached keys and values in float32."""
    return 2 * matrix_weights(c) + kv_cache_bytes(c, past)


def estimate(gpu: GPU, kernels: bool = False, use_cache: bool = True) -> tuple[float, str]:
    """Seconds per token in the middle of the chapter's 100 tokens, and what limits them."""
    c, past = config(), PROMPT + NEW // 2
    calls = KERNELS if kernels else PLAIN if use_cache else NO_CACHE
    parts = {
        "reading": bytes_read(c, past if use_cache else 0) / (REACHED * gpu.bandwidth) + calls * SMALL,
        "launching": 0.0 if kernels else calls * CALL,
        "arithmetic": 2 * matrix_weights(c) * (1 if use_cache else past) / (BUSY * gpu.flops) + calls * SMALL,
    }
    longest = max(parts, key=lambda name: parts[name])
    return parts[longest], longest


def table() -> str:
    """The estimates as a Markdown table."""

    def cell(gpu: GPU, **how: bool) -> str:
        seconds, longest = estimate(gpu, **how)
        return f"{1000 * seconds:.1f} ms ({longest})"

    rows = [
        "| milliseconds per token | our kernels | CuPy's own (`--no-kernels`) | without the KV cache |",
        "|---|---|---|---|",
        f"| the chapter on a T4, measured | | {CHAPTER['cache']} ms | {CHAPTER['no cache']} ms |",
    ]
    rows += [
        f"| {gpu.name}, estimated | {cell(gpu, kernels=True)} | {cell(gpu)} | {cell(gpu, use_cache=False)} |"
        for gpu in GPUS
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
