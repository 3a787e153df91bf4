"""16-bit matrices multiply like their float32 values, however the rows are split."""

import numpy as np
import pytest
from checkpoints import dense
from stored_weights import HALVES, WORKERS, matrix, pack, shrink_tiles
from tolerance import assert_close

from npllm.arrays import Packed
from npllm.embedding import embed
from npllm.linear import linear
from npllm.storage.packed import Half, HalfLayout, widen_half


@pytest.fixture
def small_tiles(monkeypatch):
    shrink_tiles(monkeypatch)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("workers", WORKERS, ids=["one thread", "three threads"])
@pytest.mark.parametrize("vectors", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("height", [1, 15, 16, 17, 100])
def test_a_product_is_that_of_the_widened_weight(small_tiles, kind, workers, vectors, height):
    weight, x = pack(matrix(height, 96), kind, workers), matrix(vectors, 96, seed=1)
    assert_close(kind, weight.matmul(x), x @ dense(weight).T)


@pytest.mark.parametrize("kind", HALVES)
def test_linear_and_embed_take_them(kind):
    weight = pack(matrix(50, 64), kind, WORKERS[0])
    assert isinstance(weight, Packed)
    assert (weight.shape, dense(weight).dtype) == ((50, 64), np.float32)
    x = matrix(6, 64, seed=1).reshape(2, 3, 64)
    assert_close(kind, linear(x, weight), x @ dense(weight).T)
    np.testing.assert_array_equal(embed(np.array([[49, 0], [7, 7]]), weight), dense(weight)[[[49, 0], [7, 7]]])


@pytest.mark.parametrize("kind", HALVES)
def test_every_16_bit_number_is_widened_exactly(kind):
    every = np.arange(2**16, dtype=np.uint16).view(HALVES[kind])
    every = every[np.isfinite(every.astype(np.float32))]
    out = widen_half(every, np.empty(len(every) + 3, dtype=np.float32))
    out *= {"float16": 2.0**112, "bfloat16": 1}[kind]
    np.testing.assert_array_equal(out.view("u4"), every.astype(np.float32).view("u4"))


def test_products_with_float16_keep_large_and_small_numbers():
    """Tiles and vectors are scaled for the product, with no loss of float32 precision."""
    numbers = np.array([2.0**-24, 2.0**-14, 0.3, 1.0, 65504.0], dtype=np.float16)
    weight = Half(np.diag(numbers), WORKERS[0])
    for x in (1e-20, 1e-6, 3.0, 1e4, 1e14):
        each = np.float32(x) * numbers.astype(np.float32)
        np.testing.assert_array_equal(weight.matmul(np.full((1, 5), x, dtype=np.float32))[0], each)


def test_a_layout_knows_its_memory():
    assert HalfLayout(np.float16).nbytes((30, 64)) == Half(np.zeros((30, 64), np.float16), WORKERS[0]).nbytes
