"""The second block without a GPU: what its kernels are defined as is what the ground floor computes."""

import inspect
import itertools
from functools import partial

import numpy as np
import pytest
from checkpoints import dense
from hypothesis import given
from hypothesis import strategies as st
from libraries import NUMPY
from models import config_keys, random_gpt2_weights, random_ids, random_weights, tiny_config, tiny_gpt2_config
from test_packed import WORKERS, matrix, pack
from tolerance import assert_close

import npllm
from npllm.arrays import Packed
from npllm.attention import attention
from npllm.cache import empty_cache, grow
from npllm.cuda import block as module
from npllm.cuda import kernels
from npllm.cuda import twins as kernel_twins
from npllm.cuda.block import KernelHead, cuda_block, replayed, with_kernels
from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.heads import lm_head
from npllm.linear import linear
from npllm.lm import LM
from npllm.loop import next_logits
from npllm.model import transform
from npllm.rope import rope_tables
from npllm.storage import rows as cuda_weights
from npllm.storage.packed import empty_groups, fill_groups
from npllm.storage.rows import row_groups

TWIN_BLOCK = partial(cuda_block, functions=kernel_twins)
LAUNCHED = ["embed", "rms_norm", "matvec", "swiglu", "recall", "rope_and_append", "attention", "advance"]


def random_lm(lib, seed=0, biases=False, **keys):
    config = tiny_config(**keys)
    weights = lib.tree(random_weights(config, seed, biases=biases))
    if config.tie_word_embeddings:
        weights = weights._replace(lm_head=weights.embed_tokens)
    return LM(config, weights, None, {})


def pass_by_pass(lm, ids, whole_pass, chunks, cache=None, **options):
    """What comes out of each pass, when the ids go through in chunks of these lengths."""
    cache = empty_cache(lm.config, ids.shape[0] + 2, like=lm.weights.norm) if cache is None else cache
    made, start = [], 0
    for length in chunks:
        hidden, _ = whole_pass(ids[start : start + length], lm.weights, lm.config, cache, **options)
        made.append(to_host(hidden))
        start += length
    return made, cache


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_kernel_and_its_definition_have_the_same_parameters(name):
    kernel, twin = getattr(kernels, name), getattr(kernel_twins, name)
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(twin).parameters)


@given(keys=config_keys(), biases=st.booleans(), seed=st.integers(0, 5))
def test_the_second_block_is_the_block(writable_lib, keys, biases, seed):
    lm, ids = random_lm(writable_lib, seed, biases, **keys), writable_lib.array(random_ids(tiny_config(), 8))
    chunks = (3, 1, 1, 2, 1)
    expected, one = pass_by_pass(lm, ids, transform, chunks)
    blocks, two = pass_by_pass(lm, ids, partial(transform, block=TWIN_BLOCK), chunks)
    steps, three = pass_by_pass(lm, ids, replayed(transform, kernel_twins), chunks)
    for number, all_three in enumerate(zip(expected, blocks, steps, strict=True)):
        assert_close(f"pass {number}", all_three[1], all_three[0])
        assert_close(f"captured pass {number}", all_three[2], all_three[0])
    for name in ("keys", "values"):
        for layer in range(lm.config.num_hidden_layers):
            for cache in (two, three):
                assert_close(name, to_host(cache[name][layer]), to_host(one[name][layer]))
    assert one["length"] == two["length"] == three["length"] == 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_narrow_cache_is_written_in_its_width(dtype):
    lm, ids = random_lm(NUMPY, sliding_window=3), random_ids(tiny_config(), 6)
    caches = [empty_cache(lm.config, 8, like=lm.weights.norm, dtype=dtype) for _ in range(2)]
    expected, _ = pass_by_pass(lm, ids, transform, (2, 1, 1, 1, 1), caches[0])
    made, _ = pass_by_pass(lm, ids, replayed(transform, kernel_twins), (2, 1, 1, 1, 1), caches[1])
    assert caches[1]["keys"][0].dtype == dtype
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 if dtype == np.float16 else 1e-5)


@pytest.fixture
def counted(monkeypatch):
    """How often kernels would be launched for a block, or for a whole step."""
    calls = {"block": 0, "step": 0}

    def block_step(*arguments, **options):
        calls["block"] += 1
        return step(*arguments, **options)

    class Step(module.DecodeStep):
        def run(self, *arguments):
            calls["step"] += 1
            return super().run(*arguments)

    step = module.block_step
    monkeypatch.setattr(module, "block_step", block_step)
    monkeypatch.setattr(module, "DecodeStep", Step)
    return calls


def test_one_token_after_a_cache_goes_through_the_kernels(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 4)
    pass_by_pass(lm, ids, partial(transform, block=TWIN_BLOCK), (2, 1, 1))
    assert counted == {"block": 2 * 2, "step": 0}
    pass_by_pass(lm, ids, replayed(transform, kernel_twins), (2, 1, 1))
    assert counted == {"block": 4 * 2, "step": 2}


def doubled(q, k, v, visible, *, tap):
    return 2 * attention(q, k, v, visible, tap=tap)


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
    for whole_pass in (transform, replayed(transform, kernel_twins)):
        _, cache = pass_by_pass(lm, ids[:2], transform, (2,))
        made.append(pass_by_pass(lm, ids[2:], whole_pass, (1,), cache, **options)[0][0])
        caches.append(cache)
    np.testing.assert_array_equal(*made)
    assert counted == {"block": 0, "step": 0}
    assert "step" not in caches[1]
    assert caches[1]["length"] == 3


@pytest.mark.parametrize(
    "options",
    [{"tap": lambda name, value: value}, {"attention": doubled}, {"visible": np.array([[True, False, True]])}, {}],
    ids=["tap", "attention", "visible", "nothing"],
)
def test_the_second_block_heeds_its_arguments(counted, options):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    made = []
    for block in ({}, {"block": TWIN_BLOCK}):
        _, cache = pass_by_pass(lm, ids[:2], transform, (2,))
        made.append(pass_by_pass(lm, ids[2:], transform, (1,), cache, **options, **block)[0][0])
    assert_close("hidden", made[1], made[0])
    assert counted["block"] == (0 if "tap" in options or "attention" in options else 2)


def test_a_batch_and_a_pass_without_cache_take_the_plain_block(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 2, 1)
    cache = empty_cache(lm.config, 3, (2,), like=lm.weights.norm)
    for whole_pass in (partial(transform, block=TWIN_BLOCK), replayed(transform, kernel_twins)):
        cache["length"] = 0
        np.testing.assert_array_equal(whole_pass(ids, lm.weights, lm.config, cache)[0], npllm.transform(ids, lm)[0])
        np.testing.assert_array_equal(whole_pass(ids[0], lm.weights, lm.config)[0], npllm.transform(ids[0], lm)[0])
    assert counted == {"block": 0, "step": 0}


def test_a_batch_of_one_goes_through_the_kernels(counted):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 1, 1)
    one, two = (empty_cache(lm.config, 3, (1,), like=lm.weights.norm) for _ in range(2))
    got, _ = npllm.transform(ids, lm, one, block=TWIN_BLOCK)
    assert_close("hidden", got, npllm.transform(ids, lm, two)[0])
    assert counted == {"block": 2, "step": 0}


def test_a_step_changes_none_of_its_arguments():
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 2)
    x = np.ones((1, 8), dtype=np.float32)
    _, cache = pass_by_pass(lm, ids, transform, (2,))
    tables = rope_tables(np.array([2]), lm.config, 3)
    TWIN_BLOCK(x, lm.weights.layers[0], lm.config, *tables, None, cache, 0)
    np.testing.assert_array_equal(x, 1)


def test_each_step_returns_memory_of_its_own():
    """Not the buffer that the next step writes to."""
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 3)
    cache = empty_cache(lm.config, 3, like=lm.weights.norm)
    whole_pass = replayed(transform, kernel_twins)
    hidden, copies = [], []
    for i in range(3):
        hidden.append(whole_pass(ids[i : i + 1], lm.weights, lm.config, cache)[0])
        copies.append(hidden[-1].copy())
    for a, b in zip(hidden, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_forgetting_tokens_sets_the_counter_back(lengths):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 7)
    _, cache = pass_by_pass(lm, ids[:6], transform, (6,))
    whole_pass = replayed(transform, kernel_twins)
    for length in lengths:
        cache["length"] = min(length, cache["length"])
        past = cache["length"]
        made, _ = whole_pass(ids[past : past + 1], lm.weights, lm.config, cache)
        _, again = pass_by_pass(lm, ids[:past], transform, (past,) if past else ())
        again["keys"] = [side.copy() for side in again["keys"]]
        assert_close("hidden", made, pass_by_pass(lm, ids[past:], transform, (1,), again)[0][0])


def test_another_cache_or_a_grown_one_is_captured_anew():
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 5)
    whole_pass = replayed(transform, kernel_twins)
    expected, _ = pass_by_pass(lm, ids, transform, (1,) * 5)
    cache = empty_cache(lm.config, 2, like=lm.weights.norm)
    made, _ = pass_by_pass(lm, ids, whole_pass, (1, 1), cache)
    step = cache["step"]
    grow(cache, 5)
    more, _ = pass_by_pass(lm, ids[2:], whole_pass, (1, 1, 1), cache)
    for a, b in zip(made + more, expected, strict=True):
        assert_close("hidden", a, b)
    assert cache["step"] is not step
    other = empty_cache(lm.config, 5, like=lm.weights.norm)
    assert_close("hidden", pass_by_pass(lm, ids, whole_pass, (1,), other)[0][0], expected[0])


def test_the_steps_after_an_interrupted_one_are_right(monkeypatch):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 4)
    expected, _ = pass_by_pass(lm, ids, transform, (1,) * 4)
    whole_pass = replayed(transform, kernel_twins)
    made, cache = pass_by_pass(lm, ids[:2], whole_pass, (1, 1), empty_cache(lm.config, 4, like=lm.weights.norm))
    advance = kernel_twins.advance

    def interrupted(past):
        advance(past)
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_twins, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole_pass(ids[2:3], lm.weights, lm.config, cache)
    assert cache["length"] == 2
    monkeypatch.setattr(kernel_twins, "advance", advance)
    more, _ = pass_by_pass(lm, ids[2:], whole_pass, (1, 1), cache)
    for a, b in zip(made + more, expected, strict=True):
        assert_close("hidden", a, b)


@pytest.mark.parametrize("whole_pass", [partial(transform, block=TWIN_BLOCK), replayed(transform, kernel_twins)])
def test_a_full_cache_is_refused(whole_pass):
    lm, ids = random_lm(NUMPY), random_ids(tiny_config(), 1)
    cache = empty_cache(lm.config, 3, like=lm.weights.norm)
    cache["length"] = 3
    with pytest.raises(ValueError, match="KV cache: expected room for 4 tokens, got 3"):
        whole_pass(ids, lm.weights, lm.config, cache)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_the_loop_makes_the_same_tokens(counted, tied, window):
    lm = random_lm(NUMPY, tie_word_embeddings=tied, sliding_window=window)
    other = with_kernels(lm, kernel_twins)
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
    head, x = KernelHead(weight, kernel_twins), matrix(3, 8, seed=1)
    assert isinstance(head, Packed)
    assert (head.shape, head.dtype, head.nbytes) == ((11, 8), np.float16, 2 * 11 * 8)
    assert_close("one", linear(x[:1], head), x[:1] @ weight.astype(np.float32).T)
    np.testing.assert_array_equal(linear(x, head), linear(x, weight))
    np.testing.assert_array_equal(head.rows(np.array([3, 0])), weight[[3, 0]].astype(np.float32))


# The logits that a step leaves for the LM head


@pytest.fixture
def products(monkeypatch):
    """The widths that come out of the products, one after the other; only the head's is that of the vocabulary."""
    heights, matvec = [], kernel_twins.matvec

    def looking(x, weight, bias, residual, out):
        heights.append(weight.shape[0])
        matvec(x, weight, bias, residual, out)

    monkeypatch.setattr(kernel_twins, "matvec", looking)
    return heights


def lm_with_twins(**keys):
    """A model whose steps are made of the kernels' definitions, and room for five tokens of it."""
    lm = with_kernels(random_lm(NUMPY, **keys), kernel_twins)
    return lm, random_ids(lm.config, 5), empty_cache(lm.config, 5, like=lm.weights.norm)


def vector(lm, ids, cache):
    """One step."""
    return npllm.transform(ids[cache["length"] :][:1], lm, cache)[0]


def check_logits(lm, hidden):
    """What `lm_head` gives is the product of just this vector."""
    assert_close("logits", npllm.lm_head(hidden, lm), linear(hidden, lm.weights.lm_head.weight))


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_multiplied_once_for_a_token_and_in_the_step(products, tied):
    lm, ids, cache = lm_with_twins(tie_word_embeddings=tied)
    plain, other = random_lm(NUMPY, tie_word_embeddings=tied), empty_cache(lm.config, 5, like=ids)
    for count in range(1, 6):
        products.clear()
        hidden = vector(lm, ids, cache)
        assert products.count(lm.config.vocab_size) == 1
        logits = npllm.lm_head(hidden[-1:, :], lm)
        assert npllm.lm_head(hidden, lm).shape == (1, lm.config.vocab_size)
        assert products.count(lm.config.vocab_size) == 1
        assert_close("logits", logits, next_logits(plain, ids[:count].tolist(), other))


def test_logits_that_are_kept_stay_as_they_are():
    lm, ids, cache = lm_with_twins()
    kept = [next_logits(lm, ids[:count].tolist(), cache) for count in range(1, 6)]
    expected, _ = npllm.forward(ids, lm)
    for made, wanted in zip(kept, expected, strict=True):
        assert_close("logits", made[0], wanted)


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_vector_that_was_changed_in_place_gets_logits_of_its_own(products, place):
    lm, ids, cache = lm_with_twins()
    hidden = vector(lm, ids, cache)
    products.clear()
    hidden[0, place] += 1.0
    check_logits(lm, hidden)
    assert products == [lm.config.vocab_size]
    hidden[0, place] = np.nan
    assert np.isnan(npllm.lm_head(hidden, lm)).all()


def test_a_vector_of_another_pass_gets_logits_of_its_own():
    lm, ids, cache = lm_with_twins()
    earlier = vector(lm, ids, cache)
    later = vector(lm, ids, cache)
    prompt, _ = npllm.transform(ids[:3], lm)
    tapped, _ = npllm.transform(ids[2:3], lm, cache, tap=lambda name, value: value * 1.5)
    for hidden in (earlier, later, prompt, prompt[-1:], tapped, -later, later * 0, later[None]):
        check_logits(lm, hidden)


def test_two_texts_that_take_turns_get_logits_of_their_own():
    lm, ids, one = lm_with_twins()
    two = empty_cache(lm.config, 5, like=ids)
    last = {}
    for name, cache in (("one", one), ("two", two), ("two", two), ("one", one)):
        last[name] = vector(lm, ids if name == "one" else ids[::-1], cache)
        for hidden in last.values():
            check_logits(lm, hidden)
    made = {}
    texts = {"one": npllm.steps(lm, [1, 2], max_new_tokens=6), "two": npllm.steps(lm, [3], max_new_tokens=6)}
    for step_of_one, step_of_two in zip(*texts.values(), strict=True):
        made.setdefault("one", []).append(step_of_one.id)
        made.setdefault("two", []).append(step_of_two.id)
    for name, prompt in (("one", [1, 2]), ("two", [3])):
        assert made[name] == npllm.generate(random_lm(NUMPY), prompt, max_new_tokens=6).ids


def test_after_a_grown_a_shortened_or_a_dropped_cache_the_logits_are_right():
    lm, ids, cache = lm_with_twins()
    vectors = [vector(lm, ids, cache) for _ in range(3)]
    grow(cache, 9)
    vectors.append(vector(lm, ids, cache))
    cache["length"] = 1
    vectors += [vector(lm, ids, cache) for _ in range(2)]
    del cache
    other = empty_cache(lm.config, 5, like=ids)
    vectors.append(vector(lm, ids[::-1], other))
    del other
    for hidden in vectors:
        check_logits(lm, hidden)


@pytest.mark.parametrize(("name", "times"), [("embed", 1), ("rms_norm", 5), ("matvec", 7), ("advance", 1)])
def test_after_an_interrupted_step_the_logits_are_right(monkeypatch, name, times):
    """Wherever it was interrupted, and also for the vector that it had come to."""
    lm, ids, cache = lm_with_twins()
    launch = getattr(kernel_twins, name)
    for at in range(times):
        cache["length"], calls = 0, itertools.count()
        before = [vector(lm, ids, cache) for _ in range(2)]

        def interrupted(*arguments, at=at, calls=calls):
            if next(calls) == at:
                raise KeyboardInterrupt
            launch(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(kernel_twins, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                vector(lm, ids, cache)
        for hidden in (*before, cache["step"].hidden[None, :].copy()):
            check_logits(lm, hidden)
        check_logits(lm, vector(lm, ids, cache))


def test_a_model_that_classifies_ends_its_steps_at_the_final_norm(products):
    lm = random_lm(NUMPY)
    lm = lm._replace(weights=lm.weights._replace(lm_head=None, score=lm.weights.lm_head))
    twins, ids = with_kernels(lm, kernel_twins), random_ids(lm.config, 5)
    expected, _ = pass_by_pass(lm, ids, transform, (2, 1, 1, 1))
    made, cache = pass_by_pass(twins, ids, twins.transform, (2, 1, 1, 1))
    for a, b in zip(made, expected, strict=True):
        assert_close("hidden", a, b)
    assert "step" in cache
    assert lm.config.vocab_size not in products
    with pytest.raises(UsageError, match="no LM head"):
        npllm.lm_head(made[-1], twins)


def test_another_head_in_the_models_place_is_heeded():
    lm, ids, cache = lm_with_twins()
    hidden = vector(lm, ids, cache)
    other = matrix(lm.config.vocab_size, lm.config.hidden_size, seed=7)
    for head in (other, KernelHead(other, kernel_twins)):
        weights = lm.weights._replace(lm_head=head)
        assert_close("logits", lm_head(hidden, weights, config), linear(hidden, other))
        again, _ = lm.transform(ids[1:2], weights, lm.config, cache)
        assert_close("logits", lm_head(again, weights, config), linear(again, other))


@pytest.mark.parametrize(
    ("keys", "fit"),
    [
        ({}, True),
        ({"head_dim": 96, "num_attention_heads": 32, "num_key_value_heads": 32}, True),  # Phi-3-mini
        ({"head_dim": 128, "num_attention_heads": 40, "num_key_value_heads": 10}, True),  # Phi-3-medium
        ({"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 1}, True),
        ({"head_dim": 6}, False),  # not whole fours
        ({"hidden_size": 18}, False),
        ({"head_dim": 512}, False),  # more dimensions than threads
        ({"head_dim": 128, "num_attention_heads": 64, "num_key_value_heads": 1}, False),  # too much shared memory
    ],
)
def test_which_models_the_kernels_fit(keys, fit):
    lm = random_lm(NUMPY, **keys)
    assert kernels.fits(lm.config) == fit
    assert (with_kernels(lm, kernel_twins) is lm) == (not fit)


def test_another_architecture_keeps_its_own_pass():
    config = tiny_gpt2_config()
    lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
    assert with_kernels(lm, kernel_twins) is lm


@pytest.mark.parametrize(
    ("array", "dtypes", "what"),
    [
        (np.zeros(4), (), "float64"),
        (np.zeros(5, np.float32), (), "4 numbers of float32"),
        (np.zeros(8, np.float32)[::2], (), "strides"),
        (np.zeros(4, np.float32), ("int32", "int64"), "int32 or int64"),
    ],
)
def test_a_kernel_refuses_memory_that_it_would_misread(array, dtypes, what):
    with pytest.raises(TypeError, match=what):
        kernels.checked(array, 4, *dtypes)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("height", [1, 17, 100])
def test_a_weight_laid_out_row_by_row_has_the_same_numbers(kind, group, height):
    groups = pack(matrix(height, 96), kind, WORKERS[0], group)
    rows, x = row_groups(groups), matrix(3, 96, seed=1)
    assert isinstance(rows, Packed)
    assert (rows.shape, rows.dtype, rows.group) == (groups.shape, groups.dtype, group)
    assert rows.nbytes <= groups.nbytes
    assert rows.scale.dtype == np.uint16
    np.testing.assert_array_equal(rows.rows(np.arange(height)), dense(groups))
    assert_close(kind, linear(x, rows), x @ dense(groups).T)
    np.testing.assert_array_equal(rows.rows(np.array([height - 1, 0])), dense(groups)[[-1, 0]])


def test_a_weight_is_widened_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(cuda_weights, "WIDENED", 300)
    rows, x = row_groups(pack(matrix(50, 64), "int4", WORKERS[0])), matrix(4, 64, seed=1)
    assert_close("int4", rows.matmul(x), x @ rows.rows(np.arange(50)).T)


@pytest.mark.parametrize(("bits", "offset", "group"), [(8, -16, 32), (8, -32, 16), (4, -8, 32), (4, 0, 16)])
@pytest.mark.parametrize("has_minimum", [True, False])
def test_offsets_minima_and_groups_of_16_as_gguf_files_have_them(bits, offset, group, has_minimum):
    groups = random_groups(bits, offset, group, has_minimum)
    np.testing.assert_array_equal(row_groups(groups).rows(np.arange(20)), dense(groups))


def random_groups(bits, offset, group, has_minimum, height=20, width=96, seed=0):
    """Any codes, scales and minima."""
    random, shape = np.random.default_rng(seed), (height, width // group)
    made = empty_groups(height, width, bits, group, offset, has_minimum, WORKERS[0])
    low, high = (0, 2**bits) if bits == 4 or offset else (-127, 128)
    codes = random.integers(low, high, (*shape, group)).astype(made.codes.dtype)
    scale, minimum = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    fill_groups(made, 0, codes, scale, minimum if has_minimum else None)
    return made
