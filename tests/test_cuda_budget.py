"""Launches, copies and memory of a decode step of Phi-3-mini, counted at its full shapes on the emulated device.

The device is in null mode: CuPy runs unchanged, but no kernel executes. The launches, copies and sizes are CuPy's own.
"""

from collections import Counter
from importlib import import_module
from math import prod

import numpy as np
import pytest
from bridge import tool
from emulated import cache_bytes, decoding, empty_model, filled_cache, matrices, phi3_mini, weight_bytes

import npllm
from npllm.cache import kv_cache_bytes
from npllm.cuda.gpu import on_gpu
from npllm.model import transform
from npllm.sampling import choose

gpu_model = tool("gpu_model")
pytestmark = pytest.mark.cuda
PAST, CAPACITY = 1000, 2048

CALLS = 2400  # kernel launches and matrix products per token
MEMORY = 300_000_000  # beyond the weights and the KV cache
SYNCS = {"cudaStreamSynchronize": 1}
COPIES = {"memcpyD2H": [16], "memcpyH2D": [8]}  # the chosen token, its logit, the largest and a sum; the last token


@pytest.fixture(scope="module")
def lm(emulator, cupy):
    with emulator.null():
        yield on_gpu(empty_model(cupy, phi3_mini()), kernels=False)


@pytest.fixture(autouse=True)
def nothing_runs(emulator):
    """The device in null mode. Copies to the host give zeros: token 0, and a largest logit of 0."""
    with emulator.null():
        yield


def counted(emulator, lm, **options):
    """The events of a step, and the device memory it uses beyond the weights and KV cache."""
    cache = filled_cache(lm, PAST, CAPACITY)
    steps = decoding(lm, PAST, cache, **options)
    emulator.reset_peak()
    events = emulator.trace(next, steps)
    return events, emulator.peak_bytes() - weight_bytes(lm) - cache_bytes(cache)


def written(event):
    """The number of threads in a launch. CuPy's elementwise kernels have at least one per element written."""
    return prod(event.info[axis] for axis in ("grid_x", "grid_y", "grid_z", "block_x"))


def over_budget(events, lm) -> list[str]:
    """Descriptions of what is over budget in the events of a step. Empty if nothing is."""
    wrong = []
    calls = len(events.of("launch", "gemm", "blas", "sort"))
    if calls > CALLS:
        wrong.append(f"{calls} calls")
    needed = sum(matrix.nbytes for matrix in (*matrices(lm), lm.weights.lm_head))
    read = sum(event.info["bytes"] for event in events.of("gemm") if event.info["batch"] == 1)
    if not needed <= read <= 1.03 * needed:
        wrong.append(f"{read} bytes of weights read")
    smallest = min(matrix.size for matrix in matrices(lm))
    filled = PAST * lm.config.num_key_value_heads * lm.config.head_dim  # of a layer's keys
    large = [event for event in events.of("launch") if written(event) >= min(smallest, filled)]
    wrong += [f"{event.name} of {written(event)}" for event in large]
    wrong += [f"{event.kind} of {event.info}" for event in events.of("memcpyD2D", "memset")]
    for kind, expected in COPIES.items():
        sizes = [event.info["bytes"] for event in events.of(kind)]
        if sizes != expected:
            wrong.append(f"{kind} of {sizes} bytes")
    syncs = Counter(event.name for event in events.of("sync"))
    if syncs != SYNCS:
        wrong.append(f"syncs: {syncs}")
    allocations = events.of("malloc", "free", "host_malloc", "host_free")
    return wrong + [f"{event.kind} of {event.info}" for event in allocations]


def test_a_decode_step_is_within_its_budget(emulator, lm):
    events, memory = counted(emulator, lm)
    assert over_budget(events, lm) == []
    assert 0 <= memory <= MEMORY


def test_the_model_on_paper_counts_as_the_device_does(emulator, lm, monkeypatch):
    """74 tokens without the cache. All tiles are computed, as in the long-prompt test."""
    calls = "launch", "gemm", "blas", "sort"
    assert len(counted(emulator, lm)[0].of(*calls)) == gpu_model.PLAIN
    flash = import_module("npllm.flash")
    asked = flash.visible_tiles
    monkeypatch.setattr(
        flash, "visible_tiles", lambda *shape: asked(*shape) and [(slice(0, shape[0]), [slice(0, shape[1])])]
    )
    past = gpu_model.PROMPT + gpu_model.NEW // 2
    steps = npllm.steps(lm, [1] * past, use_cache=False, max_new_tokens=4)
    next(steps), next(steps)
    assert len(emulator.trace(next, steps).of(*calls)) == gpu_model.NO_CACHE


def test_attention_reads_the_filled_part_of_the_cache_once(emulator, lm):
    events, _ = counted(emulator, lm)
    read = sum(event.info["bytes"] for event in events.of("gemm") if event.info["batch"] > 1)
    filled = kv_cache_bytes(lm.config, PAST + 3)  # two steps before this one
    assert filled <= read <= 1.03 * filled


def test_weights_are_multiplied_in_float16_and_summed_in_float32(emulator, lm):
    events, _ = counted(emulator, lm)
    of_weights = [event.info for event in events.of("gemm") if event.info["batch"] == 1]
    assert len(of_weights) == 4 * lm.config.num_hidden_layers + 1
    compute_32f = 68  # CUBLAS_COMPUTE_32F
    assert {(info["a_dtype"], info["b_dtype"], info["compute"]) for info in of_weights} == {
        ("float16", "float16", compute_32f)
    }


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.8}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "seed": 1}],
    ids=["temperature", "all filters"],
)
def test_drawing_a_token_copies_and_waits_no_more_than_greedy_decoding(emulator, lm, sampling):
    events, memory = counted(emulator, lm, **sampling)
    assert over_budget(events, lm) == []
    assert memory <= MEMORY


def test_every_step_is_as_the_one_before(emulator, lm):
    """The scores grow with the text, but nothing is allocated: they fit in the pool."""
    steps = decoding(lm, PAST, filled_cache(lm, PAST, CAPACITY))
    first = emulator.trace(next, steps).counts()
    more = emulator.trace(lambda: [next(steps) for _ in range(24)]).counts()
    assert more == {kind: 24 * count for kind, count in first.items()}


def test_a_long_prompt_stays_within_the_memory(emulator, lm, monkeypatch, cupy):
    """In chunks and tiles. All tiles are computed, because in null mode the flags that select tiles are 0."""
    flash = import_module("npllm.flash")

    def all_tiles(new, length, visible=None, tile=flash.TILE):
        return [(row, flash.spans(length, tile[1])) for row in flash.spans(new, tile[0])]

    monkeypatch.setattr(flash, "visible_tiles", all_tiles)
    cupy.get_default_memory_pool().free_all_blocks()
    emulator.reset_peak()
    assert next(npllm.steps(lm, [1] * 3000, max_new_tokens=2)).id == 0
    assert emulator.peak_bytes() - weight_bytes(lm) - kv_cache_bytes(lm.config, 3002) <= MEMORY


# Bugs that do not change the values, each caught by the budget


def with_axis(x2d, weight):
    """A weight product with three axes, for which CuPy copies both operands to float32."""
    return (x2d[None].astype(weight.dtype) @ weight.T[None])[0].astype(x2d.dtype)


def einsum(x2d, weight):
    return import_module("cupy").einsum("td,fd->tf", x2d, weight)


def widened(x2d, weight):
    return x2d @ weight.astype(np.float32).T


@pytest.mark.parametrize("product", [with_axis, einsum, widened])
def test_a_product_that_copies_the_weight_is_over_budget(emulator, lm, monkeypatch, product):
    monkeypatch.setattr(import_module("npllm.linear"), "product", product)
    smallest = min(matrix.size for matrix in matrices(lm))
    wrong = over_budget(counted(emulator, lm)[0], lm)
    assert any(int(size) >= smallest for text in wrong for size in text.split(" of ")[1:] if size.isdecimal())


def test_attention_that_copies_keys_and_values_is_over_budget(emulator, lm):
    wrong = over_budget(counted(emulator, lm._replace(transform=transform))[0], lm)
    assert any("copy" in text for text in wrong)


def test_a_stray_item_is_over_budget(emulator, lm, monkeypatch):
    def greedy(logits, **options):
        assert logits.max().item() == 0
        return choose(logits, **options)

    monkeypatch.setattr(import_module("npllm.loop"), "choose", greedy)
    wrong = over_budget(counted(emulator, lm)[0], lm)
    assert any(text.startswith("syncs") for text in wrong)
    assert any(text.startswith("memcpyD2H") for text in wrong)


def test_a_scalar_of_the_host_that_is_copied_to_the_device_is_over_budget(emulator, lm, monkeypatch, cupy):
    def scaled(logits, **options):
        return choose(logits * cupy.asarray(np.ones(1, dtype=np.float32)), **options)

    monkeypatch.setattr(import_module("npllm.loop"), "choose", scaled)
    assert any(text.startswith("memcpyH2D") for text in over_budget(counted(emulator, lm)[0], lm))


def test_a_numpy_array_in_the_path_is_refused(emulator, lm):
    norm = np.ones(lm.config.hidden_size, dtype=np.float32)
    layers = (lm.weights.layers[0]._replace(input_layernorm=norm), *lm.weights.layers[1:])
    with pytest.raises(TypeError, match="Unsupported type"):
        counted(emulator, lm._replace(weights=lm.weights._replace(layers=layers)))
