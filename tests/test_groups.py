"""8-bit and 4-bit matrices multiply like their float32 values, however the rows are split."""

import ml_dtypes
import numpy as np
import pytest
from checkpoints import dense
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import WORKERS, matrix, pack, shrink_tiles
from tolerance import assert_close

from npllm.arrays import Packed
from npllm.embedding import embed
from npllm.linear import linear
from npllm.storage.blocks import Split
from npllm.storage.groups import GroupLayout, fill_groups, quantize_groups, regroup
from npllm.storage.nibbles import pack as pack_nibbles
from npllm.storage.own_format import OWN_FORMATS

KINDS = ["int8", "int4"]


@pytest.fixture
def small_tiles(monkeypatch):
    shrink_tiles(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", WORKERS, ids=["one thread", "three threads"])
@pytest.mark.parametrize("vectors", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("height", [1, 15, 16, 17, 100])
def test_a_product_is_that_of_the_widened_weight(small_tiles, kind, workers, vectors, height):
    weight, x = pack(matrix(height, 96), kind, workers), matrix(vectors, 96, seed=1)
    assert_close(kind, weight.matmul(x), x @ dense(weight).T)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_and_embed_take_them(kind):
    weight = pack(matrix(50, 64), kind, WORKERS[0])
    assert isinstance(weight, Packed)
    assert (weight.shape, dense(weight).dtype) == ((50, 64), np.float32)
    x = matrix(6, 64, seed=1).reshape(2, 3, 64)
    assert_close(kind, linear(x, weight), x @ dense(weight).T)
    np.testing.assert_array_equal(embed(np.array([[49, 0], [7, 7]]), weight), dense(weight)[[[49, 0], [7, 7]]])


@pytest.mark.parametrize("vectors", [1, 9])
def test_codes_may_have_an_offset(vectors):
    """As in Q4_0, where 8 is the code of zero."""
    codes = np.random.default_rng(0).integers(0, 16, (17, 3, 32), dtype=np.uint8)
    weight, x = GroupLayout(4, offset=-8).empty((17, 96), WORKERS[0]), matrix(vectors, 96, seed=1)
    fill_groups(weight, 0, codes, np.ones((17, 3), np.float32), None)
    np.testing.assert_array_equal(dense(weight), codes.reshape(17, 96) - 8.0)
    assert_close("int4", weight.matmul(x), x @ dense(weight).T)


@pytest.mark.parametrize("vectors", [1, 9])
def test_a_group_may_be_as_long_as_the_row(small_tiles, vectors):
    """There is then one scale per row."""
    weight, x = pack(matrix(17, 96), "int8", WORKERS[1], group=96), matrix(vectors, 96, seed=1)
    assert weight.scale.shape[1] == 1
    assert_close("int8", weight.matmul(x), x @ dense(weight).T)


@given(seed=st.integers(0, 100), group=st.sampled_from([16, 32]), bits=st.sampled_from([8, 4]))
def test_quantizing_is_off_by_half_a_step_at_most(seed, group, bits):
    weight = matrix(5, 96, seed)
    weight[0] = 0  # a group of equal values has a step of 0
    weight[1] = 3.5
    codes, scale, minimum = (
        None if part is None else part.astype(np.float32) for part in quantize_groups(weight, bits, group)
    )
    back = codes * scale[..., None] + (0 if minimum is None else minimum[..., None])
    rounding = 2.0**-8 * np.abs(weight).max()  # scale and minimum are rounded to bfloat16
    assert np.all(np.abs(back.reshape(weight.shape) - weight) <= 0.501 * np.repeat(scale, group, axis=1) + rounding)


@pytest.mark.parametrize("height", [1, 17, 300])
@pytest.mark.parametrize(
    "layout", [GroupLayout(8), GroupLayout(4, 16, -8), GroupLayout(4, 32, 0, True, ml_dtypes.bfloat16)]
)
def test_a_layout_knows_its_memory(layout, height):
    made = layout.empty((height, 96), WORKERS[0])
    assert made.nbytes == layout.nbytes((height, 96))
    assert (made.shape, made.bits, made.group) == ((height, 96), layout.bits, layout.group)


@given(cut=st.integers(1, 19), packed=st.booleans())
def test_rows_may_be_filled_in_pieces_and_packed_before(cut, packed):
    split = quantize_groups(matrix(20, 64), 4)
    whole, pieces = (GroupLayout(4, has_minimum=True).empty((20, 64), WORKERS[0]) for _ in range(2))
    fill_groups(whole, 0, *split)
    codes = pack_nibbles(split.codes) if packed else split.codes
    for rows in (slice(0, cut), slice(cut, 20)):
        fill_groups(pieces, rows.start, codes[rows], split.scale[rows], split.minimum[rows])
    np.testing.assert_array_equal(dense(pieces), dense(whole))


def test_regrouping_halves_the_groups_and_adds_minima():
    """A group of 32 becomes two of 16 with the same scale, as when queries are Q8_0 and values Q6_K."""
    codes = np.arange(64, dtype=np.int8).reshape(2, 1, 32)
    split = Split(codes, np.array([[1], [2]], np.float32), None)
    rows = regroup(split, OWN_FORMATS["int8/32"], 1, GroupLayout(8, 16, has_minimum=True))
    np.testing.assert_array_equal(rows.codes.reshape(-1), codes.reshape(-1))
    np.testing.assert_array_equal(rows.scale, [[1, 1, 2, 2]])
    np.testing.assert_array_equal(rows.minimum, np.zeros((1, 4)))
