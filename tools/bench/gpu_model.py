"""On paper: how long a token of Phi-3-mini takes on a GPU. No GPU is needed, and nothing is measured.

    python tools/bench/gpu_model.py

The GPU works on one kernel after the other: reading the weights and the KV cache takes what its memory takes, and each
kernel, however small, a few microseconds. The host asks for the next one meanwhile: the longer of the two is the time
of a token. Without the KV cache every stream of the text is computed again, and arithmetic may take longest.

The assumptions are few, and stand below. Every figure is an estimate, until `npllm selftest --device cuda` replaces it.
"""

from typing import NamedTuple

from make_checkpoint import PRESETS

from npllm.cache import kv_cache_bytes
from npllm.config import Config
from npllm.families import read_config

PROMPT, NEW = 24, 100  # the chapter's: the email to Sarah, 100 tokens
# Kernels and matrix products of a step; tests/test_cuda_budget.py and tests/test_cuda_kernels.py count them.
PLAIN = 1945  # CuPy's own
KERNELS = 300  # ours, which the host asks for as one graph
NO_CACHE = 2562  # CuPy's own, for a text of up to 256 tokens
CALL = 8e-6  # seconds that CuPy and the driver take on the host for each
SMALL = 2e-6  # seconds that a kernel takes on the GPU beside what it reads
REACHED = 0.8  # of the memory's bandwidth, by kernels that read one array after the other
BUSY = 0.4  # of the arithmetic, by products of so few rows


class GPU(NamedTuple):
    """Two figures of its data sheet."""

    name: str
    bandwidth: float  # bytes per second
    flops: float  # float16 with float32 sums, per second, without sparsity


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
    """The numbers in all matrices that a token is multiplied by; of the embeddings it reads one row."""
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    heads = c.num_attention_heads + 2 * c.num_key_value_heads
    block = heads * H * D + D * c.num_attention_heads * H + 3 * F * D
    return c.num_hidden_layers * block + c.vocab_size * D


def bytes_read(c: Config, past: int) -> int:
    """For one token: all matrices in float16, and the cached keys and values in float32."""
    return 2 * matrix_weights(c) + kv_cache_bytes(c, past)


def estimate(gpu: GPU, kernels: bool = False, use_cache: bool = True) -> tuple[float, str]:
    """Seconds per token in the middle of the chapter's 100, and what takes them."""
    c, past = config(), PROMPT + NEW // 2
    calls = KERNELS if kernels else PLAIN if use_cache else NO_CACHE
    parts = {
        "reading": bytes_read(c, past if use_cache else 0) / (REACHED * gpu.bandwidth) + calls * SMALL,
        "asking for kernels": 0.0 if kernels else calls * CALL,
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
