"""Phi-3.5-MoE: its router, texts longer than the original context, and .gguf files.

test_golden.py and test_oracle.py compare its pass with transformers, with long factors that equal the short ones.
"""

import math
import warnings
from functools import partial
from pathlib import Path

import families
import numpy as np
import pytest
from bridge import tool
from llamacpp import FLOAT32, assert_agrees_with_llama_cpp, write_checkpoint, write_gguf
from tolerance import assert_close

import npllm
from npllm.checkpoint.write import convert
from npllm.devices.device import to_host
from npllm.errors import ModelFileError
from npllm.families import experts, gguf_keys, layer_normed, read_config
from npllm.families.metadata import Metadata
from npllm.families.phimoe import sparsemixer
from npllm.norm import rms_norm

KEYS = {"model_type": "phimoe"} | families.KEYS["phimoe"]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [1.5, 3.0, 5.0, 9.0],
    "short_mscale": 1.1,
    "long_mscale": 1.4,
    "original_max_position_embeddings": 12,
}


def loop(logits, jitter):
    """SparseMixer for one token: [(expert, share), (expert, share)]."""
    left = {number: float(logit) for number, logit in enumerate(logits)}
    result = []
    for _ in range(2):
        best = max(left, key=lambda number: left[number])
        near = [
            number for number, logit in left.items() if (left[best] - logit) / max(abs(logit), left[best]) <= 2 * jitter
        ]
        total = sum(math.exp(left[number]) for number in near)
        result.append((best, math.exp(left[best]) / total))
        del left[best]
    return result


@pytest.mark.parametrize("jitter", [0.01, 0.2, 3.0])
def test_the_router_is_the_loop(lib, jitter):
    logits = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    chosen, shares = sparsemixer(lib.array(logits), jitter)
    expected = [loop(row, jitter) for row in logits]
    assert to_host(chosen).tolist() == [[number for number, _ in pairs] for pairs in expected]
    assert_close("shares", to_host(shares), [[share for _, share in pairs] for pairs in expected])


def test_the_second_expert_is_not_compared_with_the_first():
    chosen, shares = sparsemixer(np.array([[1.0, 9.0, 2.0, 1.99]], np.float32), 0.01)
    assert chosen.tolist() == [[1, 2]]
    assert_close("shares", shares, np.array([[1.0, 1 / (1 + math.exp(-0.01))]]))  # the last one is a near tie


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts_per_tok", 1),
        ("num_local_experts", 1),
        ("layer_types", ["full_attention"] * 4),
        ("router_jitter_noise", -1.0),
        ("short_mscale", {key: value for key, value in LONGROPE.items() if key != "short_mscale"}),
        ("long_mscale", LONGROPE | {"long_mscale": 0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
    ],
)
def test_what_is_not_computed_is_refused_by_name(key, value):
    with pytest.raises(ModelFileError, match=key):
        read_config(KEYS | {"rope_scaling" if isinstance(value, dict) else key: value})


def test_the_defaults_are_those_of_transformers():
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 6400}
    more = {"vocab_size": 32064, "max_position_embeddings": 131072}
    config = read_config({"model_type": "phimoe"} | sizes | more)
    assert (config.num_experts, config.num_experts_per_tok, config.router_jitter_noise) == (16, 2, 0.01)
    assert (config.num_key_value_heads, config.rope_theta, config.layer_norm_epsilon) == (8, 1e6, 1e-5)
    assert (config.attention_bias, config.lm_head_bias, config.sliding_window) == (False, False, None)


def metadata_keys(tensors=(), **metadata):
    keys = {"embedding_length": 64, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}
    keys |= {"expert_count": 4, "expert_used_count": 2, "context_length": 64} | metadata
    values = {"general.architecture": "phimoe"} | {f"phimoe.{key}": value for key, value in keys.items()}
    shapes = dict.fromkeys(("token_embd.weight", *tensors), (288, 64))
    return gguf_keys(Metadata(Path("m.gguf"), values, shapes))


def test_a_gguf_files_keys():
    keys = metadata_keys()
    assert (keys["num_local_experts"], keys["num_experts_per_tok"], keys["sliding_window"]) == (4, 2, None)
    assert (keys["attention_bias"], keys["lm_head_bias"], keys["rope_scaling"]) == (False, False, None)
    keys = metadata_keys(["output.bias", "blk.0.attn_q.bias"], **{"attention.sliding_window": 7})
    assert (keys["attention_bias"], keys["lm_head_bias"], keys["sliding_window"]) == (True, True, 7)
    factors = {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 16}
    keys = metadata_keys(["rope_factors_long.weight"], **factors)
    assert keys["rope_scaling"] == {"rope_type": "longrope", "short_mscale": 1.25, "long_mscale": 1.25}
    assert keys["original_max_position_embeddings"] == 16
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.attn_factor: expected 1\.0 without the tensors"):
        metadata_keys(**factors)


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("length", [12, 13, 30])
def test_a_long_text_is_rotated_by_the_long_factors(tmp_path, length):
    """As in the code published with Phi-3-small. transformers does not pass the length of the text to its RoPE."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[oracle]'"
    )
    torch = tool("make_golden").torch
    keys = {"hidden_size": 32, "rope_parameters": LONGROPE | {"rope_theta": 100.0}, "router_jitter_noise": 0.2}
    write_checkpoint(tmp_path, "phimoe", seed=3, num_local_experts=4, **keys)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 288, length)
    forgetful = model(torch.tensor(ids[None])).logits[0].detach().numpy()
    rope = model.model.rotary_emb
    rope.rope_init_fn = partial(rope.rope_init_fn, seq_len=length)
    expected = model(torch.tensor(ids[None])).logits[0].detach().numpy()
    assert_close("logits", npllm.forward(ids, npllm.load(tmp_path))[0], expected)
    assert np.allclose(forgetful, expected, atol=1e-3) == (length <= 12), "transformers has changed"


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_file_and_a_folder_of_the_same_model(tmp_path, kind):
    """The file has neither the router's threshold nor two attention factors: here the folder has what it implies."""
    factor = math.sqrt(1 + math.log(128 / 12) / math.log(12))
    mscales = {"short_mscale": factor, "long_mscale": factor}
    rope = (
        LONGROPE | mscales | {"rope_theta": 100.0, "short_factor": [1.0] * 8, "long_factor": [1.0, 2.0, 3.0, 4.0] * 2}
    )
    biases = {"attention_bias": True, "lm_head_bias": True, "sliding_window": 9}
    write_checkpoint(tmp_path / "m", "phimoe", seed=3, num_local_experts=4, rope_parameters=rope, **biases)
    write_gguf(tmp_path / "m.gguf", tmp_path / "m", kind)
    folder, file = npllm.load(tmp_path / "m"), npllm.load(tmp_path / "m.gguf")
    ids = np.random.default_rng(0).integers(0, 288, 20)
    with warnings.catch_warnings(action="ignore"):
        expected, got = npllm.forward(ids, folder)[0], npllm.forward(ids, file)[0]
    if kind == "F32":  # rounded weights choose other experts here and there
        assert_close("logits", got, expected)
    convert(tmp_path / "m.gguf", tmp_path / "again", "float32")
    assert_close("converted", npllm.forward(ids, npllm.load(tmp_path / "again"))[0], got)


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("original", [16, 256])  # llama.cpp's context is 256
def test_but_for_the_norm_and_the_router_a_gguf_file_is_read_as_by_llama_cpp(tmp_path, monkeypatch, original):
    """llama.cpp computes an approximation: RMSNorm, and the two best of one softmax, with shares that sum to 1."""
    factors = {"short_factor": np.linspace(1, 2, 8).tolist(), "long_factor": np.linspace(1.5, 9, 8).tolist()}
    rope = LONGROPE | factors | {"rope_theta": 100.0, "original_max_position_embeddings": original}
    sizes = {"max_position_embeddings": 1024, "num_local_experts": 4}
    write_checkpoint(tmp_path, "phimoe", seed=1, attention_bias=True, lm_head_bias=True, rope_parameters=rope, **sizes)
    write_gguf(tmp_path / "m.gguf", tmp_path)
    lm, ids = npllm.load(tmp_path / "m.gguf"), np.random.default_rng(0).integers(0, 288, 40).tolist()
    with warnings.catch_warnings(action="ignore"):  # a text beyond the original context
        with pytest.raises(AssertionError, match="expected log-probability"):
            assert_agrees_with_llama_cpp(lm, tmp_path / "m.gguf", ids, FLOAT32)
        monkeypatch.setattr(layer_normed, "layer_norm", lambda x, weight, bias, eps: rms_norm(x, weight, eps) + bias)
        block = partial(layer_normed.block, feedforward=experts.mixture_of_experts)
        lm = lm._replace(transform=partial(layer_normed.transform, block=block))
        assert_agrees_with_llama_cpp(lm, tmp_path / "m.gguf", ids, FLOAT32)
