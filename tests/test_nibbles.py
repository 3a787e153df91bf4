"""Two 4-bit codes per byte."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from npllm.devices.device import to_host
from npllm.storage.nibbles import pack, unpack


def test_the_first_half_is_in_the_lower_bits():
    np.testing.assert_array_equal(pack(np.array([[1, 2, 15, 0]], np.uint8)), [[0xF1, 0x02]])


@given(rows=st.integers(0, 3), half=st.integers(1, 20), seed=st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(rows, half, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 2 * half), dtype=np.uint8)
    packed = pack(codes)
    assert (packed.dtype, packed.shape) == (np.uint8, (rows, half))
    np.testing.assert_array_equal(unpack(packed), codes)


def test_every_library_unpacks_the_same(lib):
    packed = np.arange(256, dtype=np.uint8).reshape(4, 64)
    np.testing.assert_array_equal(to_host(unpack(lib.xp.asarray(packed, device=lib.device))), unpack(packed))
