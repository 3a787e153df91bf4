"""gpt-oss: sinks, the bounded activation, and whole models in MXFP4 beside transformers and llama.cpp."""

import math
import warnings

import families
import numpy as np
import pytest
from llamacpp import assert_agrees_with_llama_cpp, write_checkpoint, write_gguf
from safetensors.numpy import load_file
from test_llamacpp import GPT_OSS
from test_parameters import IDS, KEYS, write
from tolerance import assert_close

import npllm
from npllm.checkpoint.write import convert
from npllm.errors import ModelFileError
from npllm.families import read_config
from npllm.families.activations import bounded_glu
from npllm.families.gpt_oss import attention_with_sinks
from npllm.families.scaling import yarn


def test_attention_with_sinks_is_the_loop():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, 5, 4), dtype=np.float32) for heads in (4, 2, 2))
    sinks, visible = rng.standard_normal(4).astype(np.float32), np.tri(5, dtype=bool)
    got = attention_with_sinks(q, k, v, visible, sinks=sinks)
    for head in range(4):
        for query in range(5):
            scores = [math.exp(q[head, query] @ k[head // 2, key] / 2) for key in range(query + 1)]
            total = sum(scores) + math.exp(sinks[head])
            expected = sum(score / total * v[head // 2, key] for key, score in enumerate(scores))
            assert_close("mixed", got[head, query], expected)
    whole = attention_with_sinks(q, k, v, sinks=sinks)
    assert_close("all visible", whole, attention_with_sinks(q, k, v, np.ones((5, 5), bool), sinks=sinks))


def test_the_activation_is_bounded():
    gate, up = (np.array(values, np.float32) for values in ([-9, 1, 9, 9, 9], [1, 1, 1, 9, -9]))
    bounded = zip([-9, 1, 2, 2, 2], [1, 1, 1, 2, -2], strict=True)
    expected = [g / (1 + math.exp(-1.702 * g)) * (u + 1) for g, u in bounded]
    assert_close("activation", bounded_glu(gate, up, limit=2.0), np.array(expected, np.float32))


def test_a_file_that_says_little_has_the_published_model():
    """The defaults of transformers, which are the values of the published models."""
    said = ("swiglu_limit", "rope_parameters", "sliding_window", "rope_theta", "head_dim", "num_key_value_heads")
    keys = {name: value for name, value in families.KEYS["gpt_oss"].items() if name not in said}
    config = read_config({"model_type": "gpt_oss"} | keys | {"num_attention_heads": 8})
    assert (config.swiglu_alpha, config.swiglu_limit, config.sliding_window) == (1.702, 7.0, 128)
    assert config.layer_types == ("sliding_attention", "full_attention") * 2
    assert config.attention_bias
    values = {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
    assert config.rope_scaling == yarn(values, 150000.0, 32)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sliding_window": None}, "layer_types: expected full_attention alone"),
        ({"num_experts_per_tok": 6}, "num_experts_per_tok: expected at most the number of experts, 5"),
        ({"swiglu_limit": 0}, "swiglu_limit: expected a positive number"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(keys, message):
    with pytest.raises(ModelFileError, match=message):
        read_config({"model_type": "gpt_oss"} | families.KEYS["gpt_oss"] | keys)


def test_a_gguf_file_becomes_a_folder(tmp_path):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    keys = KEYS | {"vocab_size": 288, "rms_norm_eps": 1e-5} | rope
    write_gguf(tmp_path / "m.gguf", write(tmp_path / "m", packed=False, keys=keys))
    convert(tmp_path / "m.gguf", tmp_path / "again", "float32")
    written, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "m"))
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array, name)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_a_checkpoint_in_mxfp4_is_that_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = write(tmp_path / "m", packed=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=transformers.Mxfp4Config(dequantize=True)
    )
    with torch.no_grad():
        expected = model(torch.tensor(IDS[None])).logits[0].numpy()
    assert_close("logits", npllm.forward(IDS, npllm.load(folder))[0], expected)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_a_gguf_file_in_mxfp4_is_that_of_llama_cpp(tmp_path):
    """llama.cpp rounds the activations to 8 bits, so it computes with the same numbers in float32."""
    write_checkpoint(tmp_path, "gpt_oss", seed=1, **GPT_OSS)
    write_gguf(tmp_path / "packed.gguf", tmp_path, "MXFP4")
    write_gguf(tmp_path / "plain.gguf", tmp_path, "MXFP4", widened=True)
    ids = np.random.default_rng(0).integers(0, 288, 40).tolist()
    with warnings.catch_warnings(action="ignore"):  # a text beyond the original context
        assert_agrees_with_llama_cpp(npllm.load(tmp_path / "packed.gguf"), tmp_path / "plain.gguf", ids)
        for dtype in ("bfloat16", "int4"):  # and a folder made from it has the same model
            convert(tmp_path / "packed.gguf", tmp_path / dtype, dtype)
            again = npllm.load(tmp_path / dtype, dtype="auto" if dtype == "int4" else dtype)
            expected = npllm.forward(np.array(ids), npllm.load(tmp_path / "packed.gguf", dtype=dtype))[0]
            assert_close(dtype, npllm.forward(np.array(ids), again)[0], expected)
