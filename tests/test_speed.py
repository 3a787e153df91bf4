"""Timing decode, prefill and load: the arithmetic, with fake clocks. Nothing is really timed."""

import importlib
from itertools import accumulate, repeat
from math import prod

import numpy as np
import pytest
from checkpoints import write_folder, write_gpt2_folder
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_weights, tiny_config

from npllm import load
from npllm.apps import speed
from npllm.apps.calls import generate
from npllm.apps.speed import Read, decode, decode_read, decode_row, filled_cache, prefill, product_flops, sizes
from npllm.cache import kv_cache_bytes
from npllm.errors import ModelFileError, UsageError
from npllm.inspect.cost import costs
from npllm.lm import LM

loop = importlib.import_module("npllm.loop")


@pytest.fixture(scope="module")
def lm():
    config = tiny_config(max_position_embeddings=32)
    return LM(config, random_weights(config), None, {})


@pytest.fixture(params=["phi3", "gpt2"])
def folder(request, tmp_path):
    """A small model, of two families whose blocks have different names."""
    path = tmp_path / request.param
    (write_folder if request.param == "phi3" else write_gpt2_folder)(path)
    return path


def ticking(*seconds):
    """A clock that advances by the given seconds from call to call, then by one second each."""
    ticks = accumulate([0.0, *seconds, *repeat(1.0, 50)])
    return lambda: next(ticks)


@pytest.mark.slow
@given(context=st.integers(1, 9), new=st.integers(1, 9))
def test_decoding_makes_the_models_own_tokens_each_round_anew(lm, context, new):
    ids = speed.random_ids(lm, context)
    cache = filled_cache(lm, ids, new + 1)
    assert cache["length"] == context
    expected = generate(lm, ids, max_new_tokens=new + 1).ids
    for _ in range(3):
        assert decode(lm, ids, cache, new)[1] == expected


def test_decoding_counts_the_seconds_of_the_tokens_after_the_first(lm):
    ids = [3, 1, 4]
    looked, ticks = [], ticking(6.0)

    def clock():
        looked.append(cache["length"])
        return ticks()

    cache = filled_cache(lm, ids, 5)
    seconds, _ = decode(lm, ids, cache, 4, clock)
    assert seconds == 6.0 / 4
    # The first token came from the prompt's last stream; each of the four timed tokens added one to the cache.
    assert looked == [3, 7]


def test_end_tokens_do_not_end_a_round(lm):
    ids = [3, 1, 4]
    ends = generate(lm, ids, max_new_tokens=5).ids
    ending = lm._replace(generation_config={"eos_token_id": ends})
    assert decode(ending, ids, filled_cache(ending, ids, 5), 4)[1] == ends
    assert prefill(ending, ids, ticking(2.0)) == 2.0


def test_what_a_token_reads_is_the_mean_over_the_tokens_that_are_timed(lm, monkeypatch):
    context, new = 5, 4
    held = []

    def looking(ids, weights, config, cache, **options):
        held.append(cache["length"])
        return lm.transform(ids, weights, config, cache, **options)

    ids = speed.random_ids(lm, context)
    cache = filled_cache(lm, ids, new + 1)
    decode(lm._replace(transform=looking), ids, cache, new)
    timed = held[1:]  # the first token is not timed
    read = decode_read(lm, context, new)
    assert read.kv_cache == sum(kv_cache_bytes(lm.config, past) for past in timed) / new
    arrays = [lm.weights.norm, lm.weights.lm_head, *(array for block in lm.weights.layers for array in block)]
    assert read.weights == sum(a.nbytes for a in arrays if a is not None) + lm.weights.embed_tokens[0].nbytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_of_16_bits_is_filled_and_half_as_much_to_read(lm, dtype):
    ids = [3, 1, 4]
    cache = filled_cache(lm, ids, 5, dtype)
    assert (str(cache["keys"][0].dtype), cache["length"]) == (dtype, 3)
    assert decode(lm, ids, cache, 4)[1] == generate(lm, ids, max_new_tokens=5, cache_dtype=dtype).ids
    wide, narrow = decode_read(lm, 3, 4), decode_read(lm, 3, 4, dtype)
    assert narrow == Read(wide.weights, wide.kv_cache / 2)


def test_the_figures_of_decoding_follow_from_seconds_and_bytes(lm):
    row = decode_row(lm, [0.5, 0.2, 0.25], Read(weights=700.0, kv_cache=300.0), bandwidth=8000.0)
    assert row["seconds_per_token"] == {"median": 0.25, "least": 0.2, "most": 0.5, "rounds": [0.5, 0.2, 0.25]}
    assert (row["tokens_per_second"], row["read_bytes_per_second"], row["bandwidth_share"]) == (4.0, 4000.0, 0.5)
    assert (row["weight_bytes_per_token"], row["kv_cache_bytes_per_token"]) == (700.0, 300.0)


def test_bandwidth_is_the_array_over_the_best_time():
    numbers = np.ones(1000, dtype=np.float32)
    assert speed.read_bandwidth(numbers, threads=3, repeat=3, clock=ticking(9.0, 1.0, 2.0, 1.0, 5.0)) == 4000 / 2.0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bandwidth_reads_every_number_once(monkeypatch, threads):
    read = []
    fake = type("xp", (), {"max": staticmethod(lambda part: read.append(part) or part.max())})
    monkeypatch.setattr(speed, "array_namespace", lambda _: fake)
    numbers = np.arange(10, dtype=np.float32)
    speed.read_bandwidth(numbers, threads, repeat=1)
    assert len(read) == threads
    assert sorted(np.concatenate(read)) == list(range(10))


def test_an_array_to_read_is_an_eighth_of_the_free_memory_and_at_most_a_gibibyte(monkeypatch):
    made = []
    fake = type("xp", (), {"float32": np.float32, "ones": staticmethod(lambda n, dtype, device: made.append(n))})
    monkeypatch.setattr(speed, "array_namespace", lambda _: fake)
    for free in (2**40, 8000, 1, None):
        monkeypatch.setattr(speed, "free_bytes", lambda _, free=free: free)
        speed.bandwidth_buffer(np.zeros(1))
    assert made == [2**28, 250, 1, 2**28]


def test_prefill_is_timed_up_to_the_first_token(lm):
    assert prefill(lm, [1, 2, 3], ticking(7.0)) == 7.0


@given(config_keys(), st.integers(1, 6))
def test_the_products_are_those_of_a_pass_with_the_pairs_that_nobody_may_see_left_out(keys, tokens):
    config = tiny_config(**keys)
    lm = LM(config, random_weights(config), None, {})
    parts = {cost.part: cost.flops for cost in costs(config, lm.weights, tokens, scored=1)}
    matrices = sum(parts[name] for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"))
    seen = sum(
        min(i, config.window(layer) or tokens)
        for layer in range(config.num_hidden_layers)
        for i in range(1, tokens + 1)
    )
    assert product_flops(lm, tokens) == matrices + seen * 2 * 2 * config.num_attention_heads * config.head_dim


def test_the_bare_product_does_as_many_operations(lm):
    height, width = lm.weights.layers[0].qkv_proj.shape  # the largest in this block
    one = 2 * 5 * height * width
    assert speed.bare_matmul(lm, 5, 7 * one, ticking(3.5)) == 7 * one / 3.5
    assert speed.bare_matmul(lm, 5, 1, ticking(3.5)) == one / 3.5, "at least one"


def test_the_figures_of_prefill_follow_from_seconds_and_operations(lm):
    flops = product_flops(lm, 4)
    row = speed.prefill_row(lm, 4, [2.0, 1.0, 8.0], [flops / 1.0, flops / 0.75, flops / 6.4])
    assert (row["seconds"]["median"], row["tokens_per_second"]) == (2.0, 2.0)
    assert (row["flops"], row["flops_per_second"]) == (flops, flops / 2.0)
    # In the three rounds, the product took 1 of 2, 0.75 of 1 and 6.4 of 8 seconds.
    assert row["matmul_share"] == pytest.approx(0.75)
    assert row["matmul_flops_per_second"] == pytest.approx(flops)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_sizes_are_those_of_the_arrays(folder, dtype):
    lm = load(folder, dtype=dtype)
    found = sizes(lm)
    fields = [array for block in lm.weights.layers for array in block]
    fields += [getattr(lm.weights, name) for name in ("embed_tokens", "norm", "norm_bias", "embed_positions")]
    fields += [lm.weights.lm_head] if lm.weights.lm_head is not lm.weights.embed_tokens else []
    arrays = [array for array in fields if array is not None]
    assert found["parameters"] == sum(prod(array.shape) for array in arrays)
    assert found["weight_bytes"] == sum(array.nbytes for array in arrays) == sum(found["storages"].values())
    assert found["bytes_per_weight"] == found["weight_bytes"] / found["parameters"]
    assert set(found["storages"]) == {str(array.dtype) for array in arrays}


def test_a_matrix_that_is_embeddings_and_head_counts_once(tmp_path):
    write_folder(tmp_path / "tied", tied=True)
    write_folder(tmp_path / "apart", tied=False)
    tied, apart = (sizes(load(tmp_path / name)) for name in ("tied", "apart"))
    head = load(tmp_path / "apart").weights.lm_head
    assert apart["parameters"] - tied["parameters"] == prod(head.shape)


def test_what_does_not_fit_into_the_context_is_refused(lm):
    speed.check_context(lm, 27, 4)
    with pytest.raises(UsageError, match=r"at most 31 together, one less than the model's context, got 28 and 4"):
        speed.check_context(lm, 28, 4)


def test_a_load_tells_its_memory(folder):
    done = speed.load_once({"name": folder, "dtype": "bfloat16"}, tokens=3)
    assert done["first_token_seconds"] > done["load_seconds"] > 0
    assert done["weight_bytes"] == sizes(load(folder, dtype="bfloat16"))["weight_bytes"]
    for name in ("resident_bytes_before", "resident_bytes", "peak_bytes"):
        assert done[name] is None or done[name] > 2**20
    assert done["peak_bytes"] is None or done["resident_bytes"] is None or done["peak_bytes"] >= done["resident_bytes"]


def test_an_error_of_the_other_process_is_one_here(tmp_path):
    with pytest.raises(ModelFileError, match="expected"):
        speed.load_in_new_process({"name": tmp_path}, 3)


def test_of_several_loads_the_median_and_the_most_memory_count():
    rounds = [
        {"load_seconds": 3.0, "first_token_seconds": 4.0, "resident_bytes_before": 10, "resident_bytes": 70},
        {"load_seconds": 1.0, "first_token_seconds": 9.0, "resident_bytes_before": 12, "resident_bytes": 60},
        {"load_seconds": 2.0, "first_token_seconds": 5.0, "resident_bytes_before": 11, "resident_bytes": 50},
    ]
    same = {"parameters": 8, "weight_bytes": 16, "bytes_per_weight": 2.0, "storages": {"bfloat16": 16}}
    row = speed.load_row([r | same | {"peak_bytes": peak} for r, peak in zip(rounds, (75, 80, 60), strict=True)], 64)
    assert (row["load_seconds"]["median"], row["first_token_seconds"]["median"]) == (2.0, 5.0)
    assert [row[f"{name}_bytes"] for name in ("resident", "peak", "file")] == [70, 80, 64]
    assert (row["resident_bytes_before"], row["peak_share_of_file"]) == (12, 1.25)
    assert {name: row[name] for name in same} == same
    unknown = speed.load_row([r | same | {"resident_bytes": None, "peak_bytes": None} for r in rounds], 64)
    assert (unknown["resident_bytes"], unknown["peak_bytes"], unknown["peak_share_of_file"]) == (None, None, None)


def test_the_models_file_is_what_its_weights_take(tmp_path):
    write_folder(tmp_path / "two", shards=2)
    expected = sum(file.stat().st_size for file in (tmp_path / "two").glob("*.safetensors"))
    assert speed.model_file_bytes(str(tmp_path / "two"), None, None, True) == expected > 0
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(96))
    assert speed.model_file_bytes(str(tmp_path / "a.gguf"), None, None, True) == 100
