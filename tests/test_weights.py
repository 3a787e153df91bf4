"""The weights of a model in memory, and the storage of each."""

import ml_dtypes
import numpy as np
import pytest
from checkpoints import write_folder, write_gguf, write_gpt2_folder

import npllm


@pytest.fixture(scope="module")
def short_rows(tmp_path_factory):
    """A tied model, large enough for its matrices to be reordered."""
    folder = tmp_path_factory.mktemp("short")
    write_folder(folder / "tied", "llama", "bfloat16", tied=True, vocab_size=4096, hidden_size=64)
    return folder


def test_auto_keeps_the_width_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    for dtype, kept in {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}.items():
        write_folder(tmp_path / dtype, dtype=dtype, tokenizer=False)
        assert npllm.load(tmp_path / dtype).weights.layers[0].down_proj.dtype == kept
    write_gguf(tmp_path / "m.gguf", "llama", "Q8_0")
    assert npllm.load(tmp_path / "m.gguf").weights.layers[0].down_proj.dtype == "int8/32"


def test_rows_that_no_group_fits_stay_float32(tmp_path):
    write_folder(tmp_path / "m", hidden_size=40, intermediate_size=48, head_dim=8, tokenizer=False)
    weights = npllm.load(tmp_path / "m", dtype="int8").weights
    assert weights.layers[0].qkv_proj.dtype == np.float32


def test_small_matrices_share_a_piece_of_memory(short_rows, monkeypatch):
    """Transposed or not, with the same values as when each is allocated separately."""
    first = npllm.load(short_rows / "tied").weights.layers
    pieces = {id(weight.base.base if weight.base.base is not None else weight.base) for weight in matrices(first)}
    assert len(pieces) == 1
    monkeypatch.setattr("npllm.checkpoint.weights.ALONE_FROM", 0)
    for ours, apart in zip(matrices(first), matrices(npllm.load(short_rows / "tied").weights.layers), strict=True):
        np.testing.assert_array_equal(ours, apart)


def matrices(layers):
    return [weight for layer in layers for weight in layer if weight is not None and weight.ndim == 2]


def test_what_is_only_looked_up_stays_by_rows(tmp_path):
    write_gpt2_folder(tmp_path / "gpt2", n_positions=4096, n_embd=64)
    assert npllm.load(tmp_path / "gpt2").weights.embed_positions.flags.c_contiguous
    write_folder(tmp_path / "apart", "llama", "bfloat16", tied=False, vocab_size=4096, hidden_size=64)
    weights = npllm.load(tmp_path / "apart").weights
    assert weights.embed_tokens.flags.c_contiguous
    assert weights.lm_head.flags.f_contiguous


def test_a_small_model_becomes_float32(short_rows, monkeypatch):
    assert npllm.load(short_rows / "tied").weights.layers[0].qkv_proj.dtype == np.float32
    monkeypatch.setattr("npllm.checkpoint.weights.NARROW_FROM", 1)
    assert npllm.load(short_rows / "tied").weights.layers[0].qkv_proj.dtype == ml_dtypes.bfloat16
