"""The header of a safetensors file: writing it, and every way in which a header can be malformed."""

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from checkpoints import config_keys, random_weights, write_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from npllm.errors import ModelFileError
from npllm.storage.safetensors_file import Entry, header, read_header

NORM = "model.norm.weight"  # [64] float32: 256 bytes


@pytest.fixture
def path(tmp_path):
    """The weights file of a Phi-3 folder, for a test to damage."""
    write_folder(tmp_path / "model", tokenizer=False)
    return tmp_path / "model" / "model.safetensors"


def rewrite(path, change):
    """Pass the header and the data to `change`, and write what it returns."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    keys, data = change(json.loads(raw[8 : 8 + length]), raw[8 + length :])
    text = json.dumps(keys).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refuses(path, *parts):
    """Assert that reading the header raises ModelFileError with a one-line message that contains all parts."""
    with pytest.raises(ModelFileError) as raised:
        read_header(path)
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def test_the_header_is_as_the_format_says():
    raw = header([Entry("a", "F32", (2, 3)), Entry("b", "U8", (5,))], {"format": "pt"})
    assert len(raw) % 8 == 0
    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
    entries = json.loads(raw[8:])
    assert entries["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert entries["b"]["data_offsets"] == [24, 29]
    assert entries["__metadata__"] == {"format": "pt"}


def test_what_is_written_is_read_again_here_and_by_the_library(tmp_path):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.uint8)}
    entries = [Entry("a", "F32", (2, 3)), Entry("b", "U8", (5,))]
    raw = header(entries, {"note": "Grüße"}) + b"".join(value.tobytes() for value in values.values())
    (tmp_path / "x.safetensors").write_bytes(raw)
    found = read_header(tmp_path / "x.safetensors")
    assert [(one.name, one.dtype, one.shape) for one in found.values()] == [tuple(entry) for entry in entries]
    assert [one.offset - found["a"].offset for one in found.values()] == [0, 24]
    for name, value in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(value, values[name])


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 3000, -1])
def test_a_file_cut_short(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    refuses(path, "model.safetensors: expected")


def test_a_file_with_more_than_its_header_says(path):
    with path.open("ab") as file:
        file.write(b"more")
    refuses(path, "model.safetensors: expected")


def test_a_header_longer_than_the_file(path):
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    refuses(path, "expected a header of 9223372036854775808 bytes")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [64], "data_offsets": [-256, 0]},
        {"dtype": "F32", "shape": [64], "data_offsets": [256, 0]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 256, 512]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0.0, 256.0]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 2**64]},
        {"dtype": "F32", "shape": [63], "data_offsets": None},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": None},
        {"dtype": "F32", "shape": [-64], "data_offsets": None},
        {"dtype": "F32", "shape": [True], "data_offsets": None},
        {"dtype": "F32", "shape": 64, "data_offsets": None},
        {"dtype": 32, "shape": [64], "data_offsets": None},
        {"dtype": "F32", "shape": [0], "data_offsets": None},
        {"dtype": "F32", "shape": [], "data_offsets": None},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": None},  # 2**66 bytes: 0 in 64 bits
        {"dtype": "F32", "shape": [64.0], "data_offsets": None},
        {"dtype": "F32", "shape": ["64"], "data_offsets": None},
        {"dtype": "F32", "shape": None, "data_offsets": None},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": None},
        {"dtype": "F64", "shape": [64], "data_offsets": None},
        {"dtype": "I64", "shape": [64], "data_offsets": None},
        {"dtype": "BOOL", "shape": [64], "data_offsets": None},
        {"dtype": "F8_E5M2", "shape": [64], "data_offsets": None},
        {"dtype": "", "shape": [64], "data_offsets": None},
        {"dtype": None, "shape": [64], "data_offsets": None},
        {"dtype": "F32", "shape": [64], "data_offsets": [0, None]},
        {"dtype": "F32", "shape": [64], "data_offsets": [False, 256]},
        {"dtype": "F32", "shape": [64], "data_offsets": "0, 256"},
        {"shape": [64], "data_offsets": None},
        "F32",
        7,
        [],
        None,
    ],
)
def test_a_header_that_lies(path, entry):
    def change(header, numbers):
        true_span = header[NORM]["data_offsets"]
        if isinstance(entry, dict) and entry["data_offsets"] is None:
            header[NORM] = entry | {"data_offsets": true_span}
        else:
            header[NORM] = entry
        return header, numbers

    rewrite(path, change)
    refuses(path, "model.safetensors: ")


def test_tensors_that_overlap(path):
    def change(header, numbers):
        other = "model.layers.0.input_layernorm.weight"
        header[NORM]["data_offsets"] = header[other]["data_offsets"]
        return header, numbers

    rewrite(path, change)
    refuses(path, "there is an overlap or a gap")


def test_bytes_that_belong_to_no_tensor(path):
    def change(header, numbers):
        del header["model.layers.0.mlp.down_proj.weight"]
        return header, numbers

    rewrite(path, change)
    refuses(path, "there is an overlap or a gap")


@given(st.data())
def test_no_damage_to_a_header_is_a_crash(tmp_path_factory, data):
    """Damage raises ModelFileError or goes unnoticed here, like a changed letter in a name."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    keys = config_keys(num_hidden_layers=1, hidden_size=8, intermediate_size=8, vocab_size=2)
    raw = bytearray(save(random_weights(keys)))
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with suppress(ModelFileError):
        read_header(path)


@pytest.mark.parametrize("dtype", ["int8/32", "f32"])
def test_a_dtype_of_several_tensors_cannot_be_claimed(path, dtype):
    def change(keys, data):
        keys[NORM]["dtype"] = dtype
        return keys, data

    rewrite(path, change)
    refuses(path, "expected dtype, shape, data_offsets")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {}, "b": {}, "a": {}}', "expected each name once, got 'a' twice"),
        ('{"a": {"dtype": "F32", "dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}', "got 'dtype' twice"),
        ('{"__metadata__": {"x": "1", "x": "2"}}', "got 'x' twice"),
        ('{"__metadata__": []}', "__metadata__: expected an object of texts"),
        ('{"__metadata__": {"format": 1}}', "__metadata__: expected an object of texts"),
        ('{"__metadata__": "pt"}', "__metadata__: expected an object of texts"),
        ("[]", "expected a JSON object, got list"),
        ("", "expected JSON, got Expecting value"),
        (r'{"\ud800": {}}', "which is no character"),
    ],
)
def test_headers_that_are_ambiguous_or_of_another_kind(tmp_path, text, message):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    refuses(tmp_path / "x.safetensors", "x.safetensors: ", message)


@pytest.mark.parametrize("metadata", ["", '"__metadata__": null, ', '"__metadata__": {}, '])
def test_metadata_may_be_missing_and_a_tensor_empty(tmp_path, metadata):
    text = "{" + metadata + '"a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    assert read_header(tmp_path / "x.safetensors")["a"].shape == (0, 4)


def test_twice_is_found_among_many_names_in_no_time(tmp_path):
    names = [*map(str, range(50_000)), "49999"]
    text = "{" + ",".join(f'"{name}":0' for name in names) + "}"
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    refuses(tmp_path / "x.safetensors", "got '49999' twice")


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"), (b"<!DOCTYPE html>", "a web page")],
)
def test_another_file_in_its_place_is_named(tmp_path, start, kind):
    (tmp_path / "x.safetensors").write_bytes(start + b"more")
    refuses(tmp_path / "x.safetensors", "got a file of", kind)
