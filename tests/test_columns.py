"""Column-major float32 matrices, and several matrices in one buffer: only the memory layout changes."""

import numpy as np
import pytest
from checkpoints import write_folder
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import matrix
from tolerance import assert_close

import npllm
from npllm.embedding import embed
from npllm.linear import linear
from npllm.storage.columns import Columns, by_columns, in_one_buffer


@pytest.fixture(scope="module")
def short_rows(tmp_path_factory):
    """A tied model, large enough for matrices to be reordered."""
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
    made = in_one_buffer({str(i): shape for i, shape in enumerate(shapes)})
    for i, shape in enumerate(shapes):
        assert made[str(i)].shape == shape
        assert made[str(i)].ctypes.data % 64 == 0
        made[str(i)][...] = i
    assert all((made[str(i)] == i).all() for i in range(len(shapes)))
