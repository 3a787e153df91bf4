"""npllm bench decode, prefill and load, as typed. Figures that depend on timing are not checked."""

import json
import re
import weakref

import numpy as np
import pytest
from checkpoints import write_folder
from command_line import fails

from npllm import load
from npllm.apps import speed
from npllm.cli import bench
from npllm.errors import NotEnoughMemoryError

SIZES = {"parameters", "weight_bytes", "bytes_per_weight", "storages"}
COMMON = {"what", "model", "device", "cores", "threads", "context", "repeat", "rows"}
SPREAD = {"median", "least", "most", "rounds"}


@pytest.fixture(autouse=True)
def small_array(monkeypatch):
    """Measure with a small buffer: the usual gibibyte is slow."""
    monkeypatch.setattr(speed, "bandwidth_buffer", lambda _: np.ones(1000, dtype=np.float32))


def test_decode_as_json_has_the_keys_that_are_documented(npllm, folder):
    done = npllm("bench", "decode", "--context", 6, "-n", 3, "--repeat", 2, "--dtype", "float32,bfloat16", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    result = json.loads(done.out)
    assert set(result) == COMMON | {"in_turn", "new_tokens", "cache_dtype", "read_bandwidth_bytes_per_second"}
    assert (result["what"], result["model"], result["context"], result["new_tokens"]) == ("decode", str(folder), 6, 3)
    assert result["in_turn"] is True
    assert list(result["rows"]) == ["float32", "bfloat16"]
    for dtype, row in result["rows"].items():
        assert set(row) == SIZES | {
            "seconds_per_token",
            "tokens_per_second",
            "weight_bytes_per_token",
            "kv_cache_bytes_per_token",
            "read_bytes_per_second",
            "bandwidth_share",
            "computed_by",
        }
        assert set(row["seconds_per_token"]) == SPREAD
        assert len(row["seconds_per_token"]["rounds"]) == 2
        read = speed.decode_read(load(folder, dtype=dtype), 6, 3)
        assert (row["weight_bytes_per_token"], row["kv_cache_bytes_per_token"]) == read
        share = row["read_bytes_per_second"] / result["read_bandwidth_bytes_per_second"]
        assert row["bandwidth_share"] == pytest.approx(share)
    assert "bfloat16" in result["rows"]["bfloat16"]["storages"]


def test_prefill_as_json_has_the_keys_that_are_documented(npllm, folder):
    done = npllm("bench", "prefill", "--context", 9, "--repeat", 1, "--json")
    result = json.loads(done.out)
    assert set(result) == COMMON | {"in_turn", "matmul_flops_per_second"}
    assert result["context"] == 9
    row = result["rows"]["auto"]
    assert set(row) == SIZES | {
        "seconds",
        "tokens_per_second",
        "flops",
        "flops_per_second",
        "matmul_flops_per_second",
        "matmul_share",
    }
    assert row["flops"] == speed.product_flops(load(folder), 9)


def test_load_as_json_has_the_keys_that_are_documented(npllm, folder):
    done = npllm("bench", "load", "--repeat", 1, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert set(result) == COMMON
    row = result["rows"]["auto"]
    assert set(row) == SIZES | {
        "load_seconds",
        "first_token_seconds",
        "resident_bytes_before",
        "resident_bytes",
        "peak_bytes",
        "file_bytes",
        "peak_share_of_file",
    }
    assert row["file_bytes"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


TIME = r"[\d.e-]+ (s|ms|µs)"
RANGED = rf"{TIME} \({TIME} to {TIME}\)"
BYTES = r"[\d.]+ (kB|MB|GB)"


def test_decode_for_people(npllm):
    done = npllm("bench", "decode", "--repeat", 2, "-n", 2, "--dtype", "auto,int8")
    assert (done.code, done.err) == (0, "")
    first, *rows, last = done.out.splitlines()
    assert first == "2 tokens after 64 of context, 2 rounds, alternating:"
    assert [row.split()[0] for row in rows[::3]] == ["auto:", "int8:"]
    assert re.fullmatch(rf"auto:     [\d.]+ tokens/s, {RANGED} per token", rows[0])
    read = rf" {{10}}reads {BYTES} per token, including a KV cache of {BYTES}: [\d.]+ GB/s, \d+% of the read bandwidth"
    assert re.fullmatch(read, rows[1])
    assert re.fullmatch(rf" {{10}}weights: {BYTES} float32; 4.00 bytes per parameter; computed by \w.*", rows[2])
    assert re.fullmatch(r"read bandwidth: [\d.]+ GB/s \(maximum, \d+ cores?\)", last)


def test_prefill_for_people(npllm):
    done = npllm("bench", "prefill", "--repeat", 1, "--context", 8)
    first, speed, share, _, last = done.out.splitlines()
    assert first == "a prompt of 8 tokens, 1 round:"
    assert re.fullmatch(rf"auto:     [\d.]+ tokens/s, {TIME}", speed)
    assert re.fullmatch(r" {10}[\d.]+ GFLOP/s, \d+% of a bare np.matmul's", share)
    assert re.fullmatch(r"np.matmul: [\d.]+ GFLOP/s", last)


def test_load_for_people(npllm):
    done = npllm("bench", "load", "--repeat", 1)
    first, loaded, token, memory, _ = done.out.splitlines()
    assert first == "1 round, each in a new process:"
    assert re.fullmatch(rf"auto:     loaded after {TIME}", loaded)
    assert re.fullmatch(rf" {{10}}first token after {TIME}, with a prompt of 8", token)
    known = rf"({BYTES}|unknown)"
    assert re.fullmatch(rf" {{10}}resident {known}, peak {known}; before loading {known}, model file {BYTES}", memory)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["decode", "--dtype", "float32,float64"], "--dtype: expected auto, float32, .*got 'float32,float64'"),
        (["decode", "--dtype", ""], "--dtype: expected auto, .*got ''"),
        (["decode", "--dtype", "int8,int8"], "--dtype: expected each dtype once, got 'int8,int8'"),
        (["decode", "--context", "0"], "--context: expected at least 1, got 0"),
        (
            ["decode", "--context", "250"],
            "expected at most 255 together, one less than the model's context, got 250 and 32",
        ),
        (["decode", "--prompt", "a"], "--prompt: bench decode does not take this flag"),
        (["prefill", "-n", "3"], "--new-tokens: bench prefill does not take this flag"),
        (["prefill"], "expected at most 255 together, one less than the model's context, got 512 and 0"),
        (["load", "--repeat", "0"], "--repeat: expected at least 1, got 0"),
        (["decode", "--cache-dtype", "int8"], "--cache-dtype: expected float32 or float16 or bfloat16, got 'int8'"),
        (["prefill", "--cache-dtype", "float16"], "--cache-dtype: bench prefill does not take this flag"),
        (["cache", "--context", "3"], "--context: bench cache does not take this flag"),
        (["cache", "--dtype", "float32,int8"], "--dtype: bench cache takes a single dtype, got 'float32,int8'"),
    ],
)
def test_wrong_usage_is_one_line(npllm, argv, message):
    fails(npllm("bench", *argv), 2, message)


@pytest.mark.parametrize("what", ["decode", "prefill", "load"])
def test_a_model_that_is_not_there_is_one_line(npllm, what):
    fails(npllm("bench", what, "--model", "./nowhere"), 3, "expected a folder or a .gguf file")


def test_damaged_files_are_one_line_also_from_the_process_that_loads(npllm, tmp_path):
    write_folder(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\x08")
    fails(npllm("bench", "load", "--model", tmp_path / "damaged"), 4, "model.safetensors")


@pytest.mark.parametrize("full", ["by the weights", "by the caches"])
def test_where_not_all_fit_they_come_one_after_the_other(npllm, monkeypatch, full):
    load_as, filled_cache, loaded = bench.load_as, speed.filled_cache, []

    def others():
        return any(norm() is not None for norm in loaded)

    def room_for_the_weights_of_one(args, dtype):
        if full == "by the weights" and others():
            raise NotEnoughMemoryError("full")
        lm = load_as(args, dtype)
        loaded.append(weakref.ref(lm.weights.norm))
        return lm

    def room_for_one_and_its_cache(lm, *arguments):
        if sum(norm() is not None for norm in loaded) > 1:
            raise NotEnoughMemoryError("full")
        return filled_cache(lm, *arguments)

    monkeypatch.setattr(bench, "load_as", room_for_the_weights_of_one)
    monkeypatch.setattr(speed, "filled_cache", room_for_one_and_its_cache)
    done = npllm("bench", "decode", "-n", 2, "--dtype", "float32,bfloat16", "--json")
    assert done.err == "npllm: not enough memory for all dtypes at once: timing one at a time\n"
    result = json.loads(done.out)
    assert len(loaded) == {"by the weights": 3, "by the caches": 4}[full], "some of them twice"
    assert result["in_turn"] is False
    assert [sorted(row["storages"]) for row in result["rows"].values()] == [["float32"], ["bfloat16", "float32"]]
    shown = bench.decode_text(result)
    assert shown.startswith("2 tokens after 64 of context, 5 rounds each:\nfloat32: ")


def test_one_that_does_not_fit_is_exit_code_5(npllm, monkeypatch):
    def load_as(args, dtype):
        raise NotEnoughMemoryError("15.3 GB weights, available 7.9 GB")

    monkeypatch.setattr(bench, "load_as", load_as)
    fails(npllm("bench", "decode"), 5, "15.3 GB weights")


@pytest.mark.parametrize(("what", "function"), [("decode", "decode"), ("prefill", "prefill"), ("load", "load_row")])
def test_interrupted_it_prints_no_figures(npllm, monkeypatch, what, function):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, function, interrupted)
    assert npllm("bench", what, "--context", 8, "--repeat", 1) == (130, "", "\n")
