"""npllm convert: it writes the same model in another dtype, completely or not at all."""

import dataclasses
import errno
import importlib
import json
import os
import shutil
import sys
import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, TOKENS, dense, write_folder, write_gguf, write_gpt2_folder
from command_line import fails
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

import npllm
import npllm as package
from npllm.arrays import is_packed
from npllm.checkpoint import narrow, write
from npllm.checkpoint.write import convert, in_shards
from npllm.errors import ModelFileError, NotEnoughMemoryError, UsageError
from npllm.storage.safetensors_file import Entry, header
from npllm.text.end_ids import end_ids

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
FLOATS = ["float32", "float16", "bfloat16"]
QUANTIZED = ["int8", "int4"]
load = package.load


def flat(weights):
    """All weights, including those of the blocks and their experts."""
    return [part for value in weights for part in (flat(value) if isinstance(value, tuple) else [value])]


def assert_same_weights(got, expected):
    """Assert that the values are identical bit for bit, whatever their storage."""
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(dense(a), dense(b))


def assert_same_groups(got, expected):
    """Assert that the matrices have the same codes, scales and minimums."""
    for a, b in zip(flat(got), flat(expected), strict=True):
        if is_packed(b):
            assert (a.dtype, a.shape, a.scale.dtype) == (b.dtype, b.shape, b.scale.dtype)
            np.testing.assert_array_equal(a.codes, b.codes)
            np.testing.assert_array_equal(a.scale.view("u2"), b.scale.view("u2"))
            if b.minimum is not None:
                np.testing.assert_array_equal(a.minimum.view("u2"), b.minimum.view("u2"))
        elif b is not None:
            np.testing.assert_array_equal(a, b)


def logits(lm):
    """The logits of a few tokens."""
    hidden, _ = npllm.transform(np.arange(12), lm)
    return hidden if lm.weights.lm_head is None else npllm.lm_head(hidden, lm)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# The same model is written


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_in_another_dtype_is_the_same_model(tmp_path, name, dtype):
    done = convert(GOLDEN / name, tmp_path / "m", dtype)
    lm, expected = load(tmp_path / "m", dtype=dtype), load(GOLDEN / name, dtype=dtype)
    parts = {"BertForPreTraining": "BertForMaskedLM"}  # the part that is written
    heads = tuple(parts.get(name, name) for name in expected.config.architectures)
    assert lm.config == dataclasses.replace(expected.config, architectures=heads)
    assert lm.generation_config == expected.generation_config
    assert_same_weights(lm.weights, expected.weights)
    np.testing.assert_array_equal(logits(lm), logits(expected))
    files = [path for path in (tmp_path / "m").iterdir() if path.suffix == ".safetensors"]
    tensors = {name: value for path in files for name, value in load_file(path).items()}
    assert {str(value.dtype) for value in tensors.values()} == {dtype}
    assert (done.files, done.nbytes) == (len(files), sum(value.nbytes for value in tensors.values()))
    keys = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (keys["torch_dtype"], "dtype" in keys, "quantization_config" in keys) == (dtype, False, False)


def test_tensors_in_their_own_dtype_are_copied(tmp_path):
    before = write_folder(tmp_path / "a", "llama", "bfloat16")
    convert(tmp_path / "a", tmp_path / "b", "bfloat16")
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert {*after} == {*before}
    for name, value in before.items():
        np.testing.assert_array_equal(after[name].view("u2"), value.view("u2"))


def models(path, kind):
    """A source of each kind, with widths that are multiples of 32."""
    if kind == "gpt2":
        write_gpt2_folder(path, n_embd=64, n_inner=96, prefix="transformer.", buffers=True)
    elif kind == "classifier":
        write_folder(path, architectures=["Phi3ForSequenceClassification"], id2label={"0": "no", "1": "yes"})
    elif kind.startswith("gguf"):
        write_gguf(path, kind.split()[1], kind.split()[2])
    else:
        write_folder(path, kind, "bfloat16", tied=kind == "mistral")
    return path


KINDS = ["phi3", "llama", "mistral", "qwen2", "gpt2", "classifier", "gguf llama Q4_1", "gguf phi3 BF16"]


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_matrices_are_read_back_and_not_quantized_again(tmp_path, monkeypatch, kind, dtype):
    source = models(tmp_path / ("m.gguf" if "gguf" in kind else "m"), kind)
    expected = load(source, dtype=dtype)
    assert is_packed(expected.weights.layers[1].qkv_proj)
    convert(source, tmp_path / "q", dtype)

    def fail(*_):
        raise AssertionError("quantized again")

    with monkeypatch.context() as patch:
        patch.setattr(narrow, "quantize_groups", fail)
        lm = load(tmp_path / "q", dtype=dtype)
        assert_same_groups(lm.weights, expected.weights)
        np.testing.assert_array_equal(logits(lm), logits(expected))
        patch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
        assert_same_groups(load(tmp_path / "q").weights, expected.weights)
        plain = load(tmp_path / "q", dtype="float32")
        assert not is_packed(plain.weights.layers[1].qkv_proj)
        assert_same_weights(plain.weights, expected.weights)
    keys = json.loads((tmp_path / "q" / "config.json").read_text())
    assert keys["quantization_config"] == {"quant_method": "npllm", "bits": int(dtype[3:]), "group": 32}


def test_what_lies_in_a_quantized_folder(tmp_path):
    """The names, dtypes and order documented in quantized.py, and what they mean."""
    weight = write_folder(tmp_path / "m", "llama", hidden_size=64)["model.layers.1.mlp.up_proj.weight"]
    convert(tmp_path / "m", tmp_path / "q", "int4")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    codes, scale, minimum = (
        tensors[f"model.layers.1.mlp.up_proj.weight.{part}"] for part in ("codes", "scale", "minimum")
    )
    assert (codes.dtype, codes.shape, scale.dtype) == (np.uint8, (96, 32), ml_dtypes.bfloat16)
    assert scale.shape == minimum.shape == (96, 2)
    row, group = 7, 1
    halves = codes[row, 16 * group : 16 * group + 16]
    numbers = np.concatenate([halves & 15, halves >> 4]) * np.float32(scale[row, group]) + np.float32(
        minimum[row, group]
    )
    expected = weight[row, 32 * group : 32 * group + 32]
    assert np.abs(numbers - expected).max() < 0.6 * np.float32(scale[row, group])
    assert tensors["model.norm.weight"].dtype == np.float32


@pytest.mark.parametrize("dtype", [*FLOATS, "int8"])
def test_a_quantized_folder_can_be_converted_on(tmp_path, dtype):
    write_folder(tmp_path / "m", hidden_size=64)
    convert(tmp_path / "m", tmp_path / "q", "int4")
    convert(tmp_path / "q", tmp_path / "again", dtype)
    assert_same_weights(load(tmp_path / "again", dtype=dtype).weights, load(tmp_path / "q", dtype=dtype).weights)
    said = json.loads((tmp_path / "again" / "config.json").read_text()).get("quantization_config")
    assert said == ({"quant_method": "npllm", "bits": 8, "group": 32} if dtype == "int8" else None)


def test_converting_to_the_same_few_bits_changes_nothing(tmp_path):
    write_folder(tmp_path / "m", hidden_size=64)
    convert(tmp_path / "m", tmp_path / "q", "int4")
    convert(tmp_path / "q", tmp_path / "again", "int4")
    first, second = (tmp_path / name / "model.safetensors" for name in ("q", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_rows_that_no_group_fits_stay_float32(tmp_path, model_type):
    if model_type == "gpt2":
        write_gpt2_folder(tmp_path / "m", n_embd=48, n_inner=64)
    else:
        write_folder(tmp_path / "m", model_type, hidden_size=40, intermediate_size=64, head_dim=8)
    convert(tmp_path / "m", tmp_path / "q", "int8")
    assert_same_groups(load(tmp_path / "q", dtype="int8").weights, load(tmp_path / "m", dtype="int8").weights)


@pytest.mark.parametrize(("width", "said"), [(40, True), (64, False)])
def test_a_folder_in_which_nothing_is_quantized_is_reported(npllm, tmp_path, width, said):
    write_folder(tmp_path / "m", "llama", hidden_size=width, intermediate_size=width, head_dim=width // 4)
    done = npllm("convert", tmp_path / "m", tmp_path / "q", "--dtype", "int8")
    assert done.code == 0
    assert ("q: not quantized: a matrix in 8 or 4 bits has rows of a multiple of 32 numbers" in done.err) == said
    assert len(done.err.splitlines()) == 1 + said


# GGUF


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("llama", False), ("phi3", False)])
def test_a_gguf_file_becomes_a_folder(tmp_path, arch, tied, dtype):
    assert dtype in GGUF_DTYPES
    write_gguf(tmp_path / "m.gguf", arch, dtype, tied, sliding_window=8, head_dim=16)
    convert(tmp_path / "m.gguf", tmp_path / "m", "float32")
    lm, expected = load(tmp_path / "m"), load(tmp_path / "m.gguf", dtype="float32")
    assert_same_weights(lm.weights, expected.weights)
    assert (lm.weights.lm_head is lm.weights.embed_tokens) == tied
    assert lm.config.window(1) == 8
    np.testing.assert_array_equal(logits(lm), logits(expected))
    ends = [end_ids(one.config.eos_token_id, one.generation_config, one.tokenizer.end_ids) for one in (lm, expected)]
    assert ends[0] == ends[1]
    text = "In the 12 <|end|> and"
    assert lm.tokenizer.encode(text) == expected.tokenizer.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert lm.tokenizer.chat_ids(messages) == expected.tokenizer.chat_ids(messages)
    assert len(lm.tokenizer) == len(TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_a_gguf_file_and_a_folder_of_the_same_model_become_the_same_tensors(tmp_path, arch, dtype):
    """The same names, with the rows of interleaved heads back in order."""
    write_gguf(tmp_path / "m.gguf", arch, "BF16")
    write_folder(tmp_path / "m", arch, "bfloat16")
    convert(tmp_path / "m.gguf", tmp_path / "a", dtype)
    convert(tmp_path / "m", tmp_path / "b", dtype)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert {*ours} == {*theirs}
    for name, value in theirs.items():
        if name.endswith(("norm.weight", "layernorm.weight")):  # float32 in one, bfloat16 in the other
            np.testing.assert_allclose(ours[name].astype("f4"), value.astype("f4"), rtol=2**-8)
        else:
            np.testing.assert_array_equal(ours[name].view(np.uint8), value.view(np.uint8))


def factors(low=1.0, high=4.0, factor=8.0, original=8192, theta=10000.0, width=16):
    """What llama.cpp's converter writes for Llama 3."""
    turns = original * theta ** -(np.arange(0, width, 2) / width) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / factor)).astype(np.float32)


def test_the_scaling_of_llama_3_gets_its_name_back(tmp_path):
    write_gguf(tmp_path / "m.gguf", "llama", extra={"rope_freqs.weight": factors()})
    convert(tmp_path / "m.gguf", tmp_path / "m", "float32")
    lm = load(tmp_path / "m")
    assert lm.config.rope_scaling.kind == "llama3"
    assert_close("logits", logits(lm), logits(load(tmp_path / "m.gguf")))


def test_factors_that_config_json_cannot_tell(tmp_path):
    write_gguf(tmp_path / "m.gguf", "llama", extra={"rope_freqs.weight": factors(high=3.0)})
    with pytest.raises(ModelFileError, match=r"expected the factors of Llama 3\.1 to 3\.3, got others"):
        convert(tmp_path / "m.gguf", tmp_path / "m", "float32")
    assert left_in(tmp_path) == ["m.gguf"]


def test_what_would_not_load_again_is_refused_before_anything_is_written(tmp_path):
    """Query, key and value biases without an output bias: no Llama folder has that combination."""
    sizes = {"attn_q": 64, "attn_k": 32, "attn_v": 32}
    extra = {f"blk.{layer}.{name}.bias": np.ones(size) for layer in (0, 1) for name, size in sizes.items()}
    write_gguf(tmp_path / "m.gguf", "llama", extra=extra)
    assert load(tmp_path / "m.gguf").weights.layers[0].qkv_proj_bias is not None
    with pytest.raises(ModelFileError, match=r"2 missing tensors: model.layers.0.self_attn.o_proj.bias"):
        convert(tmp_path / "m.gguf", tmp_path / "m", "float32")
    assert left_in(tmp_path) == ["m.gguf"]


# The files


def test_what_is_copied_and_what_is_not(tmp_path):
    write_folder(tmp_path / "m", auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, dtype="float32")
    (tmp_path / "m" / "configuration_phi3.py").write_text("raise SystemExit")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ 'Grüße' }}", encoding="utf-8")
    convert(tmp_path / "m", tmp_path / "n", "float16")
    assert left_in(tmp_path / "n") == [
        *("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "n" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert "auto_map" not in (tmp_path / "n" / "config.json").read_text()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), most=st.integers(1, 80))
def test_shards_are_in_order_and_no_larger_than_they_may_be(sizes, most):
    outputs = [Entry(str(i), "U8", (size,)) for i, size in enumerate(sizes)]
    shards = in_shards(outputs, most)
    assert [output for group in shards.values() for output in group] == outputs
    groups = list(shards.values())
    assert all(len(group) == 1 or sum(output.nbytes for output in group) <= most for group in groups)
    for first, second in pairwise(groups):
        assert sum(output.nbytes for output in first) + second[0].nbytes > most
    assert list(shards) == (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_shards_load_again(tmp_path, dtype):
    write_folder(tmp_path / "m", hidden_size=64)
    done = convert(tmp_path / "m", tmp_path / "q", dtype, shard_bytes=20_000)
    assert done.files > 3
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.nbytes
    assert {*index["weight_map"].values()} == {path.name for path in (tmp_path / "q").glob("*.safetensors")}
    assert_same_weights(load(tmp_path / "q", dtype=dtype).weights, load(tmp_path / "m", dtype=dtype).weights)


# Whole or not at all


@pytest.fixture
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "m"
    write_folder(path, hidden_size=64)
    return path


def test_a_destination_with_something_in_it_is_left_alone(tmp_path, source):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="expected a new folder or an empty one, got one with files in it"):
        convert(source, tmp_path, "float16")
    with pytest.raises(UsageError, match="expected a new folder or an empty one, got a file"):
        convert(source, tmp_path / "notes.txt", "float16")
    with pytest.raises(UsageError, match="expected an existing folder, got "):
        convert(source, tmp_path / "no" / "m", "float16")
    assert left_in(tmp_path) == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", "float16")
    assert load(tmp_path / "empty").config.family == "phi3"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of a file")
def test_a_write_that_fails_leaves_nothing(tmp_path, source):
    """A file size limit stands in for a disk that fills up in the middle of a file."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UsageError, match=rf"m: cannot be written: {os.strerror(errno.EFBIG)}"):
            convert(source, tmp_path / "m", "float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert left_in(tmp_path) == []


def test_a_disk_that_is_too_small_is_found_out_first(tmp_path, source, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(UsageError, match=r"expected [\d.]+ [kM]B of free disk space, got 1.0 kB"):
        convert(source, tmp_path / "m", "float32")
    assert left_in(tmp_path) == []


def test_not_enough_memory_is_found_out_first(tmp_path, source, monkeypatch):
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 10_000)
    with pytest.raises(NotEnoughMemoryError, match=r"tensors .* available 10\.0 kB"):
        convert(source, tmp_path / "m", "float32")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("at", [0, 2])
def test_what_is_interrupted_leaves_nothing(tmp_path, source, monkeypatch, error, at):
    seen = []

    def interrupted(outputs, metadata):
        seen.append(outputs)
        if len(seen) > at:
            raise error
        return header(outputs, metadata)

    monkeypatch.setattr(write, "header", interrupted)
    expected = UsageError if isinstance(error, OSError) else (error, NotEnoughMemoryError)
    with pytest.raises(expected):
        convert(source, tmp_path / "m", "float32", shard_bytes=10_000)
    assert left_in(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("npllm-read")]


def test_a_source_that_is_no_good_leaves_nothing(tmp_path, source):
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = np.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"lm_head.weight: expected finite numbers, got a NaN or an infinity"):
        convert(source, tmp_path / "m", "int8")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_number_too_large_for_float16(tmp_path, source, name):
    tensors = load_file(source / "model.safetensors")
    tensors[name].reshape(-1)[5] = 70_000
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelFileError, match=f"{name}: expected finite numbers, got one too large for float16"):
        convert(source, tmp_path / "m", "float16")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")
def test_config_json_comes_last_and_every_file_is_on_the_disk_first(tmp_path, source, monkeypatch):
    """A folder without it is not a model, so the leftovers of a killed process do not look complete."""
    events, real_fsync, real_rename = [], os.fsync, Path.rename

    def fsync(file):
        events.append(Path(f"/proc/self/fd/{file}").readlink().name)
        real_fsync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append("renamed"), real_rename(path, to)))
    convert(source, tmp_path / "m", "float32")
    assert events[:2] == ["renamed", "model.safetensors"]  # the first is the temporary folder, when it is locked
    assert events[-4:] == ["config.json", "folder", "renamed", tmp_path.name]
    assert {*events} == {*left_in(tmp_path / "m"), "folder", "renamed", tmp_path.name}


@pytest.mark.slow
def test_memory_holds_a_few_tensors_and_not_the_model(tmp_path):
    write_folder(tmp_path / "m", "llama", "bfloat16", num_hidden_layers=24, hidden_size=128, intermediate_size=256)
    tracemalloc.start()
    try:
        done = convert(tmp_path / "m", tmp_path / "n", "float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < done.nbytes / 2


# Damaged folders


def change(folder, change_tensors):
    tensors = load_file(folder / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("lm_head.weight.scale"), "expected lm_head.weight.scale with lm_head.weight.codes"),
        (lambda t: t.pop("lm_head.weight.minimum"), "expected lm_head.weight.minimum with"),
        (lambda t: t.pop("lm_head.weight.codes"), "1 missing tensors: lm_head.weight;|missing tensors|unknown tensors"),
        (
            lambda t: t.update({"lm_head.weight.scale": t["lm_head.weight.scale"].astype(np.float32)}),
            r"lm_head.weight.scale: expected BF16 \[288, 2\], got F32",
        ),
        (
            lambda t: t.update({"lm_head.weight.scale": t["lm_head.weight.scale"][:, :1].copy()}),
            r"lm_head.weight.scale: expected BF16 \[288, 2\], got BF16 \[288, 1\]",
        ),
        (
            lambda t: t.update({"lm_head.weight.codes": t["lm_head.weight.codes"][:, :24].copy()}),
            r"expected U8 rows of a multiple of 16 bytes, got U8 \[288, 24\]",
        ),
        (
            lambda t: t.update({"lm_head.weight.codes": t["lm_head.weight.codes"].reshape(-1)}),
            "expected U8 rows of a multiple of 16 bytes",
        ),
        (
            lambda t: t.update({"lm_head.weight.codes": t["lm_head.weight.codes"].view(np.int8)}),
            "expected U8 rows of a multiple of 16 bytes, got I8",
        ),
        (
            lambda t: t["lm_head.weight.scale"].__setitem__((5, 1), np.inf),
            "lm_head.weight: expected finite numbers, got a NaN or an infinity",
        ),
        (
            lambda t: t["lm_head.weight.minimum"].__setitem__((5, 1), -np.nan),
            "lm_head.weight: expected finite numbers, got a NaN or an infinity",
        ),
    ],
)
def test_a_quantized_folder_that_is_damaged(tmp_path, source, spoil, message):
    convert(source, tmp_path / "q", "int4")
    change(tmp_path / "q", spoil)
    with pytest.raises(ModelFileError, match=message):
        load(tmp_path / "q", dtype="int4")


@pytest.mark.parametrize(
    "said", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "npllm", "bits": 3, "group": 32}, "npllm", {}]
)
def test_other_ways_to_quantize_are_refused(source, said):
    keys = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(keys | {"quantization_config": said}))
    with pytest.raises(ModelFileError, match=r"quantization_config: expected \{'quant_method': 'npllm', 'bits': 8"):
        load(source)


def test_a_header_cannot_claim_the_dtype_of_joined_tensors(source):
    """ "int4/32" is our name for three tensors together, not a dtype in a file."""
    path = source / "model.safetensors"
    raw = path.read_bytes()
    assert b'"F32"' in raw
    path.write_bytes(raw.replace(b'"dtype":"F32"', b'"dtype":"f32"', 1))
    with pytest.raises(ModelFileError, match="expected dtype, shape, data_offsets"):
        load(source)


# The command


def test_the_command(npllm, folder, tmp_path):
    done = npllm("convert", folder, tmp_path / "m", "--dtype", "bfloat16")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(f"{tmp_path / 'm'}: ")
    assert done.err.endswith("of weights in 1 file\n")
    text = npllm("generate", "-m", tmp_path / "m", "-n", "3", "--dtype", "bfloat16", "Hi")
    assert text.out == npllm("generate", "-n", "3", "--dtype", "bfloat16", "Hi").out


def test_without_a_source_it_is_the_default_model(npllm, folder, tmp_path):
    assert npllm("convert", tmp_path / "m", "--dtype", "int8").code == 0
    assert_same_groups(load(tmp_path / "m", dtype="int8").weights, load(folder, dtype="int8").weights)


def test_the_command_splits(npllm, tmp_path):
    done = npllm("convert", tmp_path / "m", "--dtype", "float32", "--shard-size", "0.0001")
    assert done.code == 0
    assert "files" in done.err
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()


def test_errors_of_the_command_are_one_line(npllm, folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    fails(npllm("convert", folder, tmp_path / "full", "--dtype", "int8"), 2, "expected a new folder or an empty one")
    fails(npllm("convert", folder, tmp_path / "m"), 2, "--dtype")
    fails(npllm("convert", "--dtype", "int8"), 2, "DST")
    fails(npllm("convert", folder, tmp_path / "m", "--dtype", "auto"), 2, "expected float32, .* got 'auto'")
    fails(npllm("convert", tmp_path / "no", tmp_path / "m", "--dtype", "int8"), 3, "there is nothing of that name")
    for size in ("0", "-1", "nan", "inf"):
        fails(npllm("convert", tmp_path / "m", "--dtype", "int8", "--shard-size", size), 2, "--shard-size: expected")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    fails(npllm("convert", tmp_path / "broken", tmp_path / "m", "--dtype", "int8"), 4, "model_type")
    assert left_in(tmp_path) == ["broken", "full"]


def test_a_progress_bar_only_when_asked_for(source, tmp_path, capsys):
    convert(source, tmp_path / "a", "int8")
    assert capsys.readouterr().err == ""
    convert(source, tmp_path / "b", "int8", progress=True)
    shown = capsys.readouterr().err
    assert "\rConverting:   0%" in shown
    assert shown.endswith(" \r")  # it goes when it ends


# Compared with transformers


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it_with_the_same_logits(tmp_path, kind, dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    transformers = importlib.import_module("transformers")
    source = models(tmp_path / ("m.gguf" if "gguf" in kind else "m"), kind)
    convert(source, tmp_path / "n", dtype, shard_bytes=40_000)
    auto = "AutoModelForSequenceClassification" if kind == "classifier" else "AutoModelForCausalLM"
    model = getattr(transformers, auto).from_pretrained(tmp_path / "n", dtype="auto")
    assert str(model.dtype) == f"torch.{dtype}"
    ids = np.arange(12)
    lm = load(tmp_path / "n", dtype=dtype)
    with torch.no_grad():
        body = model.float().base_model(torch.tensor(ids)[None]).last_hidden_state[0].numpy()
    assert_close("hidden", npllm.transform(ids, lm)[0], body)
    if kind != "classifier":
        with torch.no_grad():
            theirs = model(torch.tensor(ids)[None]).logits[0].numpy()
        assert_close("logits", logits(lm), theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "n")
    text = "In the 12 <|end|> and"
    assert tokenizer(text)["input_ids"] == lm.tokenizer.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer(theirs, add_special_tokens=False)["input_ids"] == lm.tokenizer.chat_ids(messages)
    assert model.config.eos_token_id == json.loads((tmp_path / "n" / "config.json").read_text())["eos_token_id"]
