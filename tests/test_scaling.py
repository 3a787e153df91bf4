"""Scaling of positions: its factors by hand and by transformers, and texts that cross LongRoPE's original context."""

import math
from dataclasses import replace

import numpy as np
import pytest
from families import random_lm
from tolerance import assert_close

import npllm
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.cache import drop_other_factors, empty_cache
from npllm.config import RopeScaling
from npllm.families.scaling import SCALINGS, yarn
from npllm.inspect.trace import trace
from npllm.rope import needs_long_factors, rope_tables

ORIGINAL = 12
KEYS = {
    "original_max_position_embeddings": ORIGINAL,
    "max_position_embeddings": 48,
    "sliding_window": None,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [3.0, 7.0]},
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
CROSSES = pytest.warns(UserWarning, match="the text is now longer than the original context: all of it is computed")


@pytest.fixture(scope="module")
def lm():
    return random_lm("phi3", seed=5, **KEYS)


def without_cache(lm, ids, count):
    """Greedy decoding with a pass over the whole text for each token, by definition with the right factors."""
    ids = list(ids)
    for _ in range(count):
        logits, _ = npllm.forward(np.asarray(ids), lm)
        ids.append(int(np.argmax(logits[-1])))
    return ids[-count:]


def test_the_factors_depend_on_the_length_of_the_whole_text(lm):
    position = np.array([5])
    frequencies = 100.0 ** -np.array([0, 0.5])
    for length, factors in ((1, [1.0, 1.1]), (ORIGINAL, [1.0, 1.1]), (ORIGINAL + 1, [3.0, 7.0])):
        cos, sin = rope_tables(position, lm.config, length)
        scale = math.sqrt(1 + math.log(48 / ORIGINAL) / math.log(ORIGINAL))
        assert_close("cos", cos[0], scale * np.cos(5 * frequencies / factors))
        assert_close("sin", sin[0], scale * np.sin(5 * frequencies / factors))


def test_a_text_that_crosses_the_original_context_is_computed_again(lm):
    expected = without_cache(lm, IDS, 12)
    with CROSSES:
        made = npllm.generate(lm, IDS, max_new_tokens=12).ids
    assert made == expected
    assert npllm.generate(lm, IDS, max_new_tokens=12, use_cache=False).ids == expected


def test_only_a_text_that_crosses_it_is_computed_again(lm, recwarn):
    npllm.generate(lm, IDS, max_new_tokens=ORIGINAL - len(IDS) + 1)  # the last token is not put in
    npllm.generate(lm, [*IDS, *IDS], max_new_tokens=5)  # long from the start
    assert not recwarn.list


def test_each_of_the_two_caches_holds_one_kind_of_keys(lm):
    cache = empty_cache(lm.config, 30, like=lm.weights.norm)
    with CROSSES:
        long = npllm.generate(lm, IDS, max_new_tokens=8, cache=cache)
    assert cache["long_factors"]
    cache["length"] = 5  # rolled back, as in a conversation
    with pytest.warns(UserWarning, match="the text again fits in the original context"):
        [step] = npllm.steps(lm, IDS, max_new_tokens=1, cache=cache)
    assert step.id == long.ids[0] == without_cache(lm, IDS, 1)[0]
    assert not cache["long_factors"]


def test_the_kind_of_a_cache_without_the_mark_follows_from_its_length(lm):
    for length, long in ((ORIGINAL, False), (ORIGINAL + 1, True)):
        cache = empty_cache(lm.config, 30, like=lm.weights.norm) | {"length": length}
        drop_other_factors(cache, lm.config, length)
        assert (cache["length"], cache["long_factors"]) == (length, long)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_drafts_do_not_cross_it(lm, count):
    ids = [1, 2, 3, 1, 2, 3, 1, 2]
    with CROSSES:
        expected = npllm.generate(lm, ids, max_new_tokens=15).ids
    for tokens in (prompt_lookup(count), draft_model(lm, count)):
        with CROSSES:
            assert npllm.generate(lm, ids, max_new_tokens=15, tokens=tokens).ids == expected


def test_a_trace_in_chunks_has_the_factors_of_the_whole_text(lm):
    ids = [*IDS, *IDS]
    whole, chunked = trace(lm, ids), trace(lm, ids, chunks=[10, 6])
    assert_close("logits", chunked["logits"], whole["logits"])


def test_yarn_by_hand():
    """8 pairs, theta 100, original context 64: pair i makes 64 · 100^(-i / 8) / 2π turns."""
    values = {"factor": 4.0, "original_max_position_embeddings": 64.0, "beta_fast": 4.0, "beta_slow": 1.0}
    scaling = yarn(values, theta=100.0, pairs=8)
    first = math.floor(8 * math.log(64 / (4 * 2 * math.pi)) / math.log(100))  # 1
    last = math.ceil(8 * math.log(64 / (2 * math.pi)) / math.log(100))  # 5
    assert (first, last) == (1, 5)
    kept = [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert_close("factors", np.array(scaling.factors), [1 / (share + (1 - share) / 4) for share in kept])
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_the_attention_factor_may_depend_on_the_length():
    config = random_lm("llama").config
    scaling = RopeScaling("longrope", (1.0,) * 4, (1.0,) * 4, 10, attention_factor=2.0, long_attention_factor=3.0)
    config, positions = replace(config, rope_scaling=scaling), np.arange(4)
    cos, sin = rope_tables(positions, replace(config, rope_scaling=None), 4)
    for length, factor in ((10, 2.0), (11, 3.0)):
        for name, got, plain in zip(("cos", "sin"), rope_tables(positions, config, length), (cos, sin), strict=True):
            assert_close(name, got, factor * plain)


def test_other_scalings_do_not_depend_on_the_length():
    config = random_lm("llama").config
    for scaling in (None, RopeScaling("linear", (2.0,) * 4), RopeScaling("yarn", (2.0,) * 4, attention_factor=1.5)):
        assert not needs_long_factors(replace(config, rope_scaling=scaling), 10**6)


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_factors_are_those_of_transformers(kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    random = np.random.default_rng(3)
    for _ in range(20):
        pairs, theta = int(random.integers(2, 40)), float(10 ** random.uniform(1, 6))
        values = {
            "rope_type": kind,
            "rope_theta": theta,
            "factor": float(random.uniform(1, 10)),
            "original_max_position_embeddings": int(random.integers(16, 4096)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "short_factor": random.uniform(1, 3, pairs).tolist(),
            "long_factor": random.uniform(1, 30, pairs).tolist(),
        }
        config = transformers.LlamaConfig(
            hidden_size=2 * pairs, num_attention_heads=1, head_dim=2 * pairs, max_position_embeddings=8192
        )
        config.rope_parameters = values
        ours = SCALINGS[kind](values | {"max_position_embeddings": 8192}, theta, pairs)
        plain = theta ** -(np.arange(pairs) / pairs)
        for length, factors in ((1, ours.factors), (5000, ours.long_factors or ours.factors)):
            theirs, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
            assert_close(kind, (plain / factors).astype(np.float32), theirs.numpy())
            assert ours.attention_factor == pytest.approx(attention_factor)
            assert ours.long_attention_factor in (1.0, ours.attention_factor)
