import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

from npllm.backend.devices import to_host
from npllm.norm import rms_norm


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(width=st.integers(1, 5), eps=st.sampled_from([0.0, 1e-5, 1.0]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_it_is_the_loop(lib, width, eps, scale):
    x, weight = scale * random(2, 3, width), random(width, seed=1)
    expected = [[loops.rms_norm(row, weight, eps) for row in rows] for rows in x]
    assert_close("rms_norm", to_host(rms_norm(lib.array(x), lib.array(weight), eps)), expected)


@given(factor=st.floats(1e-3, 1e3))
def test_without_eps_the_scale_of_the_input_does_not_matter(factor):
    x, ones = random(3, 8), np.ones(8, dtype=np.float32)
    assert_close("scaled", rms_norm(np.float32(factor) * x, ones, 0.0), rms_norm(x, ones, 0.0))


def test_the_mean_square_becomes_one_and_the_mean_stays():
    x = random(3, 8) + np.float32(5)
    y = rms_norm(x, np.ones(8, dtype=np.float32), 0.0)
    assert_close("mean square", np.mean(y * y, axis=-1), np.ones(3))
    assert np.all(np.mean(y, axis=-1) > 0.9)  # LayerNorm would make it 0


def test_a_vector_of_zeros_stays_zero(lib):
    assert not np.any(to_host(rms_norm(lib.array(np.zeros((1, 4))), lib.array(np.ones(4)), 1e-5)))


@pytest.mark.parametrize("name", ["numpy", "array_api_compat.torch"])
def test_squares_of_float16_do_not_overflow(name):
    xp = pytest.importorskip(name, reason=f"{name} is not installed")
    x = xp.asarray([[60000.0, -60000.0]], dtype=xp.float16)
    y = rms_norm(x, xp.asarray([1.0, 2.0], dtype=xp.float16), 1e-5)
    assert y.dtype == xp.float16
    np.testing.assert_array_equal(to_host(y), np.array([[1.0, -2.0]], dtype=np.float16))
