import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

from npllm.devices.device import to_host
from npllm.embedding import embed
from npllm.positions import sinusoidal_positions

EVEN = st.integers(1, 5).map(lambda pairs: 2 * pairs)


@given(width=EVEN, start=st.integers(0, 500))
def test_sinusoidal_positions_are_the_loop(lib, width, start):
    positions = np.arange(start, start + 3)
    expected = [loops.sinusoidal_position(position, width) for position in positions.tolist()]
    got = sinusoidal_positions(lib.array(positions), width)
    assert got.dtype == lib.xp.float32
    assert_close("positions", to_host(got), expected)


def test_position_zero_is_zeros_and_ones_in_turn(lib):
    np.testing.assert_array_equal(to_host(sinusoidal_positions(lib.array([0]), 6)), [[0, 1, 0, 1, 0, 1]])


def test_the_first_wave_is_that_of_a_token_per_radian_and_the_last_nearly_stands_still(lib):
    one = to_host(sinusoidal_positions(lib.array([1]), 512))[0]
    assert_close("first", one[:2], [np.sin(1.0), np.cos(1.0)])
    assert_close("last", one[-2:], [np.sin(10000 ** (-510 / 512)), np.cos(10000 ** (-510 / 512))])


@given(width=EVEN, batch=st.sampled_from([(), (2,), (2, 3)]))
def test_every_position_of_a_batch_is_computed_by_itself(lib, width, batch):
    positions = np.random.default_rng(0).integers(0, 100, (*batch, 4))
    got = to_host(sinusoidal_positions(lib.array(positions), width))
    assert got.shape == (*batch, 4, width)
    one_by_one = to_host(sinusoidal_positions(lib.array(positions.reshape(-1)), width))
    assert_close("positions", got.reshape(-1, width), one_by_one)


@given(width=EVEN, offset=st.integers(0, 50))
def test_the_product_of_two_positions_depends_on_their_distance_only(lib, width, offset):
    near, far = (to_host(sinusoidal_positions(lib.array(np.arange(6) + shift), width)) for shift in (0, offset))
    assert_close("products", far @ far.T, near @ near.T)


@given(width=EVEN, step=st.integers(0, 40))
def test_a_step_turns_every_pair_by_the_same_angle_wherever_it_is_taken(lib, width, step):
    """Vaswani et al.: PE(position + step) is a linear function of PE(position), which attention can learn."""
    here, there = (to_host(sinusoidal_positions(lib.array(np.arange(5) + shift), width)) for shift in (0, step))
    turned = np.empty_like(here)
    for i in range(width // 2):
        angle = step / 10000 ** (2 * i / width)
        sines, cosines = here[:, 2 * i], here[:, 2 * i + 1]
        turned[:, 2 * i] = sines * np.cos(angle) + cosines * np.sin(angle)
        turned[:, 2 * i + 1] = cosines * np.cos(angle) - sines * np.sin(angle)
    assert_close("turned", turned, there)


@given(width=EVEN)
def test_all_positions_have_the_same_length(lib, width):
    positions = to_host(sinusoidal_positions(lib.array(np.arange(512)), width))
    assert_close("length", np.sum(positions**2, axis=-1), np.full(512, width / 2))


def test_no_two_positions_are_alike():
    positions = sinusoidal_positions(np.arange(512), 32)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert np.min(distances[~np.eye(512, dtype=bool)]) > 0.5


def test_an_odd_width_has_no_pairs():
    with pytest.raises(ValueError, match="reshape"):
        sinusoidal_positions(np.arange(3), 5)


def test_a_learned_position_is_a_row_of_its_table(lib):
    table = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    positions = np.array([[0, 1, 4], [3, 3, 2]])
    np.testing.assert_array_equal(to_host(embed(lib.array(positions), lib.array(table))), table[positions])


@pytest.mark.oracle
def test_sinusoidal_positions_are_those_that_transformers_makes():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    marian = pytest.importorskip("transformers.models.marian.modeling_marian", reason="transformers is not installed")
    theirs = marian.MarianSinusoidalPositionalEmbedding(200, 16).create_weight().numpy()  # all sines, then all cosines
    ours = sinusoidal_positions(np.arange(200), 16)
    assert_close("positions", np.concatenate([ours[:, ::2], ours[:, 1::2]], axis=1), theirs)
