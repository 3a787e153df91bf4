"""A decode step in loops is the pass of the model's family; without Numba, the loops run as plain Python."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_folder
from default_model import needs_default_model
from families import NAMES, WRITERS, random_lm
from tolerance import assert_same_ids

import npllm
from npllm.block import block
from npllm.cache import empty_cache, grow
from npllm.compiled import cpu
from npllm.compiled.cpu import CompiledPass, Tables, on_cpu, path_of, tokens_of, with_loops
from npllm.compiled.fit import RECIPES, other_shapes, unknown_weights
from npllm.compiled.jit import COMPILES
from npllm.compiled.records import Unsupported
from npllm.compiled.step import LARGEST
from npllm.errors import UsageError
from npllm.masks import aligned_mask

needs_numba = pytest.mark.skipif(not COMPILES, reason="the loops need Numba (pip install -e '.[fast]')")

IN_LOOPS = {"phi3", "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3"}
CHUNKS = [3, 1, 1, 2, 1, 5, 1] if COMPILES else [3, 1, 2]  # plain Python is thousands of times slower


def hidden_states(lm, ids, chunks=CHUNKS, cache=None, **options):
    """The hidden states of a text, read in chunks."""
    cache = empty_cache(lm.config, 40, like=lm.weights.norm, **options) if cache is None else cache
    parts, first = [], 0
    for size in chunks:
        hidden, _ = npllm.transform(ids[first : first + size], lm, cache)
        parts.append(hidden)
        first += size
    return np.concatenate(parts), cache


def ids_for(lm, count=None, seed=0):
    return [int(i) for i in np.random.default_rng(seed).integers(0, lm.config.vocab_size, count or sum(CHUNKS))]


def assert_same(fast, lm, ids, **options):
    (ours, cache), (theirs, expected) = hidden_states(fast, ids, **options), hidden_states(lm, ids, **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())
    for side in ("keys", "values"):
        for mine, yours in zip(cache[side], expected[side], strict=True):
            wide = np.asarray(yours, dtype=np.float32)
            rounding = 2e-5 if mine.dtype == np.float32 else 2e-2
            np.testing.assert_allclose(np.asarray(mine, dtype=np.float32), wide, atol=rounding * np.abs(wide).max())
    assert cache["length"] == len(ids)
    return cache


@pytest.mark.parametrize("name", WRITERS)
def test_a_step_is_the_family_s_pass(name):
    lm = random_lm(name)
    fast = with_loops(lm)
    cache = assert_same(fast, lm, ids_for(lm))
    in_loops = isinstance(fast.transform, CompiledPass)
    assert in_loops == (name in IN_LOOPS)
    assert isinstance(cache.get("step"), Tables) == in_loops


@needs_numba
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", sorted(IN_LOOPS & {*NAMES}))
def test_it_is_so_for_other_models_of_the_family(name, seed):
    lm = random_lm(name, seed=seed + 1)
    assert_same(with_loops(lm), lm, ids_for(lm, seed=seed))


def test_each_pass_with_a_recipe_is_a_family_s():
    passes = {id(random_lm(name).transform) for name in WRITERS}
    assert all(id(transform) in passes for transform, _ in RECIPES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_16_bits(dtype):
    lm = random_lm("llama")
    assert_same(with_loops(lm), lm, ids_for(lm), dtype=np.float16 if dtype == "float16" else ml_dtypes.bfloat16)


@needs_numba
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_a_loaded_model(tmp_path, dtype):
    write_folder(tmp_path / "tiny")
    fast, lm = (npllm.load(tmp_path / "tiny", dtype=dtype, kernels=kernels) for kernels in (True, False))
    assert isinstance(fast.transform, CompiledPass)
    assert not isinstance(lm.transform, CompiledPass)
    assert_same(fast, lm, ids_for(lm))
    logits, _ = npllm.forward([1, 2, 3], fast)
    expected, _ = npllm.forward([1, 2, 3], lm)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.skipif(COMPILES, reason="compiled code has the constant")
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_several_chunks_of_keys(name, monkeypatch):
    for module in ("cpu", "step"):
        monkeypatch.setattr(f"npllm.compiled.{module}.CHUNK", 2)
    lm = random_lm(name)
    assert_same(with_loops(lm), lm, ids_for(lm))


@needs_numba
def test_longer_than_a_chunk_of_keys():
    lm = random_lm("llama", max_position_embeddings=700)
    fast = with_loops(lm)
    ids = ids_for(lm, 600)
    caches = [empty_cache(lm.config, 610, like=lm.weights.norm) for _ in range(2)]
    ours, theirs = (
        hidden_states(one, ids, [250, 340, 1, 4, 5], cache) for one, cache in zip((fast, lm), caches, strict=True)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=2e-5 * np.abs(theirs[0]).max())


@needs_numba
def test_the_same_tokens():
    for name in sorted(IN_LOOPS & {*WRITERS}):
        lm = random_lm(name)
        assert (
            npllm.generate(with_loops(lm), [1, 2], max_new_tokens=12).ids
            == npllm.generate(lm, [1, 2], max_new_tokens=12).ids
        )


@needs_numba
@needs_default_model
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "chat"])
def test_the_default_model_writes_what_transformers_writes(kind):
    lm = npllm.load()
    assert isinstance(lm.transform, CompiledPass)
    for run in json.loads((Path(__file__).parent / "golden/default-model/expected.json").read_text())[kind]:
        made = npllm.generate(lm, run["ids"], max_new_tokens=len(run["greedy_ids"]))
        assert_same_ids(run["prompt"], made.ids, run["greedy_ids"], run["gaps"])


def counted(fast, monkeypatch):
    """How often the family's pass ran in place of a step."""
    calls = []
    whole = fast.transform.whole_pass
    monkeypatch.setattr(
        fast.transform, "whole_pass", lambda *args, **options: calls.append(1) or whole(*args, **options)
    )
    return calls


def test_what_the_family_s_pass_computes(monkeypatch):
    lm = random_lm("llama")
    fast = with_loops(lm)
    calls = counted(fast, monkeypatch)

    def passes(ids, cache, **options):
        calls.clear()
        npllm.transform(ids, fast, cache, **options)
        return len(calls)

    def cache():
        return empty_cache(lm.config, 40, like=lm.weights.norm)

    assert passes([1], cache()) == 0
    assert passes([1] * LARGEST, cache()) == 0
    assert passes([1] * (LARGEST + 1), cache()) == 0
    assert passes([1], None) == 1
    assert passes([1], cache(), tap=lambda name, value: value) == 1
    assert passes([1], cache(), positions=[4]) == 1
    assert passes([1], cache(), visible=np.ones((1, 1), bool)) == 1
    assert passes([[1]], empty_cache(lm.config, 4, (1,), like=lm.weights.norm)) == 1


FIRST = np.array([0, 2, 6])  # the slots in which three texts begin


def batch_of(lm, past=6, window=True):
    """Arguments of a pass over the last token of three texts that are aligned at their ends."""
    random = np.random.default_rng(0)
    cache = empty_cache(lm.config, 9, (3,), like=lm.weights.norm) | {"length": past}
    for array in (*cache["keys"], *cache["values"]):
        array[..., :past, :] = random.standard_normal(array[..., :past, :].shape)
    keys = np.arange(past + 1) - FIRST[:, None]
    windows = [lm.config.window(layer) if window else None for layer in range(lm.config.num_hidden_layers)]
    masks = {one: aligned_mask(keys, one) for one in {*windows}}
    return [[3], [1], [4]], cache, {"positions": keys[:, -1:], "visible": [masks[one] for one in windows]}


@pytest.mark.parametrize("name", sorted(IN_LOOPS & {*WRITERS}))
def test_a_token_of_each_text_of_a_batch(name, monkeypatch):
    lm = random_lm(name)
    fast = with_loops(lm)
    calls = counted(fast, monkeypatch)
    (ids, mine, options), (_, theirs, _) = batch_of(lm), batch_of(lm)
    for total in (None, 7):
        mine["length"] = theirs["length"] = 6
        ours, expected = (
            npllm.transform(ids, one, cache, total_length=total, **options)[0]
            for one, cache in ((fast, mine), (lm, theirs))
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert mine["length"] == 7
    for one, other in zip(mine["keys"] + mine["values"], theirs["keys"] + theirs["values"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert calls == []


def test_the_records_of_a_batch():
    lm = random_lm("gemma3_text")
    ids, cache, options = batch_of(lm)
    tokens = tokens_of(np.array(ids), lm.config, cache, options)
    assert tokens.tolist() == [(0, 6, 0), (1, 6, 2), (2, 6, 6)]


def test_other_batches_are_left_to_the_family_s_pass():
    lm = random_lm("phi3")

    def known(change=(), drop=(), window=True, ids=None):
        given, cache, options = batch_of(lm, window=window)
        options = {name: value for name, value in (options | dict(change)).items() if name not in drop}
        return tokens_of(np.array(ids or given), lm.config, cache, options) is not None

    masks = batch_of(lm)[2]["visible"]
    another = masks[0].copy()
    another[1, 0, 5] ^= True
    ends = {"positions": np.zeros((3, 2), int), "visible": None}
    assert known()
    assert not known(window=False), "the masks of a model without windows"
    assert not known({"visible": [*masks[:-1], another]})
    assert not known({"visible": masks[0]})
    assert not known({"positions": np.array([[6], [4], [1]])})
    assert not known({"positions": np.array([[7], [4], [0]])})
    assert not known({"block": block})
    assert not known(drop=["positions"])
    assert not known(drop=["visible"])
    assert not known(ends, ids=[[1, 2]] * 3)
    assert not known(ids=[[1], [2]])


def test_more_texts_than_the_loops_take(monkeypatch):
    monkeypatch.setattr(cpu, "LARGEST", 2)
    lm = random_lm("phi3")
    ids, cache, options = batch_of(lm)
    assert tokens_of(np.array(ids), lm.config, cache, options) is None


def test_a_full_cache_is_refused_as_ever():
    lm = random_lm("llama")
    cache = empty_cache(lm.config, 2, like=lm.weights.norm)
    with pytest.raises((UsageError, ValueError), match="room for 3"):
        npllm.transform([1, 2, 3], with_loops(lm), cache)
    assert cache["length"] == 0


def test_a_cache_that_has_grown():
    lm = random_lm("llama")
    fast = with_loops(lm)
    ids = ids_for(lm)
    _, cache = hidden_states(fast, ids)
    before = cache["step"]
    grow(cache, 50)
    ours, _ = npllm.transform([3], fast, cache)
    assert cache["step"] is not before
    expected, _ = npllm.transform([*ids, 3], lm)
    np.testing.assert_allclose(ours[-1], expected[-1], rtol=1e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_do_not_share_addresses(how):
    lm = random_lm("llama")
    fast = with_loops(lm)
    _, cache = hidden_states(fast, ids_for(lm))
    other_lm, other = how((fast, cache))
    assert other["step"] is None
    npllm.transform([3], other_lm, other)
    assert other["length"] == cache["length"] + 1
    position = cache["length"]
    assert not cache["keys"][0][..., position, :].any(), "the copy wrote into the original"


def test_other_weights_than_those_it_was_made_for():
    lm = random_lm("llama")
    fast, ids = with_loops(lm), ids_for(lm)
    _, cache = hidden_states(fast, ids)
    layers = tuple(layer._replace(down_proj=layer.down_proj * 2) for layer in lm.weights.layers)
    changed = fast._replace(weights=fast.weights._replace(layers=layers))
    assert_same(changed, lm._replace(weights=lm.weights._replace(layers=layers)), ids)
    cache["length"] = 3
    ours, _ = npllm.transform([5], changed, cache)
    expected = hidden_states(lm, [*ids[:3]], [3])[1]
    theirs, _ = npllm.transform([5], lm._replace(weights=lm.weights._replace(layers=layers)), expected)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


def test_a_weight_that_the_loops_do_not_know_is_left_to_the_family_s_pass(monkeypatch):
    lm = random_lm("llama")
    fast = with_loops(lm)
    changed = fast.weights._replace(lm_head_bias=np.ones(lm.config.vocab_size, np.float32))
    assert unknown_weights(changed, fast.transform.recipe) == ["lm_head_bias"]
    calls = counted(fast, monkeypatch)
    npllm.transform([1], fast._replace(weights=changed), empty_cache(lm.config, 4, like=lm.weights.norm))
    assert calls == [1]


@pytest.mark.parametrize("name", ["qkv_proj", "qkv_proj_bias", "down_proj", "input_layernorm"])
def test_shapes_are_checked_before_a_loop_reads_beyond_an_end(name):
    """The family's pass refuses them."""
    lm = with_loops(random_lm("llama"))
    short = getattr(lm.weights.layers[1], name)[:-1]
    layers = [*lm.weights.layers]
    layers[1] = layers[1]._replace(**{name: short})
    changed = lm._replace(weights=lm.weights._replace(layers=tuple(layers)))
    cache = empty_cache(lm.config, 4, like=lm.weights.norm)
    assert other_shapes(changed.weights, lm.config, cache, lm.transform.recipe) == [f"layers.1.{name}"]
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        npllm.transform([1], changed, cache)
    assert isinstance(cache["step"], Unsupported)


def test_the_shapes_of_a_cache_are_checked():
    lm = with_loops(random_lm("llama"))
    cache = empty_cache(lm.config, 4, like=lm.weights.norm)
    cache["values"][2] = cache["values"][2][:, :3]
    assert other_shapes(lm.weights, lm.config, cache, lm.transform.recipe) == ["values.2"]


def test_the_arrays_of_a_cache_have_one_dtype():
    lm = with_loops(random_lm("llama"))
    cache = empty_cache(lm.config, 4, like=lm.weights.norm)
    cache["values"][1] = cache["values"][1].astype(np.float16)
    assert other_shapes(lm.weights, lm.config, cache, lm.transform.recipe) == ["values.1"]


def test_a_cache_in_float64_is_left_to_the_family_s_pass(monkeypatch):
    lm = with_loops(random_lm("llama"))
    cache = empty_cache(lm.config, 4, like=lm.weights.norm, dtype=np.float64)
    calls = counted(lm, monkeypatch)
    lm.transform(np.array([1]), lm.weights, lm.config, cache)
    assert calls == [1]
    monkeypatch.setattr(cpu, "Tables", None)  # the reason is found once
    lm.transform(np.array([1]), lm.weights, lm.config, cache)
    assert calls == [1, 1]


@needs_numba
def test_a_weight_without_a_loop_is_multiplied_by_numpy(tmp_path):
    write_folder(tmp_path / "tiny")
    weight = npllm.load(tmp_path / "tiny", dtype="int8").weights.layers[0].down_proj
    x = np.ones((1, weight.shape[1]), np.float32)
    other = copy.copy(weight)
    other.codes = np.abs(weight.codes).astype(np.uint8)
    positive = copy.copy(weight)
    positive.codes = np.abs(weight.codes)
    np.testing.assert_allclose(other.matmul(x), positive.matmul(x), rtol=1e-5)
    assert other.record is None


def test_float64_weights_are_left_to_the_family_s_pass(monkeypatch):
    lm = random_lm("llama")
    layers = tuple(layer._replace(o_proj=layer.o_proj.astype(np.float64)) for layer in lm.weights.layers)
    fast = with_loops(lm._replace(weights=lm.weights._replace(layers=layers)))
    calls = counted(fast, monkeypatch)
    npllm.transform([1], fast, empty_cache(lm.config, 4, like=lm.weights.norm))
    assert calls == [1]
    assert path_of(fast) == "NumPy"


def test_a_step_that_no_loop_computes_is_not_called_compiled(tmp_path):
    write_folder(tmp_path / "tiny")
    fast = with_loops(npllm.load(tmp_path / "tiny", dtype="int8"))
    assert path_of(fast) == "compiled loops"
    layers = tuple(layer._replace(o_proj=np.eye(64)) for layer in fast.weights.layers)
    other = fast._replace(weights=fast.weights._replace(layers=layers))
    assert path_of(other) == "compiled products, the rest in NumPy"


def test_without_kernels_nothing_changes():
    lm = random_lm("llama")
    assert on_cpu(lm, kernels=False) is lm
    assert path_of(lm) == "NumPy"
    assert COMPILES or on_cpu(lm) is lm


def test_tied_embeddings_stay_tied():
    lm = random_lm("llama", tie_word_embeddings=True)
    fast = with_loops(lm)
    assert lm.weights.lm_head is lm.weights.embed_tokens
    assert fast.weights.lm_head is fast.weights.embed_tokens


AS_PYTHON = """
import sys; sys.path.insert(0, "tests")
import numpy as np
import npllm
from families import random_lm
from npllm.cache import empty_cache
from npllm.compiled.cpu import on_cpu, with_loops
from npllm.compiled.jit import COMPILES
assert not COMPILES
for name in ("llama", "qwen3", "gemma2", "gemma3_text"):
    lm = random_lm(name)
    assert on_cpu(lm) is lm
    hidden = []
    for one in (lm, with_loops(lm)):
        cache = empty_cache(lm.config, 8, like=lm.weights.norm)
        npllm.transform([1, 2, 3, 4], one, cache)
        hidden.append(npllm.transform([5], one, cache)[0])
    np.testing.assert_allclose(*hidden, rtol=1e-4, atol=1e-5)
    print(name)
"""
HIDDEN = 'import sys; sys.modules["numba"] = None\n'


@needs_numba
@pytest.mark.parametrize("without", ["compiling", "numba"])
def test_as_plain_python(without):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    code = AS_PYTHON if without == "compiling" else HIDDEN + AS_PYTHON
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["llama", "qwen3", "gemma2", "gemma3_text"], done.stderr
