"""GPT-2 files: what is read from them, and the ways they can be broken."""

import json

import numpy as np
import pytest
from checkpoints import dense, gpt2_buffers, gpt2_config_keys, random_gpt2_weights, write_gpt2_folder
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

import npllm
from npllm.errors import ModelFileError, NotEnoughMemoryError
from npllm.families import read_config
from npllm.families.gpt2 import gpt2_transform
from npllm.shapes import GPT2BlockWeights

NAMES = {
    "ln_1": "ln_1",
    "qkv_proj": "attn.c_attn",
    "o_proj": "attn.c_proj",
    "ln_2": "ln_2",
    "c_fc": "mlp.c_fc",
    "c_proj": "mlp.c_proj",
}


@pytest.fixture
def folder(tmp_path):
    """A valid GPT-2 folder for a test to break."""
    write_gpt2_folder(tmp_path / "model", tokenizer=False)
    return tmp_path / "model"


def set_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def assert_same(weights, tensors, layers=2):
    """Our weights are the file's tensors, with the block matrices transposed to [out, in]."""
    np.testing.assert_array_equal(dense(weights.embed_tokens), tensors["wte.weight"].astype(np.float32))
    np.testing.assert_array_equal(dense(weights.embed_positions), tensors["wpe.weight"].astype(np.float32))
    np.testing.assert_array_equal(weights.norm, tensors["ln_f.weight"].astype(np.float32))
    np.testing.assert_array_equal(weights.norm_bias, tensors["ln_f.bias"].astype(np.float32))
    assert len(weights.layers) == layers
    for layer, block in enumerate(weights.layers):
        assert isinstance(block, GPT2BlockWeights)
        for ours, theirs in NAMES.items():
            weight = dense(getattr(block, ours))
            assert weight.flags.c_contiguous
            np.testing.assert_array_equal(weight, tensors[f"h.{layer}.{theirs}.weight"].T.astype(np.float32), ours)
            bias = getattr(block, f"{ours}_bias")
            np.testing.assert_array_equal(bias, tensors[f"h.{layer}.{theirs}.bias"].astype(np.float32), ours)


# What is read


@pytest.mark.parametrize(("prefix", "buffers"), [("", True), ("transformer.", False), ("transformer.", True)])
@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 3), ("float16", 1)])
def test_the_weights_are_those_in_the_files(tmp_path, prefix, buffers, dtype, shards):
    tensors = write_gpt2_folder(tmp_path / "m", dtype, shards, prefix, buffers)
    lm = npllm.load(tmp_path / "m")
    assert_same(lm.weights, tensors)
    assert lm.weights.lm_head is lm.weights.embed_tokens
    assert lm.weights.score is None
    assert lm.transform is gpt2_transform


def test_a_matrix_longer_than_a_piece_is_joined(tmp_path, monkeypatch):
    tensors = write_gpt2_folder(tmp_path / "m", tokenizer=False)
    for piece in (1, 48, 500):  # less than a row, a row, three rows and a bit
        monkeypatch.setattr("npllm.storage.stored.PIECE", piece)
        assert_same(npllm.load(tmp_path / "m").weights, tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_matrices_can_be_kept_in_fewer_bits(tmp_path, dtype):
    tensors = write_gpt2_folder(tmp_path / "m", tokenizer=False, n_embd=64)
    ids = np.arange(9)
    logits = {}
    for kind in ("float32", dtype):
        lm = npllm.load(tmp_path / "m", dtype=kind)
        logits[kind], _ = npllm.forward(ids, lm)
    close = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 2**-6}[dtype]
    for ours, theirs in NAMES.items():
        expected = tensors[f"h.1.{theirs}.weight"].T
        np.testing.assert_allclose(dense(getattr(lm.weights.layers[1], ours)), expected, rtol=close, atol=4 * close)
    assert 0 < np.max(np.abs(logits[dtype] - logits["float32"])) < 2


def test_a_head_that_differs_is_read_and_a_copy_of_the_embeddings_is_not(tmp_path):
    tensors = write_gpt2_folder(tmp_path / "m", prefix="transformer.", tokenizer=False, tie_word_embeddings=False)
    weights = npllm.load(tmp_path / "m").weights
    np.testing.assert_array_equal(weights.lm_head, tensors["lm_head.weight"])
    set_config(tmp_path / "m", tie_word_embeddings=True)
    np.testing.assert_array_equal(npllm.load(tmp_path / "m").weights.lm_head, tensors["lm_head.weight"])
    change_tensors(tmp_path / "m", put("lm_head.weight", tensors["wte.weight"]))
    weights = npllm.load(tmp_path / "m").weights
    assert weights.lm_head is weights.embed_tokens


def test_config_json_is_read_under_gpt2s_names():
    config = read_config(gpt2_config_keys(n_inner=100, layer_norm_epsilon=1e-6, pad_token_id=3))
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (48, 100, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 12)
    assert (config.max_position_embeddings, config.layer_norm_epsilon, config.vocab_size) == (64, 1e-6, 288)
    assert (config.tie_word_embeddings, config.attention_bias, config.mlp_bias) == (True, True, True)
    assert (config.sliding_window, config.window(1), config.pad_token_id) == (None, None, 3)
    assert config.eos_token_id == (gpt2_config_keys()["eos_token_id"],)
    assert config.architectures == ("GPT2LMHeadModel",)


def test_the_common_name_of_a_key_wins():
    """As in transformers, where GPT-2's names are aliases for the same attributes."""
    config = read_config(gpt2_config_keys(n_embd=48, n_layer=2) | {"hidden_size": 64, "num_hidden_layers": 3})
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)


def test_what_config_json_leaves_out_has_gpt2s_default():
    left_out = {"layer_norm_epsilon", "activation_function", "eos_token_id", "architectures", "n_ctx"}
    config = read_config({key: value for key, value in gpt2_config_keys().items() if key not in left_out})
    assert (config.intermediate_size, config.layer_norm_epsilon, config.eos_token_id) == (4 * 48, 1e-5, ())
    assert read_config(gpt2_config_keys() | {"n_inner": None}).intermediate_size == 4 * 48


@pytest.mark.parametrize(
    "keys",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"reorder_and_upcast_attn": True},  # about float16
        {"n_head": 16, "n_embd": 48},  # an odd head width: without RoPE there are no pairs
        {
            "num_key_value_heads": 2,
            "head_dim": 5,
            "hidden_act": "relu",
            "rope_scaling": {"type": "yarn"},
        },  # not GPT-2's
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ],
)
def test_keys_that_change_nothing_are_accepted(keys):
    config = read_config(gpt2_config_keys() | keys)
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.head_dim * config.num_attention_heads == 48
    assert config.rope_scaling is None


# What is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"activation_function": "quick_gelu"}, "activation_function: expected 'gelu_new' or"),
        ({"activation_function": None}, "activation_function: expected 'gelu_new'"),
        ({"activation_function": ["gelu_new"]}, "activation_function: expected 'gelu_new'"),
        ({"scale_attn_weights": False}, "scale_attn_weights: expected True, got False; npllm does not compute it"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: expected False, got True"),
        ({"n_embd": None}, "n_embd: expected a whole number from 1 to 131072, got None"),
        ({"n_embd": 50}, "n_embd: expected a multiple of n_head, 4"),
        ({"n_embd": "48"}, "n_embd: expected a whole number"),
        ({"n_embd": 2**40}, "n_embd: expected a whole number from 1 to 131072"),
        ({"n_inner": 0}, "n_inner: expected a whole number from 1 to 1048576, got 0"),
        ({"n_inner": 2**30}, "n_inner: expected a whole number"),
        ({"n_layer": -1}, "n_layer: expected a whole number from 1 to 1024, got -1"),
        ({"n_layer": 10**9}, "n_layer: expected a whole number from 1 to 1024"),
        ({"n_head": True}, "n_head: expected a whole number from 1 to 4096, got True"),
        ({"n_positions": 10**12}, "n_positions: expected a whole number"),
        ({"vocab_size": 2**31}, "vocab_size: expected a whole number"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon: expected a positive number (1e-30 to 1e30), got 0"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon: expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, got 'yes'"),
        ({"eos_token_id": -2}, "eos_token_id: expected a token id"),
        ({"architectures": "GPT2LMHeadModel"}, "architectures: expected a list of strings"),
    ],
)
def test_config_that_npllm_cannot_compute(folder, keys, message):
    set_config(folder, **keys)
    with pytest.raises(ModelFileError) as raised:
        npllm.load(folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 4


def lose(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lose("wpe.weight"), ["1 missing tensors: wpe.weight"]),
        (lose("h.1.attn.c_attn.bias"), ["1 missing tensors: h.1.attn.c_attn.bias"]),
        (lose("ln_f.bias"), ["1 missing tensors: ln_f.bias"]),
        (put("h.1.ln_3.weight", np.ones(48, np.float32)), ["1 unknown tensors: h.1.ln_3.weight"]),
        (put("score.weight", np.ones((2, 48), np.float32)), ["1 unknown tensors: score.weight"]),
        (put("h.0.attn.rotary.inv_freq", np.ones(3, np.float32)), ["1 unknown tensors"]),
        (put("h.0.mlp.c_fc.weight", np.ones((192, 48), np.float32)), ["c_fc.weight expected [48, 192], got [192, 48]"]),
        (put("h.0.ln_2.weight", np.ones((48, 1), np.float32)), ["h.0.ln_2.weight expected [48], got [48, 1]"]),
        (put("wpe.weight", np.ones((63, 48), np.float32)), ["wpe.weight expected [64, 48], got [63, 48]"]),
        (put("wte.weight", np.ones((288, 48), np.int64)), ["wte.weight I64"]),
        (put("h.0.attn.c_proj.weight", np.full((48, 48), np.nan, np.float32)), ["c_proj.weight", "a NaN"]),
        (put("wpe.weight", np.full((64, 48), np.inf, np.float32)), ["wpe.weight", "an infinity"]),
    ],
)
def test_tensors_that_are_wrong(folder, change, parts):
    change_tensors(folder, change)
    with pytest.raises(ModelFileError) as raised:
        npllm.load(folder)
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def test_messages_name_the_tensors_as_the_file_does(tmp_path):
    write_gpt2_folder(tmp_path / "m", prefix="transformer.", tokenizer=False)
    change_tensors(tmp_path / "m", lose("transformer.h.0.ln_1.bias"))
    with pytest.raises(ModelFileError, match=r"1 missing tensors: transformer\.h\.0\.ln_1\.bias"):
        npllm.load(tmp_path / "m")


def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 100_000)
    with pytest.raises(NotEnoughMemoryError, match="weights"):
        npllm.load(folder)


def test_a_mask_among_the_weights_is_not_read(tmp_path):
    keys = gpt2_config_keys()
    write_gpt2_folder(tmp_path / "m", tokenizer=False)
    change_tensors(tmp_path / "m", lambda tensors: tensors.update(gpt2_buffers(keys)))
    assert_same(npllm.load(tmp_path / "m").weights, random_gpt2_weights(keys))


def test_it_generates_text_chunk_by_chunk_as_in_one(tmp_path):
    write_gpt2_folder(tmp_path / "m", prefix="transformer.", buffers=True)
    lm = npllm.load(tmp_path / "m")
    ids = lm.tokenizer.encode("the end and the beginning")
    logits, _ = npllm.forward(np.array(ids), lm)
    generation = npllm.generate(lm, "the end and the beginning", max_new_tokens=5)
    assert generation.ids[0] == np.argmax(logits[-1])
    assert generation.text == lm.tokenizer.decode(generation.ids, skip_special_tokens=True)
    assert npllm.generate(lm, ids, max_new_tokens=5, use_cache=False).ids == generation.ids
    with pytest.warns(UserWarning, match="the context 64"):
        assert len(npllm.generate(lm, ids, max_new_tokens=100).ids) <= 64 - len(ids)


def test_the_last_position_of_the_table_can_be_used(tmp_path):
    write_gpt2_folder(tmp_path / "m", tokenizer=False, n_positions=8)
    lm = npllm.load(tmp_path / "m")
    ids = list(range(7))
    generation = npllm.generate(lm, ids, max_new_tokens=1)
    logits, _ = npllm.forward(np.array(ids), lm)
    assert generation.ids == [int(np.argmax(logits[-1]))]
    whole, _ = npllm.forward(np.arange(8), lm)
    assert_close("logits", whole[:7], logits)
