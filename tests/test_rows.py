"""Quantized weights in rows, as the GPU kernels read them: the same values as in blocks."""

import numpy as np
import pytest
from checkpoints import dense
from kernel_models import random_groups
from stored_weights import WORKERS, matrix, pack
from tolerance import assert_close

from npllm.arrays import Packed
from npllm.linear import linear
from npllm.storage import rows as module
from npllm.storage.rows import row_groups


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("height", [1, 17, 100])
def test_a_weight_laid_out_row_by_row_has_the_same_numbers(kind, group, height):
    groups = pack(matrix(height, 96), kind, WORKERS[0], group)
    rows, x = row_groups(groups), matrix(3, 96, seed=1)
    assert isinstance(rows, Packed)
    assert (rows.shape, rows.dtype, rows.group) == (groups.shape, groups.dtype, group)
    assert rows.nbytes <= groups.nbytes
    assert rows.scale.dtype == np.uint16
    np.testing.assert_array_equal(rows.rows(np.arange(height)), dense(groups))
    assert_close(kind, linear(x, rows), x @ dense(groups).T)
    np.testing.assert_array_equal(rows.rows(np.array([height - 1, 0])), dense(groups)[[-1, 0]])


def test_a_weight_is_widened_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "WIDENED", 300)
    rows, x = row_groups(pack(matrix(50, 64), "int4", WORKERS[0])), matrix(4, 64, seed=1)
    assert_close("int4", rows.matmul(x), x @ rows.rows(np.arange(50)).T)


@pytest.mark.parametrize(("bits", "offset", "group"), [(8, -16, 32), (8, -32, 16), (4, -8, 32), (4, 0, 16)])
@pytest.mark.parametrize("has_minimum", [True, False])
def test_offsets_minima_and_groups_of_16_as_gguf_files_have_them(bits, offset, group, has_minimum):
    groups = random_groups(bits, offset, group, has_minimum)
    np.testing.assert_array_equal(row_groups(groups).rows(np.arange(20)), dense(groups))
