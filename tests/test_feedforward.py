import math

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_weights, tiny_config
from tolerance import assert_close

from npllm.backend.devices import to_host
from npllm.feedforward import feedforward, silu, swiglu


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


def test_silu_of_x_minus_silu_of_minus_x_is_x():
    x = np.linspace(-80, 80, 1001, dtype=np.float32)
    assert_close("silu", silu(x) - silu(-x), x)


def test_a_gate_of_zero_lets_nothing_pass():
    np.testing.assert_array_equal(swiglu(np.zeros(4), np.array([1.0, -1.0, 1e30, 0.0])), np.zeros(4))


def test_twice_the_values_give_twice_the_result():
    gate, up = random(5), random(5, seed=1)
    np.testing.assert_array_equal(swiglu(gate, 2 * up), 2 * swiglu(gate, up))


@given(order=st.permutations(range(5)))
def test_each_token_is_computed_by_itself(order):
    weights, x = random_weights(tiny_config()).layers[0], random(5, 8)
    assert_close("permuted", feedforward(x[order], weights), feedforward(x, weights)[order])
