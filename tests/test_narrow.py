"""Matrices read in 16, 8 and 4 bits have the values in the file."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, dense, write_folder, write_gguf_file
from stored_weights import WORKERS, blocks_of
from tolerance import assert_close

import npllm
from npllm.arrays import Packed
from npllm.checkpoint import narrow
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.plan import Part
from npllm.errors import ModelFileError
from npllm.storage.gguf_blocks import BLOCK_FORMATS
from npllm.storage.groups import ROWS, Groups
from npllm.storage.stored import read_rows


@pytest.mark.parametrize("dtype", BLOCK_FORMATS)
@pytest.mark.parametrize("interleaved_heads", [0, 2])
def test_blocks_of_a_file_keep_their_numbers(tmp_path, dtype, interleaved_heads):
    """The values equal the widened ones bit for bit, with the rows of interleaved heads reordered."""
    width = 3 * BLOCK_FORMATS[dtype].numbers
    raw = blocks_of(dtype, rows=24)
    write_gguf_file(tmp_path / "x.gguf", {}, {"w": (GGUF_DTYPES[dtype], (24, width), raw.tobytes())})
    tensors = read_gguf(tmp_path / "x.gguf")[1]
    layout = narrow.layout_for((24, width), [dtype], "auto")
    part = Part("w", (24, width), 0, interleaved_heads, 8)
    weight = narrow.read_narrow((24, width), [part], tensors, layout, WORKERS[0])
    assert isinstance(weight, Groups)
    assert weight.nbytes == layout.nbytes((24, width))
    assert weight.bits == BLOCK_FORMATS[dtype].bits
    expected = np.concatenate(list(read_rows(tensors["w"])))
    order = narrow.row_order(part)
    if order is not None:
        expected[order] = expected.copy()
    np.testing.assert_array_equal(dense(weight), expected)


@pytest.mark.parametrize("dtype", BLOCK_FORMATS)
def test_the_docs_say_what_a_format_takes(dtype):
    page = Path(__file__).parent.parent / "docs" / "performance.md"
    in_file = 8 * BLOCK_FORMATS[dtype].bytes / BLOCK_FORMATS[dtype].numbers
    in_memory = 8 * narrow.layout_of_file([dtype]).nbytes((ROWS, 4096)) / (ROWS * 4096)
    assert f"| {dtype} | {in_file:g} | {in_memory:g} |" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("formats", "bits"),
    [(("Q4_K", "Q6_K"), 8), (("Q2_K", "Q4_1"), 4), (("Q3_K", "Q5_K"), 8), (("IQ4_XS", "Q5_K"), 8)],
)
def test_parts_of_different_formats_share_a_storage_that_holds_both(tmp_path, formats, bits):
    """As in Q4_K_M files, where the value projections are Q6_K and queries and keys are Q4_K."""
    counts = [768 // BLOCK_FORMATS[kind].numbers for kind in formats]
    raw = {
        name: (kind, blocks_of(kind, rows=rows, blocks=count))
        for name, kind, rows, count in zip("qv", formats, (4, 2), counts, strict=True)
    }
    tensors = {name: (GGUF_DTYPES[kind], (len(rows), 768), rows.tobytes()) for name, (kind, rows) in raw.items()}
    write_gguf_file(tmp_path / "x.gguf", {}, tensors)
    stored = read_gguf(tmp_path / "x.gguf")[1]
    layout = narrow.layout_for((6, 768), formats, "auto")
    assert layout.bits == bits
    parts = [Part("q", (4, 768), 0, 0, 0), Part("v", (2, 768), 4, 0, 0)]
    weight = narrow.read_narrow((6, 768), parts, stored, layout, WORKERS[0])
    expected = np.concatenate([*read_rows(stored["q"]), *read_rows(stored["v"])])
    np.testing.assert_allclose(dense(weight), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("model_type", ["phi3", "llama"])
def test_a_model_in_a_narrow_dtype_computes_with_its_own_numbers(tmp_path, dtype, model_type):
    """The logits equal those of the same matrices in float32."""
    write_folder(tmp_path / "m", model_type, hidden_size=64, intermediate_size=96, head_dim=16, tokenizer=False)
    lm = npllm.load(tmp_path / "m", dtype=dtype)
    assert all(isinstance(block.qkv_proj, Packed) for block in lm.weights.layers)
    layers = [
        block._replace(**{name: dense(w) for name, w in block._asdict().items() if isinstance(w, Packed)})
        for block in lm.weights.layers
    ]
    head, table = dense(lm.weights.lm_head), dense(lm.weights.embed_tokens)
    widened = lm.weights._replace(layers=tuple(layers), lm_head=head, embed_tokens=table)
    ids = np.arange(12)
    ours, _ = npllm.forward(ids, lm)
    assert_close("logits", ours, npllm.forward(ids, lm._replace(weights=widened))[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_a_number_that_is_not_finite_is_found(tmp_path, dtype):
    tensors = write_folder(tmp_path / "m", dtype="float32", hidden_size=64, intermediate_size=96, tokenizer=False)
    name = "model.layers.0.mlp.down_proj.weight"
    path = tmp_path / "m" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    at = raw.index(tensors[name].tobytes())
    raw[at : at + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=f"{name}: expected finite numbers, got a NaN or an infinity"):
        npllm.load(tmp_path / "m", dtype=dtype)


def test_a_number_too_large_for_float16_is_found(tmp_path):
    tensors = write_folder(tmp_path / "m", dtype="float32", tokenizer=False)
    path = tmp_path / "m" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    at = raw.index(tensors["model.layers.0.mlp.down_proj.weight"].tobytes())
    raw[at : at + 4] = np.float32(1e6).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="got one too large for float16; take another dtype"):
        npllm.load(tmp_path / "m", dtype="float16")
    assert npllm.load(tmp_path / "m", dtype="bfloat16").weights.layers[0].down_proj.rows(np.array([0])).max() > 9e5
