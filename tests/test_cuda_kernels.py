"""Our CUDA kernels: each against its definition, as a block, as a captured step, and counted at Phi-3-mini's shapes.

On the emulated device, NVRTC compiles the kernels for sm_75, sm_80 and sm_90, and the host runs them compiled for
the CPU. Threads switch only at barriers, so a missing barrier shows. See docs/gpu.md.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import write_folder
from default_model import needs_default_model
from emulated import cache_bytes, decoding, empty_model, filled_cache, matrices, phi3_mini, weight_bytes
from kernel_models import pass_by_pass, random_groups
from libraries import Library
from models import random_ids, random_weights, tiny_config
from test_golden import GOLDEN, expected_of
from tolerance import assert_close, assert_same_ids

import npllm
from npllm.cache import empty_cache, grow
from npllm.cuda import kernels, twins
from npllm.cuda.block import cuda_block
from npllm.cuda.gpu import on_gpu, with_kernels
from npllm.cuda.step import KernelWeight, replayed
from npllm.devices.device import to_host
from npllm.lm import LM
from npllm.model import transform
from npllm.storage.rows import RowGroups, row_groups

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cupy")]


# Each kernel against its definition


class Case(NamedTuple):
    """A call: the function, its arguments, and the indices of the arguments it writes to."""

    name: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...] = (-1,)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def nothing(*shape):
    """An output buffer. Elements that are never written stay NaN."""
    return np.full(shape, np.nan, dtype=np.float32)


def weight(kind, height, width):
    """A matrix in this storage format."""
    if kind in ("float16", "float32"):
        return random(height, width, seed=1, dtype=kind)
    bits, offset, group, has_minimum = kind
    return row_groups(random_groups(bits, offset, group, has_minimum, height, width))


OURS = [  # as `quantize_groups` makes them, except for the width of the scales
    (8, 0, 32, False),
    (4, 0, 32, True),
]
GGUF = [(8, -32, 16, True), (4, -8, 32, False)]
PLAIN = ["float16", "float32"]


def norm_cases():
    for width in (1, 8, 33, 1500, 3072):
        yield Case("rms_norm", (random(width), random(width, seed=1), 1e-5, nothing(width)))
    yield Case("rms_norm", (1e-3 * random(64), random(64, seed=1), 1e-5, nothing(64)))  # eps is not small


def embed_cases():
    for kind in ("float16", OURS[1], GGUF[0]):
        yield Case("embed", (np.array([4]), weight(kind, 6, 320), nothing(320)))


def matvec_cases():
    for kind in PLAIN:
        for height, width in ((1, 4), (5, 7), (18, 260), (9, 3072)):
            bias, residual = random(height, seed=3), random(height, seed=4)
            yield Case("matvec", (random(width), weight(kind, height, width), None, residual, nothing(height)))
            yield Case("matvec", (random(width), weight(kind, height, width), bias, None, nothing(height)))
    for kind in (*OURS, *GGUF):
        for height, width in ((5, 32), (18, 320), (3, 3072)):
            yield Case("matvec", (random(width), weight(kind, height, width), None, None, nothing(height)))
    bfloat16 = row_groups(random_groups(4, 0, 32, True, 18, 320))
    bits = [
        np.ascontiguousarray((x.view(np.uint32) >> 16).astype(np.uint16)) for x in (bfloat16.scale, bfloat16.minimum)
    ]
    narrow = RowGroups(bfloat16.codes, *bits, 0, 4)
    yield Case("matvec", (random(320), narrow, None, None, nothing(18)))


def swiglu_cases():
    for kind in ("float16", OURS[1]):
        for height, width in ((5, 32), (18, 288)):
            bias = random(2 * height, seed=3)
            yield Case("swiglu", (random(width), weight(kind, 2 * height, width), bias, nothing(height)))
    yield Case("swiglu", (100 * random(32), weight("float32", 36, 32), None, nothing(18)))  # exponents in the hundreds


def rope_cases():
    past_on_device = np.array([5], dtype=np.int32)
    for heads, kv_heads, width, pairs in ((4, 2, 8, 4), (3, 1, 8, 2), (2, 2, 96, 48)):
        for past, rows in ((3, 1), (0, 9), (past_on_device, 9), (past_on_device, 1)):
            for dtype in PLAIN:
                qkv, out = random((heads + 2 * kv_heads) * width), nothing(heads * width)
                tables = random(rows, pairs, seed=1), random(rows, pairs, seed=2)
                cache = (random(kv_heads, 9, width, seed=seed, dtype=dtype) for seed in (3, 4))
                yield Case("rope_and_append", (qkv, *tables, past, *cache, out), (4, 5, 6))


def attention_cases():
    shapes = ((4, 4, 8), (6, 2, 16), (3, 1, 64), (2, 2, 96))
    for heads, kv_heads, width in shapes:
        for past, window, hidden in (
            *((0, None, None), (4, None, None), (4, 3, None), (127, None, None), (128, None, None)),
            *((300, None, None), (300, 1, None), (300, 130, None), (300, 1000, None)),
            *((140, None, 0.5), (140, 20, 0.5), (140, None, 1.0)),
            *((np.array([260], dtype=np.int32), None, None), (np.array([260], dtype=np.int32), 40, None)),
        ):
            dtype = "float16" if width in (16, 96) else "float32"
            keys, values = (random(kv_heads, 310, width, seed=seed, dtype=dtype) for seed in (1, 2))
            visible = None
            if hidden is not None:
                visible = np.random.default_rng(5).random(past + 1) >= hidden
            chunks = -(-310 // kernels.CHUNK)
            work = kernels.Work(nothing(heads, chunks), nothing(heads, chunks), nothing(heads, chunks, width))
            arguments = (3 * random(heads * width), keys, values, past, window, visible, work, nothing(heads * width))
            yield Case("attention", arguments)


def advance_cases():
    yield Case("advance", (np.array([6], dtype=np.int32),))


CASES = {
    "rms_norm": norm_cases,
    "embed": embed_cases,
    "matvec": matvec_cases,
    "swiglu": swiglu_cases,
    "rope_and_append": rope_cases,
    "attention": attention_cases,
    "advance": advance_cases,
}


def copied(value, xp):
    """A copy of an argument, in another library."""
    if isinstance(value, np.ndarray):
        return xp.array(value)
    if isinstance(value, RowGroups):
        parts = (copied(part, xp) for part in (value.codes, value.scale, value.minimum))
        return RowGroups(*parts, value.offset, value.bits)
    if isinstance(value, tuple):
        return type(value)(*(copied(part, xp) for part in value))
    return value


def check(case, cupy):
    """Raise AssertionError unless the kernel and its definition write the same values."""
    made = []
    for functions, xp in ((kernels, cupy), (twins, np)):
        arguments = [copied(value, xp) for value in case.arguments]
        getattr(functions, case.name)(*arguments)
        made.append([to_host(arguments[i]) for i in case.written])
    for got, expected in zip(*made, strict=True):
        assert got.dtype == expected.dtype
        if got.dtype == np.float16:  # rounded from float32: the last digit may differ
            np.testing.assert_allclose(got, expected, rtol=np.finfo(np.float16).eps)
        elif got.dtype == np.float32:
            assert_close(case.name, got, expected)
        else:
            np.testing.assert_array_equal(got, expected)


def check_all(name, cupy):
    for case in CASES[name]():
        check(case, cupy)


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_its_definition(cupy, name):
    check_all(name, cupy)


def test_the_residual_stream_may_be_written_in_place(cupy):
    x, matrix, residual = random(32), weight("float16", 18, 32), random(18, seed=2)
    stream = cupy.asarray(residual)
    kernels.matvec(cupy.asarray(x), cupy.asarray(matrix), None, stream, stream)
    assert_close("stream", to_host(stream), residual + matrix.astype(np.float32) @ x)


def test_an_overflow_in_a_norm_is_not_hidden(cupy):
    x, out = cupy.full(64, 1e30, dtype=np.float32), cupy.zeros(64, dtype=np.float32)
    kernels.rms_norm(x, cupy.ones(64, dtype=np.float32), 1e-5, out)
    assert np.isnan(to_host(out)).all()


def test_memory_that_no_four_numbers_start_at_is_refused(cupy):
    """A GPU cannot load them at once. A CPU can, so the emulated device would not catch it."""
    for x in (cupy.zeros(5, dtype=np.float32)[1:], cupy.zeros((4, 4), dtype=np.float32).T):
        with pytest.raises(TypeError, match="contiguous and aligned to 16 bytes"):
            kernels.checked(x, x.size)


# Bugs in the kernels, each caught by the check above

BUGS = [
    ("common.cuh", "int distance = 16", "int distance = 8", "matvec"),  # half of the warp left out
    ("common.cuh", "halves[2]), __half2float(halves[3]", "halves[3]), __half2float(halves[2]", "matvec"),
    ("plain_row.cuh", "int i = 4 * fours + lane", "int i = 4 * fours + lane + 1", "matvec"),
    ("groups_row.cuh", "* OFFSET", "* 0.0f", "matvec"),
    ("groups_row.cuh", "four.x >> 4, four.y >> 4", "four.y >> 4, four.x >> 4", "matvec"),
    ("groups_row.cuh", "in_row = i / (GROUP / 2)", "in_row = i / GROUP", "matvec"),
    ("groups_row.cuh", "inside < GROUP / 2 ? both & 15 : both >> 4", "both & 15", "embed"),
    ("matvec.cu", "residual[row] + y", "y", "matvec"),
    ("matvec.cu", "y += bias[row]", "y += bias[0]", "matvec"),
    ("swiglu.cu", "fminf(-gate, 88.0f)", "gate", "swiglu"),
    ("swiglu.cu", "row + height, x", "row + 1, x", "swiglu"),
    ("rms_norm.cu", " + eps", "", "rms_norm"),
    ("rms_norm.cu", "__syncthreads();", "", "rms_norm"),
    ("rms_norm.cu", "lane < blockDim.x / 32 ?", "lane < 1 ?", "rms_norm"),
    ("rope_and_append.cu", "i < pairs ? -x", "i < pairs ? x", "rope_and_append"),
    ("rope_and_append.cu", "head < heads + kv_heads && i < 2 * pairs", "i < 2 * pairs", "rope_and_append"),
    ("rope_and_append.cu", "table_rows == 1 ? 0 : slot", "slot", "rope_and_append"),
    ("rope_and_append.cu", "capacity + slot", "capacity + slot + 1", "rope_and_append"),
    ("attend.cu", " / sqrtf(WIDTH)", "", "attention"),
    ("attend.cu", ") + 1;  // with the new", ");  // with the new", "attention"),  # the token does not see itself
    ("attend.cu", "length - window)", "length - window - 1)", "attention"),
    ("attend.cu", "visible[first + key]", "visible[key]", "attention"),
    ("attend.cu", "__syncthreads();  // queries", "// queries", "attention"),
    ("attend.cu", "__syncthreads();  // scores", "// scores", "attention"),
    ("attend.cu", "__syncthreads();  // shares", "// shares", "attention"),
    ("attend.cu", "__syncthreads();  // parts", "// parts", "attention"),
    ("merge.cu", "expf(largest[head * chunks + chunk] - most)", "1.0f", "attention"),
    ("merge.cu", "(length - 1) / CHUNK + 1", "length / CHUNK + 1", "attention"),  # reads a chunk that was never written
    ("merge.cu", "max(length - window, 0) / CHUNK", "0", "attention"),
    ("advance.cu", "+= 1", "+= 2", "advance"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "text", "bug", "name"), BUGS, ids=[f"{bug[0]}-{bug[2][:20]}" for bug in BUGS])
def test_a_bug_in_a_kernel_is_seen(emulator, cupy, monkeypatch, where, text, bug, name):
    source, read = kernels.read(where), kernels.read
    assert source.count(text) >= 1
    monkeypatch.setattr(kernels, "read", lambda name: source.replace(text, bug) if name == where else read(name))
    with pytest.raises(AssertionError):
        check_all(name, cupy)


# As a block, and as a captured step


def random_lm(cupy, dtype="float32", biases=False, seed=0, **keys):
    """A random model on the GPU, with matrices in this dtype, and the same model on the CPU in float32."""
    config = tiny_config(**keys)
    on_host = random_weights(config, seed, biases=biases)

    def narrow(value):
        if isinstance(value, np.ndarray):
            return value.astype(dtype) if value.ndim == 2 else value
        if isinstance(value, tuple):
            parts = (narrow(part) for part in value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    on_host = narrow(on_host)
    on_device = on_device_of(on_host, cupy)
    if config.tie_word_embeddings:
        on_device = on_device._replace(lm_head=on_device.embed_tokens)
    widened = Library(np).tree(on_host)
    return LM(config, on_device, None, {}), LM(config, widened, None, {})


def on_device_of(value, cupy):
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    if isinstance(value, tuple):
        parts = (on_device_of(part, cupy) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


MODELS = {
    "multi-head": {"num_key_value_heads": 4},
    "grouped-query": {},
    "window": {"model_type": "phi3", "sliding_window": 3, "partial_rotary_factor": 0.5, "head_dim": 8},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS)
def test_a_block_and_a_captured_step_are_those_of_the_cpu(emulator, cupy, keys, dtype):
    """float16 weights are widened exactly and vectors are not rounded, so the tolerance is float32's for both dtypes.

    It runs lazily with all new memory filled with NaN, so a read before the first write shows.
    """
    lm, on_host = random_lm(cupy, dtype, biases=True, **keys)
    ids, chunks = random_ids(on_host.config, 8), (3, 1, 1, 1, 1, 1)
    expected, _ = pass_by_pass(on_host, ids, transform, chunks)
    cache = first_tokens(on_host, ids, 3, cupy)
    for whole_pass in (partial(transform, block=cuda_block), replayed(transform)):
        mine = {name: [side.copy() for side in cache[name]] for name in ("keys", "values")} | {"length": 3}
        with emulator.lazy(), emulator.poison_every_allocation():
            made, _ = pass_by_pass(lm, cupy.asarray(ids[3:]), whole_pass, chunks[1:], mine)
        for step, (got, wanted) in enumerate(zip(made, expected[1:], strict=True)):
            assert_close(f"step {step}", got, wanted)


def first_tokens(on_host, ids, count, cupy):
    """A cache on the GPU, with the keys and values the CPU computed for the first ids."""
    _, cache = pass_by_pass(on_host, ids[:count], transform, (count,), empty_cache(on_host.config, 10, like=ids))
    return {name: [cupy.asarray(side) for side in cache[name]] for name in ("keys", "values")} | {"length": count}


@pytest.mark.parametrize(
    ("name", "cache_dtype"), [*((name, "float32") for name in MODELS), ("grouped-query", "float16")]
)
def test_the_loop_makes_the_tokens_of_the_cpu(cupy, name, cache_dtype):
    lm, on_host = random_lm(cupy, **MODELS[name])
    options = {"max_new_tokens": 12, "cache_dtype": cache_dtype}
    expected = npllm.generate(on_host, [1, 2, 3], **options)
    assert npllm.generate(with_kernels(lm), [1, 2, 3], **options).ids == expected.ids


@needs_default_model
def test_the_default_model_continues_as_on_the_cpu():
    """The plain functions compute the prompt; one step is launched, and one is replayed."""
    run = expected_of(GOLDEN / "default-model")["raw"][0]
    ids = npllm.generate(npllm.load(device="cuda"), run["ids"], max_new_tokens=3).ids
    assert_same_ids("greedy", ids, run["greedy_ids"][:3], run["gaps"])


def test_a_step_is_launched_once_and_from_then_on_replayed(emulator, cupy):
    lm, _ = random_lm(cupy)
    lm, cache, ids = with_kernels(lm), empty_cache(lm.config, 8, like=lm.weights.norm), cupy.asarray([1, 2, 3, 4, 5])
    counts = []
    for i in range(5):
        if i == 3:
            grow(cache, 9)  # other addresses
        events = emulator.trace(lm.transform, ids[i : i + 1], lm.weights, lm.config, cache)
        counts.append(len(events.of("graph_launch")))
        assert not events.of("memcpyD2H")
    assert counts == [0, 1, 1, 0, 1]
    cache["length"] = 2  # two tokens are dropped
    again, _ = npllm.transform(ids[2:3], lm, cache)
    cache["length"] = 2
    plain, _ = npllm.transform(ids[2:3], lm, cache)
    assert_close("hidden", to_host(again), to_host(plain))


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_of_captured_steps_are_those_of_the_cpu(emulator, cupy, dtype, tied):
    """Two texts alternate, and the logits are compared at the end: no step overwrites an earlier step's result."""
    lm, on_host = random_lm(cupy, dtype, tie_word_embeddings=tied)
    lm, texts = with_kernels(lm), random_ids(lm.config, 2, 7)
    expected = [npllm.forward(ids, on_host)[0] for ids in texts]
    caches = [empty_cache(lm.config, 7, like=lm.weights.norm) for _ in texts]
    made = []
    with emulator.lazy(), emulator.poison_every_allocation():
        for at in range(7):
            vectors = []
            for ids, cache in zip(texts, caches, strict=True):
                vectors.append(npllm.transform(cupy.asarray(ids[at : at + 1]), lm, cache)[0])
                made.append(npllm.lm_head(vectors[-1][-1:, :], lm))
            vectors.reverse()
            made += [npllm.lm_head(hidden, lm) for hidden in vectors]  # of the last two steps
    for place, logits in enumerate(made):
        at, text = place // 4, (0, 1, 1, 0)[place % 4]
        assert_close("logits", to_host(logits)[0], expected[text][at])


def test_a_captured_step_goes_with_its_cache(cupy):
    """Nothing else holds its memory."""
    lm, _ = random_lm(cupy)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    npllm.generate(with_kernels(lm), [1, 2], max_new_tokens=4)
    assert pool.used_bytes() == before


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_model_is_loaded_with_kernels_unless_they_are_switched_off(cupy, tmp_path, dtype):
    write_folder(tmp_path / "m")
    lm, plain = (npllm.load(tmp_path / "m", device="cuda", dtype=dtype, kernels=kernels) for kernels in (True, False))
    assert isinstance(lm.weights.lm_head, KernelWeight)
    assert type(plain.weights.lm_head) is cupy.ndarray
    expected = npllm.generate(npllm.load(tmp_path / "m", dtype="float32"), "and", max_new_tokens=6).ids
    assert npllm.generate(lm, "and", max_new_tokens=6).ids == expected
    assert npllm.generate(plain, "and", max_new_tokens=6).ids == expected


@pytest.mark.parametrize("flag", [[], ["--no-kernels"]], ids=["kernels", "no kernels"])
def test_the_command_line_switches_them_off(emulator, npllm, folder, flag):
    events = emulator.trace(npllm, "generate", "--device", "cuda", "-n", "4", *flag, "and")
    assert events.result.code == 0, events.result
    assert len(events.of("graph_launch")) == (
        0 if flag else 2
    )  # of four tokens, one belongs to the prompt and one is captured


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weights_of_8_and_4_bits_on_the_gpu(cupy, tmp_path, dtype, kernels):
    """The values match the CPU's bit for bit."""
    write_folder(tmp_path / "m", "llama", hidden_size=64, intermediate_size=96, head_dim=16)
    lm = npllm.load(tmp_path / "m", device="cuda", dtype=dtype, kernels=kernels)
    on_host = npllm.load(tmp_path / "m", dtype=dtype)
    rows = np.arange(10)
    for ours, theirs in zip(lm.weights.layers[0], on_host.weights.layers[0], strict=True):
        if isinstance(ours, RowGroups):
            np.testing.assert_array_equal(to_host(ours.rows(cupy.asarray(rows))), theirs.rows(rows))
    assert isinstance(lm.weights.layers[0].down_proj, RowGroups)
    assert npllm.generate(lm, "and", max_new_tokens=8).ids == npllm.generate(on_host, "and", max_new_tokens=8).ids


def test_every_kernel_was_compiled_for_three_architectures(emulator, cupy):
    """NVRTC accepts them for sm_75, sm_80 and sm_90: the emulated device compiles for all before it runs any."""
    from cupy_on_cpu._compile import ARCHITECTURES

    assert {"75", "80", "90"} <= {*ARCHITECTURES}
    for cases in CASES.values():
        check(next(cases()), cupy)
    files = [path.name for path in Path(kernels.__file__).parent.glob("*.cu*")]
    assert len(files) == 11
    for name in files:
        assert any(kernels.read(name) in source for source in emulator.sources), name


# Launches and memory of a decode step of Phi-3-mini

PAST, CAPACITY = 1000, 2048
CALLS = 330  # kernel launches and products per token
KERNELS = 305  # as counted here; also in docs/gpu-kernels.md and tools/bench/gpu_model.py
MEMORY = 300_000_000
PER_LAYER = {"rms_norm": 2, "matvec": 3, "swiglu": 1, "rope_and_append": 1, "attend": 1, "merge": 1}


@pytest.fixture(scope="module")
def phi3(emulator, cupy):
    with emulator.null():
        yield on_gpu(empty_model(cupy, phi3_mini()))


@pytest.fixture
def null(emulator):
    with emulator.null():
        yield


@pytest.mark.usefixtures("null")
def test_a_decode_step_of_phi3_mini_is_within_its_budget(emulator, phi3):
    cache = filled_cache(phi3, PAST, CAPACITY)
    steps = decoding(phi3, PAST, cache)
    emulator.reset_peak()
    events = emulator.trace(next, steps)
    (graph,) = events.of("graph_launch")
    assert graph.info["nodes"] == sum(PER_LAYER.values()) * phi3.config.num_hidden_layers + 3  # embed, norm, advance
    calls = graph.info["nodes"] + len(events.of("launch", "gemm", "blas", "sort"))
    assert calls == KERNELS <= CALLS
    assert [event.info["bytes"] for event in events.of("memcpyD2H")] == [16]
    assert [event.info["bytes"] for event in events.of("memcpyH2D")] == [8]
    assert Counter(event.name for event in events.of("sync")) == {"cudaStreamSynchronize": 1}
    assert not events.of("malloc", "free", "host_malloc", "host_free", "memset")
    outside = events.of("launch")  # the captured step: the LM head and the choice of the token
    (head,) = [event for event in outside if event.name == "matvec"]
    assert 0 <= head.info["grid_x"] * kernels.ROWS - phi3.config.vocab_size < kernels.ROWS
    for event in outside:
        assert event is head or event.info["grid_x"] * event.info["block_x"] <= 2 * phi3.config.vocab_size, event
    assert sum(event.info["bytes"] for event in events.of("memcpyD2D")) <= 1e5
    assert 0 <= emulator.peak_bytes() - weight_bytes(phi3) - cache_bytes(cache) <= MEMORY


@pytest.mark.usefixtures("null")
def test_every_weight_is_read_once(emulator, phi3, monkeypatch):
    """Counted from the arguments of the launches: which array, how many rows, how many blocks."""
    read, launch = [], kernels.launch

    def looking(name, row, options, blocks, threads, arguments):
        if name in ("matvec", "swiglu"):
            codes, height = arguments[0], arguments[-2]
            rows = height * (2 if name == "swiglu" else 1)
            assert (blocks[0] - 1) * kernels.ROWS < height <= blocks[0] * kernels.ROWS
            assert threads == 32 * kernels.ROWS
            assert codes.shape == (rows, arguments[-1])
            read.append(codes)
        launch(name, row, options, blocks, threads, arguments)

    cache = filled_cache(phi3, PAST, CAPACITY)
    steps = decoding(phi3, PAST, cache)
    monkeypatch.setattr(kernels, "launch", looking)
    cache["step"].launch()  # the captured part
    captured = len(read)
    next(steps)  # and the LM head, launched after it
    assert len(read) == captured + 1
    needed = [*matrices(phi3), phi3.weights.lm_head.weight]
    assert sum(matrix.nbytes for matrix in needed) <= sum(matrix.nbytes for matrix in read)
    assert sum(matrix.nbytes for matrix in read) <= 1.03 * sum(matrix.nbytes for matrix in needed)
    assert {id(matrix) for matrix in read} == {id(matrix) for matrix in needed}


@pytest.mark.usefixtures("null")
def test_the_launches_of_a_step(emulator, phi3):
    cache = filled_cache(phi3, PAST, CAPACITY)
    decoding(phi3, PAST, cache)
    events = emulator.trace(cache["step"].launch)
    layers = phi3.config.num_hidden_layers
    once = Counter({"embed": 1, "rms_norm": 1, "advance": 1})
    assert Counter(event.name for event in events) == once + Counter({k: n * layers for k, n in PER_LAYER.items()})
    assert events.counts() == {"launch": len(events)}  # no allocation and no copy, so it can be captured
    for event in events.of("launch"):
        if event.name == "attend":  # a block per key/value head and 128 keys of the capacity
            assert (event.info["grid_x"], event.info["grid_y"]) == (32, CAPACITY // kernels.CHUNK)


@pytest.mark.usefixtures("null")
@pytest.mark.parametrize(
    "options", [{"temperature": 0.8}, {"cache_dtype": "float16"}], ids=lambda options: next(iter(options))
)
def test_drawing_and_a_narrow_cache_change_no_copy(emulator, phi3, options):
    cache = filled_cache(phi3, PAST, CAPACITY, dtype=np.float16 if "cache_dtype" in options else None)
    events = emulator.trace(next, decoding(phi3, PAST, cache, **options))
    assert len(events.of("graph_launch")) == 1
    assert [event.info["bytes"] for event in events.of("memcpyD2H")] == [16]
    assert len(events.of("sync")) == 1
    assert not events.of("malloc", "free", "host_malloc", "host_free")


@pytest.mark.usefixtures("null")
def test_a_block_without_capture_stays_within_the_budget_too(emulator, cupy):
    """With a short text: ten launches per layer, plus CuPy's launches around them."""
    lm = empty_model(cupy, phi3_mini())
    lm = lm._replace(transform=partial(transform, block=cuda_block))
    events = emulator.trace(next, decoding(lm, PAST, filled_cache(lm, PAST, CAPACITY)))
    assert len(events.of("launch", "gemm", "blas", "sort")) <= CALLS
    assert not events.of("malloc", "free", "host_malloc", "host_free", "memset")
