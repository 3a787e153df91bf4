"""The captured decode step, computed with the kernels' definitions, gives the plain pass's values. No GPU is needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_models import pass_by_pass, random_lm
from libraries import NUMPY
from models import random_ids, tiny_config
from test_cuda_block import doubled
from tolerance import assert_close

import npllm
from npllm import model, rope
from npllm.arrays import Packed
from npllm.cache import empty_cache, grow
from npllm.cuda import step as module
from npllm.cuda import twins
from npllm.cuda.gpu import with_kernels
from npllm.cuda.step import KernelWeight, replayed
from npllm.errors import UsageError
from npllm.linear import linear
from npllm.model import transform

REPLAYED = replayed(transform, twins)


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_narrow_cache_is_written_in_its_width(dtype):
    lm, ids = (
        random_lm(NUMPY, model_type="mistral", num_key_value_heads=2, sliding_window=3),
        random_ids(tiny_config(), 6),
    )
    caches = [empty_cache(lm.config, 8, like=lm.weights.norm, dtype=dtype) for _ in range(2)]
    expected, _ = pass_by_pass(lm, ids, transform, (2, 1, 1, 1, 1), caches[0])
    made, _ = pass_by_pass(lm, ids, REPLAYED, (2, 1, 1, 1, 1), caches[1])
    assert caches[1]["keys"][0].dtype == dtype
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"tap": lambda name, value: value * 1.5 if name.endswith("q_rotated") else value},
        {"attention": doubled},
        {"positions": np.array([7])},
        {"visible": np.array([[True, False, True]])},
        {"block": lambda x, *rest, **options: x},
    ],
    ids=lambda options: next(iter(options)),
)
def test_whoever_looks_inside_or_changes_a_part_gets_the_plain_functions(counted, options):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    made, caches = [], []
    for whole_pass in (transform, REPLAYED):
        _, cache = pass_by_pass(lm, ids[:2], transform, (2,))
        made.append(pass_by_pass(lm, ids[2:], whole_pass, (1,), cache, **options)[0][0])
        caches.append(cache)
    np.testing.assert_array_equal(*made)
    assert counted == {"block": 0, "step": 0}
    assert "step" not in caches[1]
    assert caches[1]["length"] == 3


def test_each_step_returns_memory_of_its_own():
    """The result is not the buffer that the next step overwrites."""
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    cache = empty_cache(lm.config, 3, like=lm.weights.norm)
    hidden, copies = [], []
    for i in range(3):
        hidden.append(REPLAYED(ids[i : i + 1], lm.weights, lm.config, cache)[0])
        copies.append(hidden[-1].copy())
    for a, b in zip(hidden, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_forgetting_tokens_sets_the_counter_back(lengths):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 7)
    _, cache = pass_by_pass(lm, ids[:6], transform, (6,))
    for length in lengths:
        cache["length"] = min(length, cache["length"])
        past = cache["length"]
        made, _ = REPLAYED(ids[past : past + 1], lm.weights, lm.config, cache)
        _, again = pass_by_pass(lm, ids[:past], transform, (past,) if past else ())
        again["keys"] = [side.copy() for side in again["keys"]]
        assert_close("hidden", made, pass_by_pass(lm, ids[past:], transform, (1,), again)[0][0])


def test_another_cache_or_a_grown_one_is_captured_anew():
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 5)
    expected, _ = pass_by_pass(lm, ids, transform, (1,) * 5)
    cache = empty_cache(lm.config, 2, like=lm.weights.norm)
    made, _ = pass_by_pass(lm, ids, REPLAYED, (1, 1), cache)
    step = cache["step"]
    grow(cache, 5)
    more, _ = pass_by_pass(lm, ids[2:], REPLAYED, (1, 1, 1), cache)
    for a, b in zip(made + more, expected, strict=True):
        assert_close("hidden", a, b)
    assert cache["step"] is not step
    other = empty_cache(lm.config, 5, like=lm.weights.norm)
    assert_close("hidden", pass_by_pass(lm, ids, REPLAYED, (1,), other)[0][0], expected[0])


def test_another_config_is_captured_anew():
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    other = lm._replace(config=tiny_config(rope_theta=77.0))
    made, cache = pass_by_pass(lm, ids, REPLAYED, (1, 1))
    expected, plain = pass_by_pass(lm, ids, transform, (1, 1))
    made, expected = (
        pass_by_pass(other, ids[2:], whole_pass, (1,), held)[0]
        for whole_pass, held in ((REPLAYED, cache), (transform, plain))
    )
    assert_close("hidden", made[0], expected[0])


def test_the_steps_after_an_interrupted_one_are_right(monkeypatch):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 4)
    expected, _ = pass_by_pass(lm, ids, transform, (1,) * 4)
    made, cache = pass_by_pass(lm, ids[:2], REPLAYED, (1, 1), empty_cache(lm.config, 4, like=lm.weights.norm))
    advance = twins.advance

    def interrupted(past):
        advance(past)
        raise KeyboardInterrupt

    monkeypatch.setattr(twins, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        REPLAYED(ids[2:3], lm.weights, lm.config, cache)
    assert cache["length"] == 2
    monkeypatch.setattr(twins, "advance", advance)
    more, _ = pass_by_pass(lm, ids[2:], REPLAYED, (1, 1), cache)
    for a, b in zip(made + more, expected, strict=True):
        assert_close("hidden", a, b)


# RoPE tables that depend on the length of the text


def tables_by_length(positions, config, total_length):
    """Like LongRoPE: different frequencies and a different scale in a text of more than 6 tokens."""
    cos, sin = rope.rope_tables(positions, config, total_length)
    return (cos, sin) if total_length <= 6 else (1.25 * cos, 1.25 * np.sin(2.0 * np.arcsin(np.clip(sin, -1, 1))))


@pytest.fixture
def by_length(monkeypatch):
    """RoPE that depends on `total_length`, and how often the tables of a whole step were built."""
    built = []

    def tables(positions, config, total_length):
        if positions.shape != (1,):
            built.append(total_length)
        return tables_by_length(positions, config, total_length)

    monkeypatch.setattr(model, "rope_tables", tables_by_length)
    monkeypatch.setattr(module, "rope_tables", tables)
    return built


@pytest.mark.parametrize("total_length", [5, 6, 7, 9])
def test_whole_chunked_and_captured_passes_use_the_same_tables(by_length, counted, total_length):
    """Every pass receives the length of the text, so the chunk boundaries do not matter."""
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 5)
    whole, _ = transform(ids, lm.weights, lm.config, total_length=total_length)
    chunked, _ = pass_by_pass(lm, ids, transform, (2, 2, 1), total_length=total_length)
    captured, _ = pass_by_pass(lm, ids, REPLAYED, (2, 1, 1, 1), total_length=total_length)
    assert_close("chunked", np.concatenate(chunked), whole)
    assert_close("captured", np.concatenate(captured), whole)
    assert counted["step"] == 3
    assert by_length == [total_length]


def test_a_step_uses_the_tables_of_the_length_that_it_has_reached(by_length):
    """A text grows past the length at which the tables change, and is then rolled back below it."""
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 10)
    made, expected = {}, {}
    for options in ({}, {"total_length": 9}):
        for whole_pass, passes in ((transform, expected), (REPLAYED, made)):
            by_length.clear()
            passes[len(options)], cache = pass_by_pass(lm, ids, whole_pass, (2, *(1,) * 8), **options)
            step = cache.get("step")
            cache["length"] = 4
            passes[len(options)] += pass_by_pass(lm, ids[4:], whole_pass, (1,) * 6, cache, **options)[0]
            assert cache.get("step") is step
        assert by_length == ([9] if options else [3, 7, 5, 7])  # in place: twice for each change of the text length
    for kind, passes in made.items():
        for a, b in zip(passes, expected[kind], strict=True):
            assert_close("hidden", a, b)


def test_the_loop_passes_the_length_of_the_text_to_the_step(by_length, counted):
    lm = random_lm(NUMPY)
    expected = npllm.generate(lm, [1, 2, 3], max_new_tokens=8)
    assert npllm.generate(with_kernels(lm, twins), [1, 2, 3], max_new_tokens=8).ids == expected.ids
    assert counted["step"] == 7
    assert by_length == [4, 7]


# The loop, and the LM head after the step


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_the_loop_makes_the_same_tokens(counted, tied, window):
    lm = random_lm(NUMPY, model_type="mistral", tie_word_embeddings=tied, sliding_window=window)
    other = with_kernels(lm, twins)
    assert (other.weights.lm_head is other.weights.embed_tokens) == tied
    assert other.config is lm.config
    expected = npllm.generate(lm, [1, 2, 3], max_new_tokens=12)
    assert npllm.generate(other, [1, 2, 3], max_new_tokens=12).ids == expected.ids
    assert counted["step"] == 11
    sampled = {"temperature": 1.0, "seed": 3, "max_new_tokens": 12}
    assert npllm.generate(other, [1, 2], **sampled).ids == npllm.generate(lm, [1, 2], **sampled).ids
    without_cache = npllm.generate(other, [1, 2], max_new_tokens=5, use_cache=False)
    assert without_cache.ids == npllm.generate(lm, [1, 2], max_new_tokens=5).ids


def test_the_head_scores_one_vector_in_float32_and_many_as_before():
    weight = matrix(11, 8).astype(np.float16)
    head, x = KernelWeight(weight, twins), matrix(3, 8, seed=1)
    assert isinstance(head, Packed)
    assert (head.shape, head.dtype, head.nbytes) == ((11, 8), np.float16, 2 * 11 * 8)
    assert_close("one", linear(x[:1], head), x[:1] @ weight.astype(np.float32).T)
    np.testing.assert_array_equal(linear(x, head), linear(x, weight))
    np.testing.assert_array_equal(head.rows(np.array([3, 0])), weight[[3, 0]].astype(np.float32))


def lm_with_twins(**keys):
    """A model that steps with the kernels' definitions, its ids, and a cache for five of them."""
    lm = with_kernels(random_lm(NUMPY, **keys), twins)
    return lm, random_ids(lm.config, 5), empty_cache(lm.config, 5, like=lm.weights.norm)


def vector(lm, ids, cache):
    """One step."""
    return npllm.transform(ids[cache["length"] :][:1], lm, cache)[0]


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_depend_on_the_vector_alone(tied):
    """A step leaves no state in the model: the head accepts any vector from any pass, modified in place or not."""
    lm, ids, cache = lm_with_twins(tie_word_embeddings=tied)
    held = [dict(vars(lm.weights.lm_head))]
    earlier, later = vector(lm, ids, cache), vector(lm, ids, cache)
    prompt, _ = npllm.transform(ids[:3], lm)
    changed = later.copy()
    changed[0, 3] += 1.0
    for hidden in (earlier, later, changed, prompt, prompt[-1:], -later, later * 0, later[None]):
        assert_close("logits", npllm.lm_head(hidden, lm), linear(hidden, lm.weights.lm_head.weight))
    later[0, -1] += 1.0
    assert_close("logits", npllm.lm_head(later, lm), linear(later, lm.weights.lm_head.weight))
    assert [vars(lm.weights.lm_head)] == held


def test_two_texts_in_turns():
    lm, plain = with_kernels(random_lm(NUMPY), twins), random_lm(NUMPY)
    texts = [npllm.steps(lm, prompt, max_new_tokens=6) for prompt in ([1, 2], [3])]
    made = [(one.id, two.id) for one, two in zip(*texts, strict=True)]
    expected = [npllm.generate(plain, prompt, max_new_tokens=6).ids for prompt in ([1, 2], [3])]
    assert made == list(zip(*expected, strict=True))


def test_a_model_that_classifies_is_stepped_too():
    lm = random_lm(NUMPY)
    lm = lm._replace(weights=lm.weights._replace(lm_head=None, score=lm.weights.lm_head))
    stepped, ids = with_kernels(lm, twins), random_ids(lm.config, 5)
    expected, _ = pass_by_pass(lm, ids, transform, (2, 1, 1, 1))
    made, cache = pass_by_pass(stepped, ids, stepped.transform, (2, 1, 1, 1))
    for a, b in zip(made, expected, strict=True):
        assert_close("hidden", a, b)
    assert "step" in cache
    with pytest.raises(UsageError, match="no LM head"):
        npllm.lm_head(made[-1], stepped)


def test_another_head_in_the_models_place_is_heeded():
    lm, ids, cache = lm_with_twins()
    hidden = vector(lm, ids, cache)
    other = matrix(lm.config.vocab_size, lm.config.hidden_size, seed=7)
    for head in (other, KernelWeight(other, twins)):
        replaced = lm._replace(weights=lm.weights._replace(lm_head=head))
        assert_close("logits", npllm.lm_head(hidden, replaced), linear(hidden, other))
        again, _ = npllm.transform(ids[1:2], replaced, cache)
        assert_close("logits", npllm.lm_head(again, replaced), linear(again, other))
