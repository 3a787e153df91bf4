import math
from dataclasses import replace

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_config
from tolerance import assert_close

from npllm.config import RopeScaling
from npllm.devices.device import to_host
from npllm.rope import apply_rope, rope_frequencies, rope_tables

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turned(lib, x, positions, config):
    """x [..., N, T, H] with RoPE applied by the given library."""
    return to_host(apply_rope(lib.array(x), *rope_tables(lib.array(positions), config, total_length=1000)))


@given(
    positions=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    head_dim=st.sampled_from([2, 4, 8]),
    theta=st.sampled_from([2.0, 100.0, 10000.0]),
    partial=st.sampled_from([1.0, 0.5]),
)
def test_it_is_the_loop(lib, positions, head_dim, theta, partial):
    if head_dim == 2:
        partial = 1.0
    config = tiny_config(head_dim=head_dim, rope_theta=theta, partial_rotary_factor=partial)
    x = random(2, len(positions), head_dim)
    y = apply_rope(lib.array(x), *rope_tables(lib.array(positions), config, total_length=101))
    expected = [
        [loops.rope(head[t], position, theta, config.rotary_dim) for t, position in enumerate(positions)] for head in x
    ]
    assert_close("rope", to_host(y), expected)


def test_a_token_at_position_one_turns_its_first_pair_by_one_radian_counterclockwise(lib):
    config = tiny_config(head_dim=4)
    x = lib.array([[[1.0, 0.0, 0.0, 0.0]]])  # the first pair is dimensions 0 and 2
    y = to_host(apply_rope(x, *rope_tables(lib.array([1]), config, total_length=2)))
    assert_close("turned", y, [[[math.cos(1), 0.0, math.sin(1), 0.0]]])


def test_position_zero_is_not_turned(lib):
    x = random(2, 1, 8)
    np.testing.assert_array_equal(turned(lib, x, [0], tiny_config(head_dim=8)), x)


@given(position=st.integers(0, 500))
def test_a_rotation_keeps_lengths(lib, position):
    x = random(3, 1, 8)
    y = turned(lib, x, [position], tiny_config(head_dim=8))
    assert_close("lengths", np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))


@given(m=st.integers(0, 200), n=st.integers(0, 200))
def test_two_rotations_are_one_by_the_sum_of_their_positions(lib, m, n):
    config, x = tiny_config(head_dim=8), random(1, 1, 8)
    assert_close("twice", turned(lib, turned(lib, x, [m], config), [n], config), turned(lib, x, [m + n], config))


@given(position=st.integers(1, 500))
def test_turning_back_gives_the_vector_again(lib, position):
    config, x = tiny_config(head_dim=8), random(3, 1, 8)
    assert_close("back", turned(lib, turned(lib, x, [position], config), [-position], config), x)


@given(query=st.integers(0, 50), key=st.integers(0, 50), shift=st.integers(1, 100))
def test_the_score_of_a_query_and_a_key_depends_on_their_distance_only(lib, query, key, shift):
    config, q, k = tiny_config(head_dim=8), random(8, 1, 8), random(8, 1, 8, seed=1)
    here = turned(lib, q, [query], config) @ turned(lib, k, [key], config).mT
    there = turned(lib, q, [query + shift], config) @ turned(lib, k, [key + shift], config).mT
    assert_close("score", there, here)


def test_the_score_does_depend_on_the_distance(lib):
    config, q, k = tiny_config(head_dim=8), random(1, 1, 8), random(1, 1, 8, seed=1)
    scores = [(turned(lib, q, [0], config) @ turned(lib, k, [far], config).mT).item() for far in range(4)]
    assert len({round(score, 3) for score in scores}) == 4


@given(theta=st.floats(10.0, 1e6), factor=st.floats(2.0, 10.0))
def test_theta_matters_to_all_pairs_but_the_first_and_a_larger_one_turns_them_less(lib, theta, factor):
    small, large = (
        to_host(rope_frequencies(tiny_config(head_dim=8, rope_theta=base), lib.array([0])))
        for base in (theta, theta * factor)
    )
    assert small[0] == large[0] == 1.0
    assert np.all(large[1:] < 0.9 * small[1:])
    x = random(2, 1, 8)
    y, other = (turned(lib, x, [1], tiny_config(head_dim=8, rope_theta=base)) for base in (theta, theta * factor))
    np.testing.assert_array_equal(y[..., [0, 4]], other[..., [0, 4]])
    assert np.all(y[..., 5:] != other[..., 5:])


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_pair_i_turns_by_theta_to_the_minus_i_over_r(lib, theta):
    frequencies = to_host(rope_frequencies(tiny_config(head_dim=8, rope_theta=theta), lib.array([0])))
    assert_close("frequencies", frequencies, [1.0, theta**-0.25, theta**-0.5, theta**-0.75])


def test_partial_rotary_passes_the_rest(lib):
    config = tiny_config(model_type="phi3", head_dim=8, partial_rotary_factor=0.5)
    x = random(2, 3, 8)
    y = turned(lib, x, [5, 6, 7], config)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    assert np.all(y[..., :4] != x[..., :4])
    # The frequencies are those of a head as wide as the rotated part.
    np.testing.assert_array_equal(y[..., :4], turned(lib, x[..., :4], [5, 6, 7], tiny_config(head_dim=4)))


@given(factor=st.floats(1.0, 64.0), position=st.integers(0, 50))
def test_linear_scaling_divides_the_positions(lib, factor, position):
    config = tiny_config(head_dim=8, rope_scaling={"rope_type": "linear", "factor": factor})
    expected = [loops.rope(head[0], position / factor, config.rope_theta) for head in random(2, 1, 8)]
    assert_close("scaled", turned(lib, random(2, 1, 8), [position], config)[:, 0], expected)


def test_a_table_of_factors_divides_pair_by_pair(lib):
    plain = tiny_config(head_dim=8)
    scaled = replace(plain, rope_scaling=RopeScaling("factors", (1.0, 2.0, 4.0, 8.0)))
    frequencies = to_host(rope_frequencies(scaled, lib.array([0])))
    assert_close(
        "frequencies", frequencies, to_host(rope_frequencies(plain, lib.array([0]))) / np.array([1.0, 2.0, 4.0, 8.0])
    )


@given(theta=st.floats(10.0, 1e6), head_dim=st.sampled_from([8, 16, 64]))
def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones(lib, theta, head_dim):
    plain, scaled = (
        to_host(rope_frequencies(tiny_config(head_dim=head_dim, rope_theta=theta, **keys), lib.array([0])))
        for keys in ({}, {"rope_scaling": LLAMA3})
    )
    turns = 64 * plain.astype(np.float64) / (2 * math.pi)  # within the original context
    high, low = turns > 4.0, turns < 1.0
    assert_close("high frequencies", scaled[high], plain[high])
    assert_close("low frequencies", scaled[low], plain[low] / 8.0)
    between = ~high & ~low
    assert np.all((scaled < plain)[between] & (scaled > plain / np.float32(8))[between])


def test_llama3_scaling_is_that_of_its_formula(lib):
    config = tiny_config(head_dim=16, rope_theta=100.0, rope_scaling=LLAMA3)
    expected = []
    for i in range(8):
        frequency = 100.0 ** (-i / 8)
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4.0:
            expected.append(frequency)
        elif wavelength > 64 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    assert_close("frequencies", to_host(rope_frequencies(config, lib.array([0]))), expected)


@given(turns=st.sampled_from([1.0, 4.0]))
def test_llama3_scaling_has_no_jump(lib, turns):
    # A single pair, with frequency 1: the original context sets its number of turns.
    def scaled(turns):
        scaling = LLAMA3 | {"original_max_position_embeddings": turns * 2 * math.pi}
        return to_host(rope_frequencies(tiny_config(head_dim=2, rope_scaling=scaling), lib.array([0]))).item()

    assert abs(scaled(turns * 1.0001) - scaled(turns * 0.9999)) < 1e-3


def test_tables_are_float32_and_follow_the_shape_of_the_positions(lib):
    for positions in ([3], [0, 1, 2], [[0, 1, 2], [7, 8, 9]]):
        for table in rope_tables(lib.array(positions), tiny_config(head_dim=8), total_length=10):
            assert table.dtype == lib.xp.float32
            assert tuple(table.shape) == (*np.shape(positions), 4)


def test_each_sequence_of_a_batch_has_its_own_positions(lib):
    config, x, positions = tiny_config(head_dim=8), random(2, 3, 4, 8), np.array([[0, 1, 2, 3], [9, 2, 5, 5]])
    both = turned(lib, x, positions, config)
    for one in range(2):
        assert_close("one", both[one], turned(lib, x[one], positions[one], config))
