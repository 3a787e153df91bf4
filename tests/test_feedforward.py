import math

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_gpt2_weights, random_weights, tiny_config, tiny_gpt2_config
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.feedforward import feedforward, gelu, plain_feedforward, relu, silu, swiglu


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(width=st.integers(1, 5), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_swiglu_is_the_loop(lib, width, scale):
    gate, up = scale * random(3, width), random(3, width, seed=1)
    expected = [loops.swiglu(*row) for row in zip(gate, up, strict=True)]
    assert_close("swiglu", to_host(swiglu(lib.array(gate), lib.array(up))), expected)


@pytest.mark.parametrize("biases", [False, True])
def test_the_network_is_the_loop_gate_first_then_up(lib, biases):
    config = tiny_config()
    weights, x = random_weights(config, biases=biases).layers[0], random(3, config.hidden_size)
    F = config.intermediate_size
    gate_up = np.array([loops.linear(row, weights.gate_up_proj, weights.gate_up_proj_bias) for row in x])
    expected = [
        loops.linear(loops.swiglu(row[:F], row[F:]), weights.down_proj, weights.down_proj_bias) for row in gate_up
    ]
    assert_close("feedforward", to_host(feedforward(lib.array(x), lib.tree(weights))), expected)


def test_silu_of_large_numbers_does_not_warn(lib):
    assert_close("silu", to_host(silu(lib.array([-1e4, 0.0, 1e4]))), [0.0, 0.0, 1e4])


def test_silu_of_one_is_the_sigmoid_of_one(lib):
    assert_close("silu", to_host(silu(lib.array([1.0]))), [1 / (1 + math.exp(-1))])


def test_silu_of_x_minus_silu_of_minus_x_is_x(lib):
    x = np.linspace(-80, 80, 1001, dtype=np.float32)
    assert_close("silu", to_host(silu(lib.array(x)) - silu(lib.array(-x))), x)


def test_a_gate_of_zero_lets_nothing_pass(lib):
    passed = swiglu(lib.array(np.zeros(4)), lib.array([1.0, -1.0, 1e30, 0.0]))
    np.testing.assert_array_equal(to_host(passed), np.zeros(4))


def test_twice_the_values_give_twice_the_result(lib):
    gate, up = random(5), random(5, seed=1)
    twice = to_host(swiglu(lib.array(gate), lib.array(2 * up)))
    np.testing.assert_array_equal(twice, 2 * to_host(swiglu(lib.array(gate), lib.array(up))))


@given(order=st.permutations(range(5)))
def test_each_token_is_computed_by_itself(lib, order):
    weights, x = lib.tree(random_weights(tiny_config()).layers[0]), random(5, 8)
    permuted = feedforward(lib.array(x[order]), weights)
    assert_close("permuted", to_host(permuted), to_host(feedforward(lib.array(x), weights))[order])


# The ungated network


@given(numbers=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=5))
def test_relu_and_gelu_are_the_loops(lib, numbers):
    x = lib.array(np.array(numbers))
    assert_close("relu", to_host(relu(x)), [loops.relu(number) for number in numbers])
    expected = np.array([loops.gelu(number) for number in numbers])
    np.testing.assert_allclose(to_host(gelu(x)), expected, rtol=1e-4, atol=1e-6)  # 1 + tanh cancels far below 0


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("biases", [False, True])
def test_the_plain_network_is_the_loop(lib, activation, biases):
    config = tiny_gpt2_config()
    weights, x = random_gpt2_weights(config, biases=biases).layers[0], random(3, config.hidden_size)
    up = [[getattr(loops, activation)(a) for a in loops.linear(row, weights.c_fc, weights.c_fc_bias)] for row in x]
    expected = [loops.linear(row, weights.c_proj, weights.c_proj_bias) for row in up]
    got = plain_feedforward(lib.array(x), lib.tree(weights), {"relu": relu, "gelu": gelu}[activation])
    assert_close("plain_feedforward", to_host(got), expected)


def test_gelu_minus_its_mirror_is_x(lib):
    x = np.linspace(-30, 30, 1001, dtype=np.float32)
    assert_close("gelu", to_host(gelu(lib.array(x)) - gelu(lib.array(-x))), x)


def test_gelu_of_large_numbers_is_relu_and_does_not_warn(lib):
    np.testing.assert_array_equal(to_host(gelu(lib.array([-1e10, -20.0, 0.0, 20.0, 1e10]))), [0, 0, 0, 20, 1e10])


def test_gelu_is_near_that_of_the_normal_distribution_and_not_the_same():
    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    exact = np.array([a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in x.tolist()])
    assert 4e-4 < np.max(np.abs(gelu(x) - exact)) < 5e-4


def test_relu_of_a_positive_multiple_is_the_multiple(lib):
    x = lib.array(random(9))
    np.testing.assert_array_equal(to_host(relu(4 * x)), to_host(4 * relu(x)))
    np.testing.assert_array_equal(to_host(relu(x) - relu(-x)), to_host(x))


@given(order=st.permutations(range(5)))
def test_the_plain_network_computes_each_token_by_itself(lib, order):
    weights, x = lib.tree(random_gpt2_weights(tiny_gpt2_config()).layers[0]), random(5, 8)
    permuted, in_order = (to_host(plain_feedforward(lib.array(some), weights, gelu)) for some in (x[order], x))
    assert_close("permuted", permuted, in_order[order])


@pytest.mark.oracle
def test_gelu_is_that_of_torch_and_of_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    activations = pytest.importorskip("transformers.activations", reason="transformers is not installed")
    x = np.concatenate([np.linspace(-8, 8, 4001), [-1e4, 1e4]]).astype(np.float32)
    for theirs in (torch.nn.GELU(approximate="tanh"), activations.ACT2FN["gelu_new"]):
        np.testing.assert_allclose(gelu(x), theirs(torch.tensor(x)).numpy(), rtol=1e-5, atol=2e-6)
