"""MXFP4: bit for bit transformers' values, and a matrix that stays packed in memory."""

import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, dense, write_gguf_file
from stored_weights import WORKERS, blocks_of, matrix, shrink_tiles
from tolerance import assert_close

from npllm.checkpoint import narrow
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.plan import Part
from npllm.errors import ModelFileError
from npllm.storage.mxfp4 import MXFP4, PAIRED, integers

NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


def pairs(groups=40, seed=0):
    """Blocks and scales as in Hugging Face's files, with all exponents that a model may have."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (groups, 16), dtype=np.uint8)
    return [blocks, rng.integers(100, 150, (groups, 1)).astype(np.uint8)]


def packed(tmp_path, height=17, width=96):
    """A matrix in MXFP4 from a .gguf file."""
    raw = blocks_of("MXFP4", rows=height, blocks=width // 32)
    raw.reshape(-1, 17)[:, 0] = 120 + raw.reshape(-1, 17)[:, 0] % 10
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES["MXFP4"], (height, width), raw.tobytes())})
    layout = narrow.layout_for((height, width), ["MXFP4"], "auto")
    tensors = read_gguf(tmp_path / "x.gguf")[1]
    return narrow.read_narrow((height, width), [Part("w", (height, width))], tensors, layout, WORKERS[1]), layout


def test_neighbours_share_a_byte_of_hugging_faces_blocks():
    blocks, exponents = pairs()
    values = PAIRED.widen([blocks, exponents])
    for group in range(len(blocks)):
        for i in range(32):
            code = int(blocks[group, i // 2]) >> 4 * (i % 2) & 15
            assert values[group, i] == NUMBERS[code] * 2.0 ** (int(exponents[group, 0]) - 127)


@pytest.mark.oracle
def test_blocks_and_scales_are_bit_equal_with_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers.integrations.mxfp4", reason="transformers is not installed")
    blocks, exponents = pairs(groups=6 * 5)
    whole = torch.from_numpy(blocks).reshape(2, 3, 5, 16), torch.from_numpy(exponents).reshape(2, 3, 5)
    expected = module.convert_moe_packed_tensors(*whole, dtype=torch.float32).transpose(1, 2)
    np.testing.assert_array_equal(PAIRED.widen([blocks, exponents]).reshape(2, 3, 160), expected.numpy())


def test_the_codes_are_twice_the_numbers_and_a_scale_of_255_is_no_number():
    np.testing.assert_array_equal(integers(np.arange(16, dtype=np.uint8)), 2 * np.array(NUMBERS))
    assert np.isnan(MXFP4.widen(np.full((1, 17), 255, dtype=np.uint8))).all()


@pytest.mark.parametrize("vectors", [1, 8, 9])
def test_a_packed_matrix_multiplies_like_its_numbers(tmp_path, monkeypatch, vectors):
    shrink_tiles(monkeypatch)
    weight, layout = packed(tmp_path)
    assert (weight.bits, weight.nbytes) == (4, layout.nbytes((17, 96)))
    assert weight.scale.itemsize == 2  # 4.5 bits for each number
    x = matrix(vectors, 96, seed=1)
    assert_close("product", weight.matmul(x), x @ dense(weight).T)


def test_a_matrix_whose_parts_are_not_all_in_mxfp4_has_8_bits(tmp_path):
    for other in ("Q4_0", "Q8_0"):
        layout = narrow.layout_for((2, 64), ["MXFP4", other], "auto")
        assert (layout.bits, layout.values, layout.scale_dtype) == (8, None, np.float32)
        raw = {"a": ("MXFP4", blocks_of("MXFP4", rows=1, blocks=2)), "b": (other, blocks_of(other, rows=1, blocks=2))}
        tensors = {name: (GGUF_DTYPES[kind], (1, 64), blocks.tobytes()) for name, (kind, blocks) in raw.items()}
        write_gguf_file(tmp_path / "x.gguf", {}, tensors)
        stored = read_gguf(tmp_path / "x.gguf")[1]
        parts = [Part("a", (1, 64)), Part("b", (1, 64), 1)]
        weight = narrow.read_narrow((2, 64), parts, stored, layout, WORKERS[0])
        expected = [narrow.FORMATS[kind].widen(blocks.reshape(2, -1)).reshape(64) for kind, blocks in raw.values()]
        np.testing.assert_array_equal(dense(weight), expected)


def test_a_scale_that_is_no_number_is_found(tmp_path):
    raw = np.full((1, 17), 255, dtype=np.uint8)
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES["MXFP4"], (1, 32), raw.tobytes())})
    tensors, layout = read_gguf(tmp_path / "x.gguf")[1], narrow.layout_for((1, 32), ["MXFP4"], "auto")
    with pytest.raises(ModelFileError, match="w: expected finite numbers"):
        narrow.read_narrow((1, 32), [Part("w", (1, 32))], tensors, layout, WORKERS[0])
