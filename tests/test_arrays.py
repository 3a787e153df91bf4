"""Which library an array belongs to, and what counts as a packed weight."""

import array_api_compat
import numpy as np
from stored_weights import WORKERS, matrix, pack

from npllm.arrays import Packed, array_namespace, is_packed
from npllm.storage.columns import Columns


def test_the_namespace_of_an_array_is_that_of_array_api_compat(lib):
    x = lib.array(np.zeros(3, dtype=np.float32))
    assert array_namespace(x) is array_api_compat.array_namespace(x)
    assert array_namespace(x) is array_namespace(lib.array(np.ones((2, 2), dtype=np.float32)))


def test_every_storage_is_packed_and_no_array_is(lib):
    storages = [pack(matrix(8, 32), kind, WORKERS[0]) for kind in ("float16", "bfloat16", "int8", "int4")]
    for weight in (*storages, Columns(matrix(8, 32))):
        assert is_packed(weight)
        assert isinstance(weight, Packed)
    assert not is_packed(lib.array(matrix(2, 2)))
