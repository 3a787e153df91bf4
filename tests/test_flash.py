import functools
import math
import tracemalloc

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_ids, random_weights, tiny_config
from tolerance import assert_close

import npllm.attention
from npllm import flash
from npllm.attention import attention
from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.flash import flash_attention, spans, visible_tiles
from npllm.inspect.cost import slow_memory_bytes
from npllm.masks import block_local, causal, fixed, sliding_window, strided
from npllm.model import forward

HEADS = st.sampled_from([(1, 1), (3, 3), (3, 1), (4, 2), (6, 2)])  # N, K: multi-head, multi-query, grouped-query
TILES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = {
    "none": lambda queries, keys: None,
    "causal": causal,
    "window": lambda queries, keys: sliding_window(queries, keys, 2),
    "strided": lambda queries, keys: strided(queries, keys, 3),
    "fixed": lambda queries, keys: fixed(queries, keys, 3),
    "block_local": lambda queries, keys: block_local(queries, keys, 2, 1, 2),
    "random": lambda queries, keys: np.random.default_rng(0).random((len(queries), len(keys))) < 0.4,
    "nothing": lambda queries, keys: np.zeros((len(queries), len(keys)), dtype=bool),
}
SPARSE = [MASKS[name] for name in ("window", "strided", "fixed", "block_local", "random")]


def tokens(heads, kv_heads, new, past=0, width=4, batch=()):
    """Random queries for `new` tokens; keys and values for these and `past` earlier ones."""
    random = np.random.default_rng(0)
    shapes = (heads, new), (kv_heads, past + new), (kv_heads, past + new)
    return [random.standard_normal((*batch, *shape, width)).astype(np.float32) for shape in shapes]


def mask_for(name, new, past=0):
    return MASKS[name](np.arange(past, past + new), np.arange(past + new))


@given(
    heads=HEADS,
    new=st.integers(1, 7),
    past=st.integers(0, 5),
    mask=st.sampled_from(list(MASKS)),
    tile=TILES,
    batch=st.sampled_from([(), (2,)]),
)
def test_it_is_naive_attention_for_every_tile_size_and_mask(lib, heads, new, past, mask, tile, batch):
    q, k, v = (lib.array(array) for array in tokens(*heads, new, past, batch=batch))
    visible = mask_for(mask, new, past)
    visible = visible if visible is None else lib.array(visible)
    got = flash_attention(q, k, v, visible, tile=tile)
    assert got.dtype == lib.xp.float32
    assert_close("mixed", to_host(got), to_host(attention(q, k, v, visible)))


@given(heads=HEADS, new=st.integers(1, 4), past=st.integers(0, 3), mask=st.sampled_from(list(MASKS)[1:]), tile=TILES)
def test_it_is_the_loop(heads, new, past, mask, tile):
    q, k, v = tokens(*heads, new, past)
    visible = mask_for(mask, new, past)
    assert_close("mixed", flash_attention(q, k, v, visible, tile=tile), loops.attention(q, k, v, visible=visible))


def test_it_is_naive_attention_over_several_tiles_of_the_usual_size():
    q, k, v = tokens(2, 1, 300, past=400, width=8)
    visible = causal(np.arange(400, 700), np.arange(700))
    assert len(visible_tiles(300, 700, visible)[0][1]) > 1
    assert_close("mixed", flash_attention(q, k, v, visible), attention(q, k, v, visible))


@given(tile=TILES)
def test_each_sequence_of_a_batch_has_its_own_mask(lib, tile):
    q, k, v = tokens(4, 2, 3, past=2, batch=(2,))
    visible = np.array([np.tri(3, 5, -1), np.tri(3, 5, 2)]) > 0
    both = to_host(flash_attention(*lib.tree((q, k, v, visible)), tile=tile))
    for one in range(2):
        assert_close("one", both[one], attention(q[one], k[one], v[one], visible[one]))


@given(tile=TILES)
def test_a_query_that_sees_nothing_gets_zeros(lib, tile):
    q, k, v = (lib.array(array) for array in tokens(2, 1, 3))
    visible = lib.array([[False, False, False], [True, False, False], [False, False, False]])
    mixed = to_host(flash_attention(q, k, v, visible, tile=tile))
    np.testing.assert_array_equal(mixed[:, [0, 2]], 0)
    assert np.all(mixed[:, 1] != 0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]], ids=["rising", "falling", "mixed"])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_the_largest_score_may_come_in_any_tile_and_no_exp_overflows(lib, order, scale):
    k, v = np.zeros((1, 4, 4)), np.eye(4)[order].reshape(1, 4, 4)
    k[0, :, 0] = scale * np.array([-1.0, 0.25, 0.5, 1.0])[order]
    q, k, v = lib.array(np.ones((1, 1, 4))), lib.array(k), lib.array(v)
    got = to_host(flash_attention(q, k, v, tile=(1, 1)))
    assert_close("mixed", got, to_host(attention(q, k, v)))
    assert np.argmax(got) == 3


@given(length=st.integers(1, 20), size=st.integers(1, 25))
def test_spans_cut_the_length_into_neighbours(length, size):
    places = list(range(length))
    parts = [places[span] for span in spans(length, size)]
    assert [place for part in parts for place in part] == places
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 1 <= len(parts[-1]) <= size


@given(new=st.integers(1, 9), length=st.integers(1, 9), tile=TILES, seed=st.integers(0, 9))
def test_the_tiles_are_those_in_which_anything_is_visible(lib, new, length, tile, seed):
    visible = np.random.default_rng(seed).random((2, new, length)) < 0.1
    expected = [
        (row, [column for column in spans(length, tile[1]) if np.any(visible[:, row, column])])
        for row in spans(new, tile[0])
    ]
    assert visible_tiles(new, length, lib.array(visible), tile) == expected


@pytest.mark.parametrize("tiles", [30, 31, 32, 62, 63, 100])
def test_there_may_be_any_number_of_tiles(lib, tiles):
    for visible in (np.arange(tiles) % 3 == 0, np.ones(tiles, dtype=bool)):
        ((_, columns),) = visible_tiles(1, tiles, lib.array(visible[None]), tile=(1, 1))
        assert [column.start for column in columns] == list(np.flatnonzero(visible))


def test_without_a_mask_all_tiles_are_computed():
    assert visible_tiles(3, 5, None, tile=(2, 2)) == visible_tiles(3, 5, np.ones((3, 5), dtype=bool), tile=(2, 2))


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_a_causal_mask_leaves_out_nearly_half_of_the_tiles(tiles):
    visible = causal(np.arange(4 * tiles), np.arange(4 * tiles))
    computed = visible_tiles(4 * tiles, 4 * tiles, visible, tile=(4, 4))
    assert sum(len(columns) for _, columns in computed) == tiles * (tiles + 1) / 2


def test_phi_3_small_computes_30_of_128_tiles_for_its_last_block():
    visible = block_local(np.arange(8128, 8192), np.arange(8192))
    ((_, columns),) = visible_tiles(64, 8192, visible, tile=(64, 64))
    assert len(columns) == 16 + 14


@given(mask=st.sampled_from(SPARSE), new=st.integers(1, 12), past=st.integers(0, 12), tile=TILES)
def test_sparse_attention_computes_only_the_visible_tiles_and_equals_the_masked_one(lib, mask, new, past, tile):
    q, k, v = tokens(2, 1, new, past)
    visible = mask(np.arange(past, past + new), np.arange(past + new))
    expected = attention(q, k, v, visible)
    for top in range(0, new, tile[0]):
        row = slice(top, top + tile[0])
        keys, values = k.copy(), v.copy()
        for left in range(0, past + new, tile[1]):
            column = slice(left, left + tile[1])
            if not np.any(visible[row, column]):  # poison the tiles that need not be computed
                keys[:, column], values[:, column] = math.nan, math.nan
        got = flash_attention(*lib.tree((q[:, row], keys, values, visible[row])), tile=tile)
        assert_close("mixed", to_host(got), expected[:, row])


def test_each_visible_tile_is_computed_once(monkeypatch):
    q, k, v = tokens(4, 2, 10, past=3)
    visible = strided(np.arange(3, 13), np.arange(13), 4)
    shapes = []

    def counting(queries, keys):
        assert np.shares_memory(keys, k), "a copy of the keys"
        shapes.append((queries.shape[-2], keys.shape[-2]))
        return npllm.attention.relevance_scores(queries, keys)

    monkeypatch.setattr(flash, "relevance_scores", counting)
    flash_attention(q, k, v, visible, tile=(3, 2))
    tiles = visible_tiles(10, 13, visible, tile=(3, 2))
    assert shapes == [
        (row.stop - row.start, column.stop - column.start) for row, columns in tiles for column in columns
    ]
    assert len(shapes) < math.ceil(10 / 3) * math.ceil(13 / 2)


def test_only_the_result_can_be_tapped_and_changed():
    q, k, v = tokens(2, 1, 5)
    seen = {}

    def tap(name, value):
        seen[name] = value
        return 2 * value

    got = flash_attention(q, k, v, tile=(2, 2), tap=tap)
    assert list(seen) == ["mixed"]
    np.testing.assert_array_equal(got, 2 * flash_attention(q, k, v, tile=(2, 2)))


@given(keys=config_keys(), chunks=st.lists(st.integers(1, 4), min_size=1, max_size=3), tile=TILES)
def test_a_model_with_it_is_the_same_model(writable_lib, keys, chunks, tile):
    lib, config = writable_lib, tiny_config(**keys)
    weights, ids = lib.tree(random_weights(config)), random_ids(config, sum(chunks))
    whole = to_host(forward(lib.array(ids), weights, config)[0])
    tiled = functools.partial(flash_attention, tile=tile)
    assert_close("logits", to_host(forward(lib.array(ids), weights, config, attention=tiled)[0]), whole)
    cache = empty_cache(config, sum(chunks), like=weights.norm)
    ends = np.cumsum(chunks)
    for start, end in zip(ends - chunks, ends, strict=True):
        chunk, cache = forward(lib.array(ids[start:end]), weights, config, cache, attention=tiled)
        assert_close("logits", to_host(chunk), whole[start:end])


def test_it_takes_a_tenth_of_the_memory_or_less():
    q, k, v = tokens(2, 1, 512, past=1536)
    visible = causal(np.arange(1536, 2048), np.arange(2048))

    def peak(compute):
        tracemalloc.start()
        compute(q, k, v, visible)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(attention) > 3 * 2 * 512 * 2048 * 4
    assert peak(functools.partial(flash_attention, tile=(64, 64))) < peak(attention) / 10


class SlowMemory(np.ndarray):
    """An array that counts the bytes read from it, piece by piece. Each piece is then in fast memory."""

    read = 0

    def __getitem__(self, index):
        piece = np.asarray(self)[index]
        SlowMemory.read += piece.nbytes
        return piece


@given(heads=HEADS, new=st.integers(1, 9), past=st.integers(0, 9), mask=st.sampled_from(list(MASKS)), tile=TILES)
def test_the_bytes_are_those_that_the_tiles_read_and_write(heads, new, past, mask, tile):
    config = tiny_config(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    visible = mask_for(mask, new, past)
    SlowMemory.read = 0
    result = flash_attention(*(array.view(SlowMemory) for array in tokens(*heads, new, past)), visible, tile=tile)
    assert type(result) is np.ndarray
    assert slow_memory_bytes(config, new, past + new, tile, visible) == SlowMemory.read + result.nbytes


@given(heads=HEADS, new=st.integers(1, 9), past=st.integers(0, 9))
def test_the_bytes_of_naive_attention_are_what_its_three_steps_read_and_write(heads, new, past):
    config = tiny_config(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    moved = 0

    def step(function, *arrays):
        nonlocal moved
        result = function(*arrays)
        moved += sum(array.nbytes for array in (*arrays, result))
        return result

    q, k, v = tokens(*heads, new, past)
    scores = step(npllm.attention.relevance_scores, q, k)
    step(npllm.attention.combine, step(npllm.attention.attention_weights, scores), v)
    assert slow_memory_bytes(config, new, past + new, None) == moved


def test_larger_tiles_move_less_and_one_tile_moves_only_what_comes_and_goes():
    config = tiny_config()
    moved = [slow_memory_bytes(config, 64, 64, (size, size)) for size in (1, 4, 16, 64)]
    assert moved == sorted(moved, reverse=True)
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert moved[-1] == 4 * 64 * H * (2 * N + 2 * K)
    assert moved[-1] < slow_memory_bytes(config, 64, 64, None)


@pytest.mark.oracle
@pytest.mark.parametrize("mask", [name for name in MASKS if name != "nothing"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_torch_s(mask, kv_heads):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    q, k, v = tokens(4, kv_heads, 9, past=5, batch=(2,))
    visible = mask_for(mask, 9, past=5)
    got = flash_attention(q, k, v, visible, tile=(2, 3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.asarray(array) for array in (q, k, v)),
        attn_mask=visible if visible is None else torch.asarray(visible),
        enable_gqa=kv_heads < 4,
    ).numpy()
    rows = np.ones(9, dtype=bool) if visible is None else np.any(visible, axis=-1)
    assert_close("mixed", got, expected, where=rows[:, None])


@pytest.mark.oracle
def test_under_a_causal_mask_it_is_torch_s_causal_one():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    q, k, v = tokens(4, 2, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.asarray(array) for array in (q, k, v)), is_causal=True, enable_gqa=True
    )
    assert_close("mixed", flash_attention(q, k, v, mask_for("causal", 9), tile=(2, 3)), expected.numpy())
