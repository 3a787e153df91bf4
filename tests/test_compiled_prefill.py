"""Many new tokens in loops and BLAS: the pass of the model's family. Also runs as plain Python."""

import ml_dtypes
import numpy as np
import pytest
from families import WRITERS, random_lm
from test_compiled_step import IN_LOOPS, counted, ids_for

import npllm
from npllm import attention, feedforward, masks, norm
from npllm.cache import empty_cache
from npllm.compiled import prefill
from npllm.compiled.cpu import team, with_loops
from npllm.compiled.jit import COMPILES
from npllm.compiled.step import LARGEST, MODEL
from npllm.families import gemma

compiled_only = pytest.mark.skipif(not COMPILES, reason="too slow as plain Python")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_close(ours, theirs, rounding=2e-5):
    theirs = np.asarray(theirs, np.float32)
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=1e-4, atol=rounding * np.nanmax(abs(theirs)))


def assert_same_pass(lm, sizes, dtype=None):
    """The hidden states and the cache are those of the family's pass, for a text read in chunks of these sizes."""
    fast, ids = with_loops(lm), ids_for(lm, sum(sizes))
    caches = [empty_cache(lm.config, sum(sizes) + 3, like=lm.weights.norm, dtype=dtype) for _ in range(2)]
    rounding, first = 2e-5 if dtype is None else 2e-2, 0
    for size in sizes:
        chunk, first = ids[first : first + size], first + size
        ours, theirs = (npllm.transform(chunk, one, cache)[0] for one, cache in zip((fast, lm), caches, strict=True))
        assert_close(ours, theirs, rounding)
    assert caches[0]["length"] == sum(sizes)
    for side in ("keys", "values"):
        for mine, yours in zip(caches[0][side], caches[1][side], strict=True):
            assert_close(mine, yours, rounding)


@pytest.mark.parametrize("name", sorted(IN_LOOPS & {*WRITERS}))
def test_a_pass_is_the_family_s(name):
    assert_same_pass(random_lm(name), [LARGEST + 1])


@compiled_only
@pytest.mark.parametrize("name", sorted(IN_LOOPS & {*WRITERS}))
@pytest.mark.parametrize("seed", range(3))
def test_in_chunks(name, seed, monkeypatch):
    monkeypatch.setattr(prefill, "SCORES", 12)
    assert_same_pass(random_lm(name, seed=seed), [18, 1, 21, 3])


@compiled_only
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_cache_in_16_bits(dtype):
    assert_same_pass(random_lm("llama"), [20, 20], dtype=dtype)


def attended(q, k, v, window=0, cap=0.0):
    """Attention of the last tokens of a text, by the loops: q [N, T, H], k and v [K, S, H]."""
    (N, T, H), (K, S, _) = q.shape, k.shape
    model = np.zeros(1, MODEL)[0]
    model["heads"], model["kv_heads"], model["head_dim"], model["scale"], model["cap"] = N, K, H, H**-0.5, cap
    rest = np.full((T, 2 * K * H), np.nan, np.float32)  # keys and values are read from the cache
    qkv, mixed = np.hstack([attention.merge_heads(q), rest]), np.empty((T, N * H), np.float32)
    with prefill.one_thread():
        team().run(prefill.attend, 1, model, window, S - T, k, v, qkv, mixed)
    return attention.split_heads(mixed, N)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("past", [0, 7])
def test_attention(heads, window, past, monkeypatch):
    monkeypatch.setattr(prefill, "SCORES", 8)
    (N, K), T = heads, 21  # not a multiple of a tile, nor of a register
    q, k, v = random(N, T, 8), random(K, past + T, 8, seed=1), random(K, past + T, 8, seed=2)
    visible = masks.decoder_mask(past, T, window or None, q)
    assert_close(attended(q, k, v, window), attention.attention(q, k, v, visible))


def softmax(scores, slot=None, window=0, scale=1.0, cap=0.0, group=1):
    """The weights of one row for each query, the last of which sees all keys."""
    out = scores.copy()
    slot = scores.shape[1] - len(scores) // group if slot is None else slot
    prefill.softmax(out, group, slot, 0, window, np.float32(scale), np.float32(cap))
    return out


def test_the_largest_score_may_be_the_last():
    scores = np.full((1, 19), -1e4, np.float32)
    scores[0, -1] = 100
    assert np.array_equal(softmax(scores)[0], np.eye(19)[-1])


def test_scores_are_scaled_and_capped():
    scores = random(2, 21) * 50
    visible = masks.decoder_mask(19, 2, None, scores)
    expected = attention.attention_weights(5 * np.tanh(scores * 0.5 / 5)[None], visible)[0]
    np.testing.assert_allclose(softmax(scores, scale=0.5, cap=5.0), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(bad):
    scores = random(4, 20) * 30
    scores[1, 4] = scores[3, 17] = bad
    scores[2] = -np.inf
    visible = masks.decoder_mask(16, 4, None, scores)
    with np.errstate(invalid="ignore"):
        expected = attention.attention_weights(scores[None], visible)[0]
        np.testing.assert_allclose(softmax(scores), np.where(visible, expected, 0), rtol=1e-5, atol=1e-7)


def test_norms_and_gates():
    x, added, weight, out = random(19, 8), random(19, 8, seed=1), random(8, seed=2), np.empty((19, 8), np.float32)
    expected = x + norm.rms_norm(added, weight, 1e-5)
    address, none = np.uint64(weight.ctypes.data), np.uint64(0)
    team().run(prefill.add_and_norm, 1, np.float32(1e-5), address, none, added, x, out)
    assert_close(x, expected)
    assert_close(out, expected)
    team().run(prefill.add_and_norm, 1, np.float32(1e-5), none, address, added, x, out)
    assert_close(x, expected + added)
    assert_close(out, norm.rms_norm(expected + added, weight, 1e-5))
    gate, up, out = random(19, 12) * 50, random(19, 12, seed=3), np.empty((19, 12), np.float32)
    for kind, definition in enumerate((feedforward.swiglu, gemma.geglu)):
        team().run(prefill.gate, 1, np.int64(kind), np.hstack([gate, up]), out)
        np.testing.assert_allclose(out, definition(gate, up), rtol=1e-5, atol=1e-6)


def test_what_the_family_s_pass_computes(monkeypatch):
    lm = random_lm("llama")
    fast, ids = with_loops(lm), ids_for(lm, LARGEST + 1)
    calls = counted(fast, monkeypatch)
    npllm.transform(ids, fast, None)
    npllm.transform(ids, fast, empty_cache(lm.config, LARGEST + 1, like=lm.weights.norm), tap=lambda name, value: value)
    npllm.transform([ids], fast, empty_cache(lm.config, LARGEST + 1, (1,), like=lm.weights.norm))
    assert calls == [1, 1, 1]
    npllm.transform(ids, fast, empty_cache(lm.config, LARGEST + 1, like=lm.weights.norm))
    assert calls == [1, 1, 1]
