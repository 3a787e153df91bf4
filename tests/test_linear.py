import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.linear import linear


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(
    batch=st.sampled_from([(), (2,), (2, 1)]), width=st.integers(1, 5), out=st.integers(1, 5), has_bias=st.booleans()
)
def test_it_is_the_loop(lib, batch, width, out, has_bias):
    x, weight = random(*batch, 3, width), random(out, width, seed=1)
    bias = random(out, seed=2) if has_bias else None
    y = linear(lib.array(x), lib.array(weight), lib.array(bias) if has_bias else None)
    expected = np.apply_along_axis(loops.linear, -1, x, weight, bias)
    assert_close("linear", to_host(y), expected)


@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_product_of_a_sum_is_the_sum_of_the_products(lib, a, b):
    x, y, weight = random(3, 4), random(3, 4, seed=1), lib.array(random(5, 4, seed=2))
    products = [to_host(linear(lib.array(vectors), weight)) for vectors in (x, y, a * x + b * y)]
    assert_close("sum", products[2], a * products[0] + b * products[1])


def test_one_vector_alone_is_a_vector_again(lib):
    y = linear(lib.array([1.0, 1.0]), lib.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_array_equal(to_host(y), [3.0, 7.0, 11.0])


@pytest.mark.parametrize("name", ["numpy", "array_api_compat.torch"])
def test_float16_weights_give_a_result_in_the_dtype_of_x(name):
    xp = pytest.importorskip(name, reason=f"{name} is not installed")
    x = xp.asarray([[1.0, 2.0]], dtype=xp.float32)
    y = linear(x, xp.asarray([[0.5, 0.25]], dtype=xp.float16))
    assert y.dtype == xp.float32
    assert float(y[0, 0]) == 1.0
