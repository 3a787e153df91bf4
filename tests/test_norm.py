import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.norm import layer_norm, rms_norm


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(width=st.integers(1, 5), eps=st.sampled_from([0.0, 1e-5, 1.0]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_it_is_the_loop(lib, width, eps, scale):
    x, weight = scale * random(2, 3, width), random(width, seed=1)
    expected = [[loops.rms_norm(row, weight, eps) for row in rows] for rows in x]
    assert_close("rms_norm", to_host(rms_norm(lib.array(x), lib.array(weight), eps)), expected)


@given(factor=st.floats(1e-3, 1e3))
def test_without_eps_the_scale_of_the_input_does_not_matter(lib, factor):
    x, ones = random(3, 8), lib.array(np.ones(8))
    scaled = rms_norm(lib.array(np.float32(factor) * x), ones, 0.0)
    assert_close("scaled", to_host(scaled), to_host(rms_norm(lib.array(x), ones, 0.0)))


def test_the_mean_square_becomes_one_and_the_mean_stays(lib):
    x = random(3, 8) + np.float32(5)
    y = to_host(rms_norm(lib.array(x), lib.array(np.ones(8)), 0.0))
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


# LayerNorm


@given(width=st.integers(2, 5), eps=st.sampled_from([1e-5, 1.0]), scale=st.sampled_from([1.0, 1e3]))
def test_layer_norm_is_the_loop(lib, width, eps, scale):
    x, weight, bias = scale * random(2, 3, width), random(width, seed=1), random(width, seed=2)
    expected = [[loops.layer_norm(row, weight, bias, eps) for row in rows] for rows in x]
    got = layer_norm(lib.array(x), lib.array(weight), lib.array(bias), eps)
    assert got.dtype == lib.xp.float32
    assert_close("layer_norm", to_host(got), expected)


def plain_layer_norm(lib, x):
    width = x.shape[-1]
    return to_host(layer_norm(lib.array(x), lib.array(np.ones(width)), lib.array(np.zeros(width)), 0.0))


def test_layer_norm_makes_the_mean_zero_and_the_mean_square_one(lib):
    y = plain_layer_norm(lib, random(3, 8) + np.float32(5))
    assert_close("mean", 1 + np.mean(y, axis=-1), np.ones(3))
    assert_close("mean square", np.mean(y * y, axis=-1), np.ones(3))


@given(factor=st.floats(1e-2, 1e2), shift=st.floats(-10, 10))
def test_layer_norm_knows_neither_the_scale_nor_the_mean_of_its_input(lib, factor, shift):
    x = random(3, 8)
    moved = np.float32(factor) * (x + np.float32(shift))
    assert_close("moved", plain_layer_norm(lib, moved), plain_layer_norm(lib, x))


def test_layer_norm_of_what_has_no_mean_is_rms_norm(lib):
    x = random(3, 8)
    x = lib.array(x - np.mean(x, axis=-1, keepdims=True))
    weight, zeros, eps = lib.array(random(8, seed=1)), lib.array(np.zeros(8)), 0.1
    assert_close("layer_norm", to_host(layer_norm(x, weight, zeros, eps)), to_host(rms_norm(x, weight, eps)))


def test_layer_norm_of_equal_numbers_is_the_bias(lib):
    bias = random(4)
    got = layer_norm(lib.array(np.full((1, 4), 3.0)), lib.array(np.ones(4)), lib.array(bias), 1e-5)
    np.testing.assert_array_equal(to_host(got), bias[None])


def test_layer_norm_squares_in_float32():
    x, ones = np.array([[60000.0, -60000.0]], dtype=np.float16), np.ones(2, dtype=np.float16)
    got = layer_norm(x, ones, 0 * ones, 1e-5)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, [[1.0, -1.0]])


@pytest.mark.oracle
def test_layer_norm_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    for seed, (width, eps, scale) in enumerate([(1, 1e-5, 1.0), (7, 1e-5, 1e3), (64, 0.1, 1e-3), (768, 1e-12, 30.0)]):
        x, weight, bias = (scale * random(4, width, seed=seed), random(width, seed=1), random(width, seed=2))
        tensors = [torch.tensor(array) for array in (x, weight, bias)]
        theirs = torch.nn.functional.layer_norm(tensors[0], (width,), *tensors[1:], eps)
        assert_close(f"width {width}", layer_norm(x, weight, bias, eps), theirs.numpy())
