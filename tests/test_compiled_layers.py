"""The parts of a block in loops are the array functions of the ground floor; without Numba, as plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm import attention, feedforward, norm, rope
from npllm.compiled import layers
from npllm.compiled.exp import exp
from npllm.compiled.jit import COMPILES, jit
from npllm.families import gemma


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@jit
def exps(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


def test_exp_is_off_by_less_than_three_units_in_the_last_place():
    many = 1_000_001 if COMPILES else 1001
    x = np.concatenate([np.linspace(-87, 88, many), np.linspace(-1, 1, many)]).astype(np.float32)
    out, expected = np.empty_like(x), np.exp(x.astype(np.float64))
    exps(x, out)
    assert (np.abs(out - expected) <= 3 * 2.0**-23 * expected).all()


def test_exp_at_its_ends():
    x = np.array([0.0, -0.0, -87.4, -1e30, -np.inf, 88.9, 1e30, np.inf, np.nan], np.float32)
    out = np.empty_like(x)
    exps(x, out)
    assert np.array_equal(out, np.array([1, 1, 0, 0, 0, *[np.inf] * 3, np.nan], np.float32), equal_nan=True)


@given(st.integers(1, 300), st.floats(-10, 10))
def test_rms_norm(width, power):
    x, weight, out = random(width) * np.float32(10**power), random(width, seed=1), np.empty(width, np.float32)
    layers.rms_norm(x, weight, np.float32(1e-5), out)
    assert np.allclose(out, norm.rms_norm(x, weight, 1e-5), rtol=2e-6, atol=1e-30)


def test_a_square_that_overflows_gives_nan_as_on_the_ground_floor():
    x, out = np.full(4, 1e30, np.float32), np.empty(4, np.float32)
    with np.errstate(all="ignore"):
        layers.rms_norm(x, np.ones(4, np.float32), np.float32(1e-5), out)
        assert np.isnan(norm.rms_norm(x, np.ones(4, np.float32), 1e-5)).all()
    assert np.isnan(out).all()


@given(st.integers(1, 8), st.integers(0, 5))
def test_apply_rope(pairs, rest):
    head, angles = random(2 * pairs + rest), random(pairs, seed=1)
    cos, sin, out = np.cos(angles), np.sin(angles), head.copy()
    layers.apply_rope(out, cos, sin)
    assert np.allclose(out, rope.apply_rope(head[None, None], cos[None], sin[None])[0, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("loop", "definition"), [(layers.swiglu, feedforward.swiglu), (layers.geglu, gemma.geglu)])
def test_gates(loop, definition):
    gate_up, out = random(400) * 8, np.empty(200, np.float32)
    gate_up[:4] = [-1000, 1000, 0, -60]
    loop(gate_up, out)
    difference = np.abs(out - definition(gate_up[:200], gate_up[200:]))
    assert (difference <= 1e-6 * np.abs(gate_up[:200] * gate_up[200:])).all()  # gelu subtracts nearly equal numbers


@given(
    keys=st.integers(1, 40),
    chunk=st.integers(1, 40),
    queries=st.integers(1, 4),
    width=st.integers(1, 20),
    large=st.booleans(),
)
def test_attention_in_chunks(keys, chunk, queries, width, large):
    q, k, v = random(queries, width), random(keys, width, seed=1), random(keys, width, seed=2)
    q = q * np.float32(100 if large else 1)
    scale, cap = np.float32(1 / math.sqrt(width)), np.float32(0)
    starts = range(0, keys, chunk)
    parts = np.empty((queries, len(starts), width + 2), np.float32)
    for c, start in enumerate(starts):
        some = slice(start, start + chunk)
        layers.attend(q, k[some], v[some], scale, cap, np.empty(chunk, np.float32), parts[:, c])
    out = np.empty((queries, width), np.float32)
    for n in range(queries):
        layers.merge(parts[n], out[n])
    expected = attention.attention(q[:, None, :], k[None], v[None])[:, 0]
    assert np.allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_scores_are_capped():
    q, k, v = random(1, 8) * 20, random(5, 8, seed=1), random(5, 8, seed=2)
    part = np.empty((1, 1, 10), np.float32)
    layers.attend(q, k, v, np.float32(1), np.float32(3), np.empty(5, np.float32), part[:, 0])
    out = np.empty(8, np.float32)
    layers.merge(part[0], out)
    scores = 3 * np.tanh(k @ q[0] / 3)
    weights = np.exp(scores - scores.max())
    assert np.allclose(out, weights / weights.sum() @ v, rtol=1e-5, atol=1e-6)


def test_a_score_that_is_no_number_is_not_hidden():
    q, k, v = random(1, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    k[1, 2] = np.nan
    part, out = np.empty((1, 1, 6), np.float32), np.empty(4, np.float32)
    layers.attend(q, k, v, np.float32(1), np.float32(0), np.empty(3, np.float32), part[:, 0])
    layers.merge(part[0], out)
    assert np.isnan(out).all()
