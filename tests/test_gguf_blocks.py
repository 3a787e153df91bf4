"""GGUF's block formats: bit for bit the gguf package's values."""

import struct

import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, write_gguf_file
from stored_weights import SCALES, blocks_of, read_all

from npllm.checkpoint.gguf import read_gguf
from npllm.storage.gguf_blocks import BLOCK_FORMATS
from npllm.storage.stored import FORMATS


def by_the_book(dtype: str, block: np.ndarray) -> list[float]:
    """One block of 32 values, decoded as ggml documents the type."""
    raw = block.tobytes()
    scale = struct.unpack("<e", raw[:2])[0]
    if dtype == "Q8_0":
        return [scale * number for number in struct.unpack("<32b", raw[2:])]
    minimum = struct.unpack("<e", raw[2:4])[0] if dtype == "Q4_1" else -8 * scale
    nibbles = [byte & 15 for byte in raw[-16:]] + [byte >> 4 for byte in raw[-16:]]
    return [scale * nibble + minimum for nibble in nibbles]


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_blocks_by_the_book(tmp_path, dtype):
    raw = blocks_of(dtype)
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES[dtype], (7, 96), raw.tobytes())})
    got = read_all(read_gguf(tmp_path / "x.gguf")[1]["w"])
    expected = [by_the_book(dtype, block) for block in raw.reshape(-1, FORMATS[dtype].bytes)]
    np.testing.assert_allclose(got.reshape(-1, 32), expected, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", SCALES)
def test_quantized_blocks_are_bit_equal_with_the_gguf_package(tmp_path, dtype):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    raw = blocks_of(dtype, rows=50, blocks=11)
    shape = (50, 11 * FORMATS[dtype].numbers)
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES[dtype], shape, raw.tobytes())})
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[dtype])
    np.testing.assert_array_equal(read_all(read_gguf(tmp_path / "x.gguf")[1]["w"]).view("u4"), expected.view("u4"))


@pytest.mark.parametrize("dtype", SCALES)
def test_a_format_says_what_its_blocks_have(dtype):
    kind, raw = BLOCK_FORMATS[dtype], blocks_of(dtype, rows=2, blocks=50).reshape(100, -1)
    split = kind.split(raw)
    codes = kind.codes(split)
    assert codes.shape == (100, kind.numbers // kind.group, kind.group)
    assert split.scale.shape == codes.shape[:2]
    assert (split.minimum is not None) == kind.has_minimum
    assert codes.min() >= kind.smallest
    assert kind.bits == 8 or kind.values or codes.max() - kind.smallest <= 15
