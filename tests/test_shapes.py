"""The shape annotations in npllm/shapes.py are checked at run time."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from libraries import NAMES, library

from npllm.arrays import Packed
from npllm.attention import attention
from npllm.embedding import embed
from npllm.linear import linear
from npllm.norm import rms_norm


class PackedMatrix:
    """A custom weight storage, as a later module might define: twice the matrix, as int8."""

    dtype = np.dtype(np.int8)

    def __init__(self, matrix):
        self.shape = matrix.shape
        self.halves = (2 * matrix).astype(np.int8)
        self.nbytes = self.halves.nbytes

    def matmul(self, x2d):
        return x2d @ (self.halves.T / np.float32(2))

    def rows(self, ids):
        return self.halves[ids] / np.float32(2)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rms_norm(zeros(2, 3), zeros(4), 1e-5),
        lambda: linear(zeros(2, 3), zeros(4, 5)),
        lambda: linear(zeros(2, 3), zeros(4, 3), zeros(3)),
        lambda: embed(zeros(2), zeros(4, 3)),
        lambda: embed(zeros(2, dtype=np.int64), zeros(4, 3, dtype=np.int64)),
        lambda: attention(zeros(2, 3, 4), zeros(1, 5, 4), zeros(1, 6, 4)),
        lambda: attention(zeros(2, 3, 4), zeros(1, 5, 4), zeros(1, 5, 4), zeros(3, 5)),
        lambda: attention(zeros(2, 3, 4), zeros(1, 5, 4), zeros(1, 5, 4), zeros(5, 3, dtype=np.bool_)),
    ],
    ids=["norm width", "weight width", "bias width", "float ids", "int weight", "keys", "float mask", "mask shape"],
)
def test_a_wrong_shape_or_dtype_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_result_of_a_wrong_shape_is_refused():
    q, k, v = zeros(2, 3, 4), zeros(1, 5, 4), zeros(1, 5, 4)
    with pytest.raises(TypeCheckError):
        attention(q, k, v, tap=lambda name, value: value[..., :1] if name == "mixed" else value)


def test_a_packed_weight_is_used_as_a_plain_one():
    matrix = np.array([[1.0, -0.5], [2.0, 0.0], [3.5, 1.0]], dtype=np.float32)
    packed = PackedMatrix(matrix)
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]], dtype=np.float32)
    assert isinstance(packed, Packed)
    np.testing.assert_array_equal(linear(x, packed), linear(x, matrix))
    np.testing.assert_array_equal(embed(np.array([[2, 0]]), packed), embed(np.array([[2, 0]]), matrix))


def test_an_array_is_not_a_packed_weight(lib):
    assert not isinstance(lib.array(zeros(2, 2)), Packed)


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_run_on(name):
    lib = library(name)  # skips if it is not installed
    assert lib.array([0.5]).dtype == lib.xp.float32
    assert lib.array([1]).dtype == lib.xp.int64
