"""The logit lens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import Library
from models import (
    random_gpt2_weights,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)
from tolerance import assert_close

import npllm
from npllm.devices.device import to_host
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect.lens import likeliest, logit_lens, shares
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.sampling import softmax

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def tiny_gpt2(**keys) -> LM:
    config = tiny_gpt2_config(**keys)
    return LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_the_lens_of_the_last_block_gives_the_logits(lm):
    seen = {}
    ids = np.asarray(IDS)
    logits, _ = npllm.forward(ids, lm, tap=record(seen))
    np.testing.assert_array_equal(logit_lens(seen["layers.1.residual_after_feedforward"], lm), logits)
    earlier = logit_lens(seen["layers.0.residual_after_feedforward"], lm)
    assert not np.allclose(earlier, logits)


def test_the_lens_is_the_same_on_every_library(lib: Library):
    lm = tiny_lm()
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    expected = logit_lens(x, lm)
    got = logit_lens(lib.array(x), lm._replace(weights=lib.tree(lm.weights)))
    assert_close("lens", to_host(got), expected)


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9).map(np.float32).map(np.asarray)


@given(LOGITS, st.integers(1, 12))
def test_the_likeliest_are_those_that_sorting_finds(logits, k):
    by_hand = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert likeliest(logits, k).tolist() == by_hand
    assert_close("shares", shares(logits, np.asarray(by_hand)), softmax(logits)[by_hand])


def test_nan_among_the_logits_comes_first_and_makes_all_shares_nan():
    logits = np.array([[1.0, np.nan, 2.0], [1.0, 3.0, 2.0]], dtype=np.float32)
    assert likeliest(logits, 2).tolist() == [[1, 2], [1, 2]]
    got = shares(logits, likeliest(logits, 2))
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()
