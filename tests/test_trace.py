"""Traces: computing them in one pass or several, writing and reading them, and files that are not traces."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_gpt2_weights, random_ids, random_weights, tiny_config, tiny_gpt2_config
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

from npllm.errors import ModelFileError, NotEnoughMemoryError, UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect.record import record
from npllm.inspect.trace import check_patterns, read_trace, trace, write_trace
from npllm.lm import LM
from npllm.model import forward

CONFIG = tiny_config(max_position_embeddings=16)
MODEL = LM(CONFIG, random_weights(CONFIG), None, {})
IDS = [int(i) for i in random_ids(CONFIG, 6)]


# Computing


def test_a_trace_is_what_is_recorded_in_one_pass():
    seen = {}
    forward(np.array(IDS), MODEL.weights, CONFIG, tap=record(seen))
    values = trace(MODEL, IDS)
    assert list(values) == list(seen)
    for name, value in values.items():
        np.testing.assert_array_equal(value, seen[name])
        assert value.flags["C_CONTIGUOUS"]


def test_a_model_with_another_pass_is_traced_by_it():
    config = tiny_gpt2_config()
    lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
    assert "position_embedding" in trace(lm, [1, 2])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_in_chunks_it_is_the_same(chunks):
    ids = [int(i) for i in random_ids(CONFIG, sum(chunks))]
    whole, parts = trace(MODEL, ids), trace(MODEL, ids, chunks=chunks)
    assert list(parts) == list(whole)
    for name, value in parts.items():
        visible = np.tri(len(ids), dtype=bool) if name.endswith(".scores") else None
        assert_close(name, value, whole[name], where=visible)


def test_values_on_any_library_come_to_the_host(lib):
    values = trace(MODEL._replace(weights=lib.tree(MODEL.weights)), IDS, "*.q,embedding")
    for name, value in trace(MODEL, IDS, "*.q,embedding").items():
        assert type(values[name]) is np.ndarray
        assert_close(name, values[name], value)


def test_a_tap_comes_before_what_is_kept_and_sees_each_value_once():
    seen = []

    def tap(name, value):
        seen.append((name, value.shape[-2]))
        return 0 * value if name == "norm" else value

    values = trace(MODEL, IDS, "norm", tap)
    assert not np.any(values["norm"])
    assert list(values) == ["norm", "logits"]
    assert len(seen) == 37
    assert {tokens for _, tokens in seen} == {6}


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([0] * 17, {}, "too long: 17 tokens, but the model's context of 16 has room for 16"),
        ([0, 11], {}, "token 1: expected an id from 0 to 10, got 11"),
        ([0, 1], {"chunks": [1]}, r"chunks: expected parts of 2 tokens, got \[1\]"),
        ([0, 1], {"chunks": [2, 0]}, r"chunks: expected parts of 2 tokens, got \[2, 0\]"),
        ([0], {"only": "zzz"}, "no value is named zzz"),
    ],
)
def test_what_cannot_be_traced(ids, more, message):
    with pytest.raises(UsageError, match=message):
        trace(MODEL, ids, **more)


@pytest.mark.parametrize("ids", [[3], [3] * 16], ids=["one token", "the whole context"])
def test_the_shortest_and_the_longest_text(ids):
    assert trace(MODEL, ids)["layers.1.attention.weights"].shape == (4, len(ids), len(ids))
    assert trace(MODEL, ids, chunks=[1] * len(ids))["logits"].shape == (len(ids), 11)


def test_what_would_not_fit_is_refused_before_it_is_computed(monkeypatch):
    needed = sum(value.nbytes for value in trace(MODEL, IDS).values()) + 3 * 4 * 4 * 6 * 6
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: needed)
    trace(MODEL, IDS)
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: needed - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"traced values \+ .* attention scores"):
        trace(MODEL, IDS)
    trace(MODEL, IDS, only="*.q")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.wieghts", r"--only: no value is named \*\.wieghts; did you mean \*\.weights"),
        ("layers.7.attention.q", "the layers are 0 to 1"),
        ("layers.1.attention.qq", r"did you mean layers\.1\.attention\.q"),
        ("norm,", "no value is named ;"),
        ("Ünïcode", "the names are embedding, layers"),
        ("[", r"no value is named \["),
    ],
)
def test_a_pattern_without_a_value_tells_what_comes_near(pattern, message):
    with pytest.raises(UsageError, match=message):
        check_patterns(pattern, list(trace(MODEL, [1])))


# Files


def written(path, **metadata):
    values = trace(MODEL, IDS)
    write_trace(path, values, {"ids": ",".join(map(str, IDS)), **metadata})
    return values


def test_what_is_written_is_read_again_in_its_order(tmp_path):
    values = written(tmp_path / "x", model="m\u00e9")
    again, metadata = read_trace(tmp_path / "x")
    assert list(again) == list(values)
    for name in values:
        np.testing.assert_array_equal(again[name], values[name])
        assert again[name].dtype == np.float32
    assert json.loads(metadata["names"]) == list(values)
    assert (metadata["ids"], metadata["model"]) == (",".join(map(str, IDS)), "m\u00e9")


def test_the_safetensors_library_reads_it_too(tmp_path):
    values = written(tmp_path / "x")
    again = load_file(tmp_path / "x")
    assert again.keys() == values.keys()
    assert all(np.array_equal(again[name], values[name]) for name in values)
    with safe_open(tmp_path / "x", "numpy") as file:
        assert json.loads(file.metadata()["names"]) == list(values)
    assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0, "the numbers are aligned"


def test_the_same_values_are_the_same_bytes(tmp_path):
    written(tmp_path / "a", model="m", device="cpu")
    written(tmp_path / "b", model="m", device="cpu")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_view_is_written_as_what_it_shows(tmp_path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_trace(tmp_path / "x", {"left": wide[:, :2], "back": wide[::-1], "double": wide.astype(float)}, {})
    again, _ = read_trace(tmp_path / "x")
    np.testing.assert_array_equal(again["left"], wide[:, :2])
    np.testing.assert_array_equal(again["back"], wide[::-1])
    np.testing.assert_array_equal(again["double"], wide)


def test_only_what_is_asked_for_is_read_and_always_the_masks(tmp_path):
    values = {name: np.zeros((2, 3), dtype=np.float32) for name in ("a.q", "a.visible", "a.k")}
    write_trace(tmp_path / "x", values, {})
    assert list(read_trace(tmp_path / "x", "*.k")[0]) == ["a.visible", "a.k"]
    with pytest.raises(UsageError, match=r"x: --only: no value is named \*\.w"):
        read_trace(tmp_path / "x", "*.w")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "bool"])
def test_other_dtypes_are_widened(tmp_path, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    save_file({"a": np.ones((2, 3), dtype=kind)}, tmp_path / "x", {"names": '["a"]'})
    values, _ = read_trace(tmp_path / "x")
    assert values["a"].dtype == np.float32
    assert np.all(values["a"] == 1)


def test_an_old_file_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "x").write_text("old")
    written(tmp_path / "x")
    assert "logits" in load_file(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")

    values = {"a": np.zeros((2, 2), dtype=np.float32)}
    with pytest.raises(UsageError, match="expected an existing folder, got"):
        write_trace(tmp_path / "no" / "x", values, {})
    with pytest.raises(UsageError, match=r"cannot be looked up: .*(long|invalid)"):
        write_trace(tmp_path / ("x" * 300), values, {})
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


GOOD = {"a": np.ones((2, 3), dtype=np.float32), "b": np.ones((4, 2, 5), dtype=np.float32)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, {}, 'without a list of "names"'),
        (GOOD, {"names": "a,b"}, 'without a list of "names"'),
        (GOOD, {"names": "[" * 100_000}, 'without a list of "names"'),
        (GOOD, {"names": '{"a": 1, "b": 2}'}, 'without a list of "names"'),
        (GOOD, {"names": '["a", 1]'}, 'without a list of "names"'),
        (GOOD, {"names": "[]"}, 'without a list of "names"'),
        (GOOD, {"names": '["a"]'}, "to list each tensor once; mismatched: 'b'"),
        (GOOD, {"names": '["a", "b", "c"]'}, "to list each tensor once; mismatched: 'c'"),
        (GOOD, {"names": '["a", "b", "a"]'}, "to list each tensor once"),
        (GOOD, {"names": '["a", "b"]', "ids": "1;2"}, "x: ids: expected comma-separated token ids"),
        (GOOD, {"names": '["a", "b"]', "ids": "1," + "9" * 5000}, "x: ids: expected comma-separated token ids"),
        (GOOD, {"names": '["a", "b"]', "ids": "1" + ",1" * 2**20}, "x: ids: expected at most 1048576 token ids, got"),
        (GOOD, {"names": '["a", "b"]', "ids": ""}, "x: ids: expected comma-separated token ids, got ''"),
        (GOOD, {"names": '["a", "b"]', "ids": "1,-2"}, "x: ids: expected comma-separated token ids"),
        (GOOD, {"names": '["a", "b"]', "ids": "1,\u0662"}, "x: ids: expected comma-separated token ids"),
        (GOOD, {"names": '["a", "b"], 1'}, 'without a list of "names"'),
        (GOOD, {"names": '["a", "\\ud800"]'}, 'without a list of "names"'),
        (GOOD, {"names": '["a", "b"]', "ids": "1,2,3"}, r"values of equally many tokens, got \[2, 3\]"),
        (GOOD | {"b": GOOD["b"][:, :1]}, {"names": '["a", "b"]'}, r"equally many tokens, got \[1, 2\]"),
        ({"a": np.ones(3, dtype=np.float32)}, {"names": '["a"]'}, r"a: expected a tensor .* two or more axes, got F32"),
        ({"a": np.ones((0, 3), dtype=np.float32)}, {"names": '["a"]'}, r"a: expected a tensor .* got F32 \[0, 3\]"),
        ({"a": np.ones((2, 0), dtype=np.float32)}, {"names": '["a"]'}, r"a: expected a tensor .* got F32 \[2, 0\]"),
        ({"a": np.ones((), dtype=np.float32)}, {"names": '["a"]'}, r"a: expected a tensor .* got F32 \[\]"),
        ({"a": np.ones((2, 3), dtype=np.uint8)}, {"names": '["a"]'}, r"a: expected a tensor .* got U8"),
        ({"a": np.ones((2, 3), dtype=np.int64)}, {"names": '["a"]'}, r"a: expected a tensor .* got I64"),
        ({"\u202e": np.ones((2, 3))}, {"names": '["\\u202e"]'}, r"printable names, got '\\u202e'"),
        ({"\x1b[31m": np.ones((2, 3))}, {"names": '["\\u001b[31m"]'}, r"printable names, got '\\x1b\[31m'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_safetensors_file_that_is_no_trace(tmp_path, tensors, metadata, message):
    save_file(tensors, tmp_path / "x", metadata)
    with pytest.raises(ModelFileError, match=message):
        read_trace(tmp_path / "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"a text, and no safetensors file",
        b"PK\3\4" + bytes(100),
        b"version https://git-lfs.github.com/spec/v1",
        struct.pack("<Q", 27) + b'{"a":1,"a":1,"__metadata":1}',
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10) + b'{"a": 1}  ',
        struct.pack("<Q", 66) + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}   ' + b"\0" * 4,
    ],
    ids=lambda data: str(data[:12]),
)
def test_a_file_that_is_no_safetensors_file(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ModelFileError, match=f"{tmp_path / 'x'}: expected a trace, which is a safetensors file, got"):
        read_trace(tmp_path / "x")


def test_a_file_cut_short_anywhere(tmp_path):
    write_trace(tmp_path / "x", GOOD, {})
    whole = (tmp_path / "x").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="expected a trace"):
            read_trace(tmp_path / "x")


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused_and_never_a_crash(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "damaged"
    write_trace(path, GOOD, {"ids": "1,2"})
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(bytes(data))
    try:
        values, _ = read_trace(path)
    except (ModelFileError, UsageError):
        return
    assert len(values) == 2


def test_a_file_that_is_not_there_or_may_not_be_read(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_trace(tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be read: "):
        read_trace(tmp_path)
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").chmod(0)
    if os.name == "posix" and os.geteuid() != 0:
        with pytest.raises(UsageError, match="cannot be read: Permission denied"):
            read_trace(tmp_path / "x")


def test_numbers_beyond_float32_become_infinite_without_a_warning(tmp_path):
    save_file({"a": np.array([[1e300, -1e300, np.nan, 1.0]])}, tmp_path / "x", {"names": '["a"]'})
    values, _ = read_trace(tmp_path / "x")
    np.testing.assert_array_equal(values["a"], np.array([[np.inf, -np.inf, np.nan, 1]], dtype=np.float32))


def test_a_trace_is_read_without_logits_and_without_ids(tmp_path):
    save_file(GOOD, tmp_path / "x", {"names": '["b", "a"]'})
    values, metadata = read_trace(tmp_path / "x")
    assert list(values) == ["b", "a"]
    assert "ids" not in metadata


def test_an_allocation_that_fails(tmp_path, monkeypatch):
    write_trace(tmp_path / "x", GOOD, {})

    def fails(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("npllm.inspect.trace.read_value", fails)
    with pytest.raises(NotEnoughMemoryError, match=r"x: the values do not fit \(no room\)"):
        read_trace(tmp_path / "x")


def test_a_trace_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    write_trace(tmp_path / "x", GOOD, {})
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 4 * (6 + 40) - 1)
    with pytest.raises(NotEnoughMemoryError):
        read_trace(tmp_path / "x")
    assert list(read_trace(tmp_path / "x", "a")[0]) == ["a"]
