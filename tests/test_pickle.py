"""Models are sent to other processes and copied: with pickle (spawn, Ray) and copy.deepcopy."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from checkpoints import write_folder, write_gguf
from families import NAMES, WRITERS, random_lm

import npllm
from npllm.apps.speculation import draft_model

SAMPLED = {"max_new_tokens": 6, "temperature": 1.0, "seed": 1}
COPIES = {"pickle": lambda lm: pickle.loads(pickle.dumps(lm)), "deepcopy": copy.deepcopy}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path)
    return path


def ids_of(lm, ids):
    """The generated ids, in another process."""
    return npllm.generate(lm, ids, **SAMPLED).ids


@pytest.mark.parametrize(("name", "how"), [*((name, "pickle") for name in NAMES), ("llama", "deepcopy")])
def test_a_copy_of_a_model_makes_the_same_tokens(name, how):
    lm = random_lm(name)
    other = COPIES[how](lm)
    assert other.config == lm.config
    if name in WRITERS:
        assert ids_of(other, [1, 2]) == ids_of(lm, [1, 2])
    np.testing.assert_array_equal(npllm.forward([1, 2], other)[0], npllm.forward([1, 2], lm)[0])


DTYPES = ["float32", "float16", "bfloat16", "int8", "int4"]


@pytest.mark.parametrize(("dtype", "how"), [*((dtype, "pickle") for dtype in DTYPES), ("int4", "deepcopy")])
def test_a_copy_has_the_weights_as_they_are_stored_and_threads_of_its_own(folder, dtype, how):
    lm = npllm.load(folder, dtype=dtype)
    lm = lm._replace(tokenizer=without_template(lm.tokenizer))
    other = COPIES[how](lm)
    assert npllm.generate(other, "and the 12", **SAMPLED) == npllm.generate(lm, "and the 12", **SAMPLED)
    packed = [weight for weight in other.weights.layers[0] if hasattr(weight, "workers")]
    assert len({id(weight.workers) for weight in packed}) == bool(packed), "one pool for all weights"
    for weight, theirs in zip(other.weights.layers[0], lm.weights.layers[0], strict=True):
        assert not hasattr(weight, "workers") or (weight.nbytes, weight.dtype) == (theirs.nbytes, theirs.dtype)
        assert not hasattr(weight, "workers") or weight.workers is not theirs.workers


def without_template(tokenizer):
    """The tokenizer without its chat template, if the function that renders it cannot be copied."""
    try:
        pickle.dumps(tokenizer)
    except (AttributeError, pickle.PicklingError):
        return npllm.tokenizer.Tokenizer(tokenizer.backend, tokenizer.end_ids)
    return tokenizer


def test_tied_weights_stay_one_array():
    lm = random_lm("llama", tie_word_embeddings=True)
    assert lm.weights.lm_head is lm.weights.embed_tokens
    for make in COPIES.values():
        other = make(lm)
        assert other.weights.lm_head is other.weights.embed_tokens


@pytest.mark.parametrize("how", COPIES)
def test_a_gguf_file(tmp_path, how):
    write_gguf(tmp_path / "m.gguf", dtype="Q8_0")
    lm = npllm.load(tmp_path / "m.gguf", dtype="auto")
    lm = lm._replace(tokenizer=without_template(lm.tokenizer))
    assert npllm.generate(COPIES[how](lm), "and", **SAMPLED) == npllm.generate(lm, "and", **SAMPLED)


def test_a_cache_can_be_copied_and_continued():
    lm = random_lm("llama")
    cache = npllm.cache.empty_cache(lm.config, 20, like=lm.weights.norm)
    first = npllm.generate(lm, [1, 2], max_new_tokens=4, cache=cache)
    text = [1, 2, *first.ids]
    for make in COPIES.values():
        made = npllm.generate(lm, text, max_new_tokens=3, cache=make(cache))
        assert made == npllm.generate(lm, text, max_new_tokens=3)


def test_the_errors_and_results_can_be_sent_back():
    error = npllm.errors.UsageError("x: expected 1, got 2")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    made = npllm.generate(random_lm("llama"), [1], max_new_tokens=2)
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_copied_model_drafts():
    lm, small = (pickle.loads(pickle.dumps(random_lm("llama", seed=seed))) for seed in (0, 1))
    assert npllm.generate(lm, [1, 2], max_new_tokens=5, tokens=draft_model(small)).ids == ids_of_greedy(lm)


def ids_of_greedy(lm):
    return npllm.generate(lm, [1, 2], max_new_tokens=5).ids


@pytest.mark.slow
def test_a_spawned_process_makes_the_same_tokens(folder):
    models = [random_lm(name) for name in ("llama", "gpt2")]
    models += [npllm.load(folder, dtype=dtype)._replace(tokenizer=None) for dtype in ("float32", "float16", "int4")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for lm in models:
            assert pool.submit(ids_of, lm, [1, 2]).result(timeout=120) == ids_of(lm, [1, 2])
