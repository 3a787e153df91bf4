"""Weights sent to a GPU a few rows at a time equal the file. NumPy stands in for CuPy, see test_transfer.py."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_transfer import numpy_device
from tqdm import tqdm

from npllm.checkpoint.folder import read_folder
from npllm.checkpoint.plan import Part
from npllm.checkpoint.to_device import read_to_device
from npllm.devices.transfer import Staging
from npllm.errors import ModelFileError


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """sent(shape, parts, dtype, name=array, ...): the weight built from tensors in a file, read in small pieces."""
    monkeypatch.setattr("npllm.storage.stored.PIECE", 16)

    def send(shape, parts, dtype="float32", **tensors):
        save_file(tensors, tmp_path / "model.safetensors")
        staging = Staging(numpy_device()[0])
        return read_to_device(shape, parts, read_folder(tmp_path), staging, dtype, tqdm(disable=True))

    return send


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_parts_follow_each_other(sent):
    q, k = random(6, 4), random(4, 4) + 1
    parts = [Part("q", q.shape), Part("k", k.shape, first=6)]
    np.testing.assert_array_equal(sent((10, 4), parts, q=q, k=k), np.concatenate([q, k]))


def test_a_transposed_matrix_is_turned(sent):
    weight = random(8, 6)
    np.testing.assert_array_equal(sent((6, 8), [Part("w", weight.shape, transposed=True)], w=weight), weight.T)


def test_alternating_rows_of_a_transposed_matrix_are_reordered(sent):
    weight = random(4, 10)  # [in, out]: alternately of gate and up
    part = Part("w", weight.shape, interleaved_heads=1, head_dim=10, transposed=True)
    expected = np.concatenate([weight.T[::2], weight.T[1::2]])
    np.testing.assert_array_equal(sent((10, 4), [part], w=weight), expected)


def test_rows_of_interleaved_heads_are_reordered(sent):
    heads, head_dim = 3, 8
    weight = random(heads * head_dim + 2, 4)
    turned, rest = weight[: heads * head_dim], weight[heads * head_dim :]
    pairs = turned.reshape(heads, head_dim // 2, 2, 4)  # dimension i of a head, and its partner
    expected = np.concatenate([pairs.swapaxes(1, 2).reshape(-1, 4), rest])
    part = Part("w", weight.shape, interleaved_heads=heads, head_dim=head_dim)
    np.testing.assert_array_equal(sent(weight.shape, [part], w=weight), expected)


def test_only_matrices_are_rounded(sent):
    matrix, vector = random(2, 4), random(8)
    rounded = sent((2, 4), [Part("w", (2, 4))], "float16", w=matrix)
    assert rounded.dtype == np.float16
    np.testing.assert_array_equal(rounded, matrix.astype(np.float16))
    exact = sent((8,), [Part("w", (8,))], "float16", w=vector)
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact, vector)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -65520.0])
def test_what_float16_cannot_hold_is_refused(sent, value):
    weight = random(4, 4)
    weight[3, 1] = value
    with pytest.raises(ModelFileError, match="w: expected finite"):
        sent((4, 4), [Part("w", (4, 4))], "float16", w=weight)
