import numpy as np
import pytest

from npllm.devices.device import to_host
from npllm.embedding import embed

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("ids", [[2], [0, 3, 3], [[1, 2], [3, 0]], [[[1]]]])
def test_each_id_becomes_its_row(lib, ids):
    vectors = to_host(embed(lib.array(ids), lib.array(TABLE)))
    np.testing.assert_array_equal(vectors, TABLE[np.array(ids)])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_vectors_are_float32(dtype):
    vectors = embed(np.array([1]), TABLE.astype(dtype))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, TABLE[[1]])


def test_the_table_is_not_changed_through_the_vectors():
    table = TABLE.copy()
    vectors = embed(np.array([0, 1, 2, 3]), table)
    vectors[:] = -1
    np.testing.assert_array_equal(table, TABLE)
