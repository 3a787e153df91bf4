"""Weights in 16, 8 and 4 bits: they multiply as their own numbers in float32 do, however the rows are shared out."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, dense, write_folder, write_gguf, write_gguf_file, write_gpt2_folder
from hypothesis import given
from hypothesis import strategies as st
from test_gguf import blocks_of
from tolerance import assert_close

import npllm
from npllm.arrays import Packed
from npllm.checkpoint import narrow
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.plan import Part
from npllm.devices import threads as workers
from npllm.devices.threads import Workers, own_cores
from npllm.embedding import embed
from npllm.errors import ModelFileError, UsageError
from npllm.linear import linear
from npllm.storage import packed
from npllm.storage.gguf_blocks import BLOCK_FORMATS
from npllm.storage.packed import Columns, Groups, Half, by_columns, empty_groups, fill_groups, quantize_groups, rooms
from npllm.storage.stored import read_rows

WORKERS = [Workers(1), Workers(3)]
KINDS = ["float16", "bfloat16", "int8", "int4"]


def matrix(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)


def pack(weight, kind, some_workers, group=32):
    """A weight in that storage."""
    if kind in ("float16", "bfloat16"):
        return Half(weight.astype({"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind]), some_workers)
    bits = {"int8": 8, "int4": 4}[kind]
    codes, scale, minimum = quantize_groups(weight, bits, group)
    made = empty_groups(*weight.shape, bits, group, 0, minimum is not None, some_workers, ml_dtypes.bfloat16)
    fill_groups(made, 0, codes, scale, minimum)
    return made


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and blocks of a few rows, and every product shared out: what only large weights meet otherwise."""
    monkeypatch.setattr(packed, "TILE", 1024)
    monkeypatch.setattr(workers, "SHARED_FROM", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("some_workers", WORKERS, ids=["one thread", "three threads"])
@pytest.mark.parametrize("vectors", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("height", [1, 15, 16, 17, 100])
def test_a_product_is_that_of_the_widened_weight(small_tiles, kind, some_workers, vectors, height):
    weight, x = pack(matrix(height, 96), kind, some_workers), matrix(vectors, 96, seed=1)
    assert_close(kind, weight.matmul(x), x @ dense(weight).T)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_and_embed_take_them(kind):
    weight = pack(matrix(50, 64), kind, WORKERS[0])
    assert isinstance(weight, Packed)
    assert (weight.shape, dense(weight).dtype) == ((50, 64), np.float32)
    x = matrix(6, 64, seed=1).reshape(2, 3, 64)
    assert_close(kind, linear(x, weight), x @ dense(weight).T)
    np.testing.assert_array_equal(embed(np.array([[49, 0], [7, 7]]), weight), dense(weight)[[[49, 0], [7, 7]]])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_16_bit_number_is_widened_exactly(kind):
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind]
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    out = np.empty(every.shape, dtype=np.float32)
    packed.widen_half(every, out)
    out *= {"float16": 2.0**112, "bfloat16": 1}[kind]
    np.testing.assert_array_equal(out.view("u4"), every.astype(np.float32).view("u4"))


def test_products_with_float16_keep_large_and_small_numbers():
    """Its tiles are scaled on the way: nothing that float32 can tell gets lost by it."""
    numbers = np.array([2.0**-24, 2.0**-14, 0.3, 1.0, 65504.0], dtype=np.float16)
    weight = Half(np.diag(numbers), WORKERS[0])
    for x in (1e-20, 1e-6, 3.0, 1e4, 1e14):
        each = np.float32(x) * numbers.astype(np.float32)
        np.testing.assert_array_equal(weight.matmul(np.full((1, 5), x, dtype=np.float32))[0], each)


@pytest.mark.parametrize("vectors", [1, 9])
def test_a_group_may_be_as_long_as_the_row(small_tiles, vectors):
    """Then there is one scale for each row."""
    weight, x = pack(matrix(17, 96), "int8", WORKERS[1], group=96), matrix(vectors, 96, seed=1)
    assert weight.scale.shape[1] == 1
    assert_close("int8", weight.matmul(x), x @ dense(weight).T)


@given(seed=st.integers(0, 100), group=st.sampled_from([16, 32]), bits=st.sampled_from([8, 4]))
def test_quantizing_is_off_by_half_a_step_at_most(seed, group, bits):
    weight = matrix(5, 96, seed)
    weight[0] = 0  # a group of equal numbers has no step
    weight[1] = 3.5
    codes, scale, minimum = (
        None if part is None else part.astype(np.float32) for part in quantize_groups(weight, bits, group)
    )
    back = codes * scale[..., None] + (0 if minimum is None else minimum[..., None])
    rounding = 2.0**-8 * np.abs(weight).max()  # of scale and minimum, to bfloat16
    assert np.all(np.abs(back.reshape(weight.shape) - weight) <= 0.501 * np.repeat(scale, group, axis=1) + rounding)


def test_an_error_in_a_thread_is_an_error_of_the_product(monkeypatch):
    monkeypatch.setattr(workers, "SHARED_FROM", 1)

    def work(first, last, scratch):
        if first > 0:
            raise ArithmeticError("in the last thread")

    with pytest.raises(ArithmeticError, match="in the last thread"):
        WORKERS[1].share(10, 10, work)


def test_each_thread_has_a_core_of_its_own_while_they_share(monkeypatch):
    """Told by what is asked of the system, so that it holds on any number of cores."""
    cores, asked = {3, 5, 8}, []
    allowed = threading.local()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: getattr(allowed, "cores", cores), raising=False)

    def stay(_, where):
        allowed.cores = set(where)
        asked.append((threading.current_thread(), set(where)))

    monkeypatch.setattr(os, "sched_setaffinity", stay, raising=False)
    some_workers, at_work = Workers(3), {}
    everybody_is_there = threading.Barrier(3, timeout=60)

    def work(first, last, scratch):
        at_work[threading.current_thread()] = os.sched_getaffinity(0)
        everybody_is_there.wait()

    for _ in range(2):
        some_workers.share(3, 2**30, work)
        assert sorted(map(list, at_work.values())) == [[3], [5], [8]]
    main = threading.current_thread()
    assert [where for thread, where in asked if thread is main] == [{3}, cores] * 2, "it is free again"


def test_fewer_threads_than_cores_go_where_they_like(monkeypatch):
    """Two of the cores may be halves of one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert own_cores(3) == []
    assert own_cores(4) == [0, 1, 2, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2})
    assert own_cores(1) == []
    monkeypatch.delattr(os, "sched_getaffinity")
    assert own_cores(4) == []


def test_after_an_interruption_nobody_gets_scratch_that_is_in_use():
    """Ctrl-C in the calling thread, while another is still at work."""
    some_workers, in_use = Workers(2), []
    at_work, may_end = threading.Event(), threading.Event()

    def work(first, last, scratch):
        if first == 0:
            at_work.wait(60)
            raise KeyboardInterrupt
        in_use.append(scratch)
        at_work.set()
        may_end.wait(60)

    with pytest.raises(KeyboardInterrupt):
        some_workers.share(2, 2**30, work)
    assert len(in_use) == 1
    assert not any(np.shares_memory(tile, in_use[0]) for tile in some_workers.tiles)
    may_end.set()
    assert covered(5, some_workers) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_makes_threads_of_its_own():
    """Those of its parent it does not have, and waiting for them would take for ever."""
    some_workers = Workers(2)
    some_workers.share(2, 2**30, lambda first, last, scratch: None)
    child = multiprocessing.get_context("fork").Process(
        target=some_workers.share, args=(2, 2**30, lambda first, last, scratch: None)
    )
    child.start()
    child.join(20)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def covered(count, some_workers):
    """The rows that the threads are given."""
    seen = []
    some_workers.share(count, 2**30, lambda first, last, scratch: seen.extend(range(first, last)))
    return sorted(seen)


@given(count=st.integers(0, 20))
def test_the_threads_cover_every_row_once(count):
    assert covered(count, Workers(3)) == list(range(count))


def test_products_at_the_same_time_do_not_mix(monkeypatch):
    """Two threads that use one model: they share the scratch, so they must wait for each other."""
    monkeypatch.setattr(workers, "SHARED_FROM", 2**30)
    weights = [pack(matrix(300, 320, seed), "int8", WORKERS[0]) for seed in range(2)]
    x = matrix(1, 320, seed=9)
    expected = [weight.matmul(x) for weight in weights]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda i: weights[i % 2].matmul(x), range(400)))
    for i, y in enumerate(made):
        np.testing.assert_array_equal(y, expected[i % 2])


# Reading them


@pytest.mark.parametrize("dtype", BLOCK_FORMATS)
@pytest.mark.parametrize("interleaved_heads", [0, 2])
def test_blocks_of_a_file_keep_their_numbers(tmp_path, monkeypatch, dtype, interleaved_heads):
    """Bit for bit those that widening gives, with the rows of interleaved heads in their new places."""
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    width = 3 * BLOCK_FORMATS[dtype].numbers
    raw = blocks_of(dtype, rows=24)
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES[dtype], (24, width), raw.tobytes())})
    tensors = read_gguf(tmp_path / "x.gguf")[1]
    storage = narrow.storage_for((24, width), [dtype], "auto")
    part = Part("w", (24, width), 0, interleaved_heads, 8)
    weight = narrow.read_narrow((24, width), [part], tensors, storage, WORKERS[0])
    assert isinstance(weight, Groups)
    assert weight.nbytes == storage.nbytes((24, width))
    assert weight.bits == BLOCK_FORMATS[dtype].bits
    expected = np.concatenate(list(read_rows(tensors["w"])))
    order = narrow.row_order(part)
    if order is not None:
        expected[order] = expected.copy()
    np.testing.assert_array_equal(dense(weight), expected)


def test_parts_of_different_formats_share_a_storage_that_holds_both(tmp_path, monkeypatch):
    """As in Q4_K_M files, whose value projections are Q6_K where queries and keys are Q4_K."""
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    raw = {"q": ("Q4_K", blocks_of("Q4_K", rows=4)), "v": ("Q6_K", blocks_of("Q6_K", rows=2))}
    tensors = {name: (GGUF_DTYPES[kind], (len(rows), 768), rows.tobytes()) for name, (kind, rows) in raw.items()}
    write_gguf_file(tmp_path / "x.gguf", {}, tensors)
    stored = read_gguf(tmp_path / "x.gguf")[1]
    storage = narrow.storage_for((6, 768), ["Q4_K", "Q6_K"], "auto")
    parts = [Part("q", (4, 768), 0, 0, 0), Part("v", (2, 768), 4, 0, 0)]
    weight = narrow.read_narrow((6, 768), parts, stored, storage, WORKERS[0])
    expected = np.concatenate([*read_rows(stored["q"]), *read_rows(stored["v"])])
    np.testing.assert_allclose(dense(weight), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("model_type", ["phi3", "llama"])
def test_a_model_in_a_narrow_dtype_computes_with_its_own_numbers(tmp_path, dtype, model_type):
    """The logits of the same matrices in float32."""
    write_folder(tmp_path / "m", model_type, hidden_size=64, intermediate_size=96, head_dim=16, tokenizer=False)
    lm = npllm.load(tmp_path / "m", dtype=dtype)
    assert all(isinstance(block.qkv_proj, Packed) for block in lm.weights.layers)
    layers = [
        block._replace(**{name: dense(w) for name, w in block._asdict().items() if isinstance(w, Packed)})
        for block in lm.weights.layers
    ]
    head, table = dense(lm.weights.lm_head), dense(lm.weights.embed_tokens)
    widened = lm.weights._replace(layers=tuple(layers), lm_head=head, embed_tokens=table)
    ids = np.arange(12)
    ours, _ = npllm.forward(ids, lm)
    assert_close("logits", ours, npllm.forward(ids, widened, lm.config)[0])


def test_auto_keeps_the_width_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    for dtype, kept in {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}.items():
        write_folder(tmp_path / dtype, dtype=dtype, tokenizer=False)
        assert npllm.load(tmp_path / dtype).weights.layers[0].down_proj.dtype == kept
    write_gguf(tmp_path / "m.gguf", "llama", "Q8_0")
    assert npllm.load(tmp_path / "m.gguf").weights.layers[0].down_proj.dtype == "int8/32"


def test_rows_that_no_group_fits_stay_float32(tmp_path):
    write_folder(tmp_path / "m", hidden_size=40, intermediate_size=48, head_dim=8, tokenizer=False)
    weights = npllm.load(tmp_path / "m", dtype="int8").weights
    assert weights.layers[0].qkv_proj.dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_a_number_that_is_not_finite_is_found(tmp_path, dtype):
    tensors = write_folder(tmp_path / "m", dtype="float32", hidden_size=64, intermediate_size=96, tokenizer=False)
    name = "model.layers.0.mlp.down_proj.weight"
    path = tmp_path / "m" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    at = raw.index(tensors[name].tobytes())
    raw[at : at + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=f"{name}: expected finite numbers, got a NaN or an infinity"):
        npllm.load(tmp_path / "m", dtype=dtype)


def test_a_number_too_large_for_float16_is_found(tmp_path):
    tensors = write_folder(tmp_path / "m", dtype="float32", tokenizer=False)
    path = tmp_path / "m" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    at = raw.index(tensors["model.layers.0.mlp.down_proj.weight"].tobytes())
    raw[at : at + 4] = np.float32(1e6).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="got one too large for float16; take another dtype"):
        npllm.load(tmp_path / "m", dtype="float16")
    assert npllm.load(tmp_path / "m", dtype="bfloat16").weights.layers[0].down_proj.rows(np.array([0])).max() > 9e5


def test_an_unknown_dtype_lists_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="expected auto, float32, float16, bfloat16, int8, int4, got 'int2'"):
        npllm.load(tmp_path / "m", dtype="int2")


@pytest.fixture(scope="module")
def short_rows(tmp_path_factory):
    """A tied model and GPT-2, large enough for matrices to be turned."""
    folder = tmp_path_factory.mktemp("short")
    write_folder(folder / "tied", "llama", "bfloat16", tied=True, vocab_size=4096, hidden_size=64)
    return folder


def test_short_rows_are_kept_by_columns_and_give_the_same(short_rows):
    weight, x = matrix(4096, 64), matrix(3, 64, seed=1)
    turned, table = by_columns(weight, embeds=False), by_columns(weight, embeds=True)
    assert turned.flags.f_contiguous
    np.testing.assert_array_equal(turned, weight)
    ids = np.array([7, 4095, 7, 0])
    np.testing.assert_array_equal(embed(ids, table), weight[ids])
    for one in (turned, table):
        assert_close("by columns", linear(x, one), x @ weight.T)
    lm = npllm.load(short_rows / "tied")
    assert lm.weights.lm_head is lm.weights.embed_tokens
    assert isinstance(lm.weights.embed_tokens, Columns)
    assert by_columns(matrix(64, 4096), embeds=False).flags.c_contiguous, "long rows stay as they are"


@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), max_size=6))
def test_rooms_are_apart(shapes):
    made = rooms({str(i): shape for i, shape in enumerate(shapes)})
    for i, shape in enumerate(shapes):
        assert made[str(i)].shape == shape
        assert made[str(i)].ctypes.data % 64 == 0
        made[str(i)][...] = i
    assert all((made[str(i)] == i).all() for i in range(len(shapes)))


def test_small_matrices_share_a_piece_of_memory(short_rows, monkeypatch):
    """Turned or not, with the same numbers as each by itself."""
    first = npllm.load(short_rows / "tied").weights.layers
    pieces = {id(weight.base.base if weight.base.base is not None else weight.base) for weight in matrices(first)}
    assert len(pieces) == 1
    monkeypatch.setattr("npllm.checkpoint.weights.ALONE_FROM", 0)
    for ours, apart in zip(matrices(first), matrices(npllm.load(short_rows / "tied").weights.layers), strict=True):
        np.testing.assert_array_equal(ours, apart)


def matrices(layers):
    return [weight for layer in layers for weight in layer if weight is not None and weight.ndim == 2]


def test_what_is_only_looked_up_stays_by_rows(tmp_path):
    write_gpt2_folder(tmp_path / "gpt2", n_positions=4096, n_embd=64)
    assert npllm.load(tmp_path / "gpt2").weights.embed_positions.flags.c_contiguous
    write_folder(tmp_path / "apart", "llama", "bfloat16", tied=False, vocab_size=4096, hidden_size=64)
    weights = npllm.load(tmp_path / "apart").weights
    assert weights.embed_tokens.flags.c_contiguous
    assert weights.lm_head.flags.f_contiguous


def test_a_small_model_becomes_float32(short_rows, monkeypatch):
    assert npllm.load(short_rows / "tied").weights.layers[0].qkv_proj.dtype == np.float32
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    assert npllm.load(short_rows / "tied").weights.layers[0].qkv_proj.dtype == ml_dtypes.bfloat16
