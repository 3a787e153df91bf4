"""A tensor in a file: read unchanged or widened, in pieces, and checked for NaN and infinities."""

import os

import ml_dtypes
import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, write_folder, write_gguf_file
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from stored_weights import read_all

from npllm.checkpoint.folder import read_folder
from npllm.checkpoint.gguf import read_gguf
from npllm.errors import ModelFileError
from npllm.storage import stored
from npllm.storage.safetensors_file import read_header
from npllm.storage.stored import Stored, is_finite, read_pieces, read_rows

EXACT = ["F32", "F16", "BF16"]


@pytest.mark.parametrize("dtype", EXACT)
def test_floats_are_bit_equal_with_the_gguf_package(tmp_path, dtype):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    values = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32) * 1000
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[dtype])
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES[dtype], (5, 33), raw.tobytes())})
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[dtype])
    np.testing.assert_array_equal(read_all(read_gguf(tmp_path / "x.gguf")[1]["w"]).view("u4"), expected.view("u4"))


def test_all_values_that_16_bits_can_write(tmp_path):
    """Every float16 and bfloat16 value, including the subnormals, which many conversions lose."""
    every = np.arange(2**16, dtype=np.uint16)
    tensors = {"half": (1, (2**16,), every.tobytes()), "brain": (30, (2**16,), every.tobytes())}
    write_gguf_file(tmp_path / "x.gguf", {}, tensors)
    stored = read_gguf(tmp_path / "x.gguf")[1]
    np.testing.assert_array_equal(read_all(stored["half"]), every.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(read_all(stored["brain"]), (every.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_finite_is_what_numpy_calls_finite(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    expected = np.isfinite(every.astype(np.float32))
    borders = [place + i for place in (0x7C00, 0x7F80, 0x8000, 0xFC00, 0xFF80) for i in (-1, 0, 1)]
    for i in (*borders, *range(0, 2**16, 97)):
        assert is_finite(every[i : i + 1]) == expected[i]
    assert is_finite(every[expected])
    assert not is_finite(every)


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_finite_float32(bits):
    numbers = np.array(bits, dtype=np.uint32).view(np.float32)
    assert is_finite(numbers) == np.isfinite(numbers).all()


@pytest.mark.parametrize("at", [0, 17, -1])
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFC0])
def test_a_number_that_is_not_finite_is_found_in_every_piece(tmp_path, monkeypatch, at, bits):
    monkeypatch.setattr(stored, "PIECE", 4)
    numbers = np.arange(35, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(5, 7)
    save_file({"w": numbers}, tmp_path / "good.safetensors")
    place = np.zeros((5, 7), dtype=ml_dtypes.bfloat16)
    stored.read_unchanged(place, read_header(tmp_path / "good.safetensors")["w"])
    np.testing.assert_array_equal(place.view("u2"), numbers.view("u2"))
    numbers.reshape(-1).view(np.uint16)[at] = bits
    save_file({"w": numbers}, tmp_path / "bad.safetensors")
    with pytest.raises(ModelFileError, match="w: expected finite numbers, got a NaN or an infinity"):
        stored.read_unchanged(place, read_header(tmp_path / "bad.safetensors")["w"])


def test_a_file_cut_short_after_its_header_was_read(tmp_path):
    write_folder(tmp_path / "m", tokenizer=False)
    stored = read_folder(tmp_path / "m")["lm_head.weight"]
    os.truncate(stored.path, stored.offset + 100)
    with pytest.raises(ModelFileError, match="cut short while it was read"):
        list(read_rows(stored))


@pytest.mark.parametrize(("shape", "columns"), [((6,), 1), ((2, 3), 3), ((3, 2, 2), 2)])
def test_pieces_are_whole_rows_of_the_last_axis(tmp_path, shape, columns):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save_file({"w": values}, tmp_path / "x.safetensors")
    tensor = read_header(tmp_path / "x.safetensors")["w"]
    assert isinstance(tensor, Stored)
    assert tensor.columns == columns
    pieces = list(read_pieces(tensor, 2))
    assert {count for count, _ in pieces[:-1]} <= {2}
    np.testing.assert_array_equal(np.concatenate([raw.view(np.float32) for _, raw in pieces]).reshape(shape), values)
