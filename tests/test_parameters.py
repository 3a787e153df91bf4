"""gpt-oss's tensors: sinks and experts by other names, experts in MXFP4, and all of them written again."""

import json

import numpy as np
import pytest
from checkpoints import dense
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

import npllm
from npllm.checkpoint import weights as module
from npllm.checkpoint.write import convert
from npllm.errors import ModelFileError
from npllm.storage.groups import Groups
from npllm.storage.mxfp4 import PAIRED, integers

KEYS = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": 23,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
}
IDS = np.arange(9)


def pairs(rng, experts, rows, columns):
    """Random blocks and scales, and their numbers, [E, rows, columns]."""
    blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
    scales = rng.integers(122, 125, blocks.shape[:-1]).astype(np.uint8)
    numbers = PAIRED.widen([blocks.reshape(-1, 16), scales.reshape(-1, 1)])
    return blocks, scales, numbers.reshape(experts, rows, columns)


def tensors_of(packed, keys=KEYS, seed=0):
    """The tensors of a tiny model: its experts as MXFP4, or as the same numbers, [E, in, out]."""
    rng, D, F, E = (
        np.random.default_rng(seed),
        keys["hidden_size"],
        keys["intermediate_size"],
        keys["num_local_experts"],
    )
    N, K = (keys[name] * keys["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    V = keys["vocab_size"]
    tensors = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(keys["num_hidden_layers"]):
        inside = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        for name, rows in {"q": N, "k": K, "v": K}.items():
            inside |= {f"self_attn.{name}_proj.weight": (rows, D), f"self_attn.{name}_proj.bias": (rows,)}
        inside |= {"self_attn.o_proj.weight": (D, N), "self_attn.o_proj.bias": (D,), "self_attn.sinks": (4,)}
        inside |= {"mlp.router.weight": (E, D), "mlp.router.bias": (E,)}
        inside |= {"mlp.experts.gate_up_proj_bias": (E, 2 * F), "mlp.experts.down_proj_bias": (E, D)}
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in inside.items()}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in tensors.items()}
    for layer in range(keys["num_hidden_layers"]):
        for name, rows, columns in (("gate_up_proj", 2 * F, D), ("down_proj", D, F)):
            blocks, scales, numbers = pairs(rng, E, rows, columns)
            whole = f"model.layers.{layer}.mlp.experts.{name}"
            if packed:
                arrays |= {f"{whole}_blocks": blocks, f"{whole}_scales": scales}
            else:
                arrays[whole] = np.ascontiguousarray(numbers.swapaxes(1, 2))
    return arrays


def write(folder, packed, keys=KEYS, change=dict):
    """A tiny checkpoint, with MXFP4 if `packed`; `change` gets the tensors and returns those of the file."""
    folder.mkdir()
    method = {"quantization_config": {"quant_method": "mxfp4"}} if packed else {}
    (folder / "config.json").write_text(json.dumps(keys | method))
    save_file(change(tensors_of(packed, keys)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder, **options):
    return npllm.forward(IDS, npllm.load(folder, **options))[0]


def test_experts_in_mxfp4_are_those_of_the_widened_file(tmp_path):
    expected = logits(write(tmp_path / "plain", packed=False))
    np.testing.assert_array_equal(logits(write(tmp_path / "packed", packed=True)), expected)


def test_gate_and_up_take_turns_in_a_folder(tmp_path):
    lm = npllm.load(write(tmp_path / "plain", packed=False))
    tensors, expert = tensors_of(packed=False), lm.weights.layers[1].experts[2]
    whole = tensors["model.layers.1.mlp.experts.gate_up_proj"][2].T
    np.testing.assert_array_equal(dense(expert.gate_up_proj), np.concatenate([whole[::2], whole[1::2]]))
    bias = tensors["model.layers.1.mlp.experts.gate_up_proj_bias"][2]
    np.testing.assert_array_equal(expert.gate_up_proj_bias, np.concatenate([bias[::2], bias[1::2]]))
    np.testing.assert_array_equal(dense(expert.down_proj), tensors["model.layers.1.mlp.experts.down_proj"][2].T)


def test_a_large_model_keeps_its_experts_packed(tmp_path, monkeypatch):
    expected = logits(write(tmp_path / "plain", packed=False))
    monkeypatch.setattr(module, "NARROW_FROM", 0)
    lm = npllm.load(write(tmp_path / "packed", packed=True))
    for block in lm.weights.layers:
        for matrix in (matrix for expert in block.experts for matrix in (expert.gate_up_proj, expert.down_proj)):
            assert isinstance(matrix, Groups)
            assert (matrix.bits, matrix.values) == (4, integers)
    assert_close("logits", npllm.forward(IDS, lm)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4"])
def test_a_converted_folder_has_the_same_model(tmp_path, packed, dtype):
    source = write(tmp_path / "source", packed)
    convert(source, tmp_path / "copy", dtype)
    expected = logits(source, dtype=dtype)
    assert_close("logits", logits(tmp_path / "copy", dtype="auto" if dtype == "int4" else dtype), expected)


def test_a_folder_is_written_as_transformers_reads_it(tmp_path):
    convert(write(tmp_path / "source", packed=True), tmp_path / "copy", "float32")
    written, expected = load_file(tmp_path / "copy" / "model.safetensors"), tensors_of(packed=False)
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array, name)


def test_one_expert_is_written_as_a_stack_of_one(tmp_path):
    source = write(tmp_path / "source", True, KEYS | {"num_local_experts": 1, "num_experts_per_tok": 1})
    convert(source, tmp_path / "copy", "float32")
    np.testing.assert_array_equal(logits(tmp_path / "copy"), logits(source))


BLOCKS, SCALES = (f"model.layers.0.mlp.experts.down_proj_{part}" for part in ("blocks", "scales"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({SCALES: None}, f"expected {SCALES} with {BLOCKS}, found none"),
        ({SCALES: np.zeros((3, 64, 2), np.uint8)}, r"scales: expected U8 \[3, 64, 1\], got U8 \[3, 64, 2\]"),
        ({SCALES: np.zeros((3, 64, 1), np.float32)}, r"scales: expected U8 \[3, 64, 1\], got F32"),
        ({BLOCKS: np.zeros((3, 64, 1, 8), np.uint8)}, r"blocks: expected U8 \[..., 16\], got U8 \[3, 64, 1, 8\]"),
        ({BLOCKS: np.zeros((2, 64, 1, 16), np.uint8), SCALES: np.zeros((2, 64, 1), np.uint8)}, "missing tensors"),
    ],
)
def test_blocks_and_scales_that_do_not_fit_are_refused(tmp_path, change, message):
    def changed(tensors):
        return {name: array for name, array in (tensors | change).items() if array is not None}

    with pytest.raises(ModelFileError, match=message):
        npllm.load(write(tmp_path / "m", packed=True, change=changed))
