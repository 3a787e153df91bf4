"""npllm agrees with llama.cpp on tiny .gguf files of each architecture, in log-probabilities of all tokens."""

import warnings

import numpy as np
import pytest
from llamacpp import FLOAT32, assert_agrees_with_llama_cpp, write_checkpoint, write_gguf

import npllm

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # transformers issues warnings of its own

ROPE = {"rope_type": "default", "rope_theta": 100.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.5}
LONGROPE = {"rope_type": "longrope", "short_factor": np.linspace(1, 2, 8).tolist()}
LONGROPE |= {"long_factor": np.linspace(1.5, 9, 8).tolist()}
LONG = {"sliding_window": None, "max_position_embeddings": 1024, "rope_parameters": ROPE | LONGROPE}
# Each: model_type, and config keys that show what is special about it. llama.cpp takes LongRoPE's long factors if its
# context, here 256, is longer than the original one, whatever the text is. It ignores Phi-3's sliding window.
CASES = {
    "llama": ("llama", {}),
    "llama-biases-tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "tie_word_embeddings": True},
    ),
    "llama-linear": ("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}}),
    "llama-3": ("llama", {"rope_parameters": ROPE | LLAMA3 | {"original_max_position_embeddings": 16}}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-partial": ("phi3", {"sliding_window": None, "rope_parameters": ROPE | {"partial_rotary_factor": 0.75}}),
    "phi3-longrope-short": ("phi3", LONG | {"original_max_position_embeddings": 256}),
    "phi3-longrope-long": ("phi3", LONG | {"original_max_position_embeddings": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_log_probabilities_are_those_of_llama_cpp(tmp_path, name):
    model_type, keys = CASES[name]
    write_checkpoint(tmp_path, model_type, seed=1, **keys)
    write_gguf(tmp_path / "m.gguf", tmp_path)
    ids = np.random.default_rng(0).integers(0, 288, 40).tolist()
    with warnings.catch_warnings(action="ignore"):  # a text beyond the original context
        assert_agrees_with_llama_cpp(npllm.load(tmp_path / "m.gguf"), tmp_path / "m.gguf", ids, FLOAT32)
