"""Tiny models with random weights."""

import math

import numpy as np
from hypothesis import strategies as st

from npllm.config import Config
from npllm.families import read_config
from npllm.shapes import BlockWeights, GPT2BlockWeights, Weights


def tiny_config(**keys) -> Config:
    """The configuration of a two-layer model, with the config.json keys that a test cares about."""
    tiny = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
    }
    return read_config(tiny | keys)


def random_weights(config: Config, seed: int = 0, scale: float = 1.0, biases: bool = False) -> Weights:
    """Weights drawn from a normal distribution, large enough for every part of the model to affect the result.

    A matrix product scales the magnitude of its input by `scale`. The weights are NumPy arrays; see `lib.tree`.
    """
    random = np.random.default_rng(seed)
    D, F, V, H = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads

    def matrix(*shape: int) -> np.ndarray:
        return (scale / math.sqrt(shape[-1]) * random.standard_normal(shape)).astype(np.float32)

    def norm() -> np.ndarray:
        return random.uniform(0.5, 1.5, D).astype(np.float32)

    def bias(width: int) -> np.ndarray | None:
        return random.standard_normal(width).astype(np.float32) if biases else None

    layers = tuple(
        BlockWeights(
            input_layernorm=norm(),
            qkv_proj=matrix((N + 2 * K) * H, D),
            o_proj=matrix(D, N * H),
            post_attention_layernorm=norm(),
            gate_up_proj=matrix(2 * F, D),
            down_proj=matrix(D, F),
            qkv_proj_bias=bias((N + 2 * K) * H),
            o_proj_bias=bias(D),
            gate_up_proj_bias=bias(2 * F),
            down_proj_bias=bias(D),
        )
        for _ in range(config.num_hidden_layers)
    )
    embed_tokens = matrix(V, D) * np.float32(math.sqrt(D))
    lm_head = embed_tokens if config.tie_word_embeddings else matrix(V, D)
    return Weights(embed_tokens, layers, norm(), lm_head)


def random_ids(config: Config, *shape: int, seed: int = 0) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@st.composite
def config_keys(draw: st.DrawFn) -> dict:
    """Keys for `tiny_config` that cover every branch of the model's code: multi-head, grouped-query and multi-query
    attention, windows, partial rotary, scaled positions, tied embeddings."""
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)]))
    return {
        "model_type": "phi3",
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 8])),
        "partial_rotary_factor": draw(st.sampled_from([1.0, 0.5])),
        "rope_scaling": draw(st.sampled_from([None, {"rope_type": "linear", "factor": 2.0}])),
        "sliding_window": draw(st.sampled_from([None, 1, 2, 4, 100])),
        "tie_word_embeddings": draw(st.booleans()),
    }


def tiny_gpt2_config(**keys) -> Config:
    """The configuration of a two-layer GPT-2, with the config.json keys that a test cares about."""
    tiny = {
        "model_type": "gpt2",
        "vocab_size": 11,
        "n_embd": 8,
        "n_inner": 6,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "layer_norm_epsilon": 1e-5,
    }
    return read_config(tiny | keys)


def random_gpt2_weights(config: Config, seed: int = 0, biases: bool = True) -> Weights:
    """Like `random_weights`. Without biases, only those of the norms remain."""
    random = np.random.default_rng(seed)
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    def norm() -> tuple[np.ndarray, np.ndarray]:
        return random.uniform(0.5, 1.5, D).astype(np.float32), random.standard_normal(D).astype(np.float32)

    def bias(width: int) -> np.ndarray | None:
        return random.standard_normal(width).astype(np.float32) if biases else None

    layers = tuple(
        GPT2BlockWeights(
            *norm(),
            matrix(3 * D, D),
            matrix(D, D),
            *norm(),
            matrix(F, D),
            matrix(D, F),
            qkv_proj_bias=bias(3 * D),
            o_proj_bias=bias(D),
            c_fc_bias=bias(F),
            c_proj_bias=bias(D),
        )
        for _ in range(config.num_hidden_layers)
    )
    embed_tokens, embed_positions = (
        matrix(count, D) * np.float32(math.sqrt(D)) for count in (V, config.max_position_embeddings)
    )
    final, final_bias = norm()
    head = embed_tokens if config.tie_word_embeddings else matrix(V, D)
    return Weights(embed_tokens, layers, final, head, embed_positions=embed_positions, norm_bias=final_bias)


@st.composite
def gpt2_keys(draw: st.DrawFn) -> dict:
    """Keys for `tiny_gpt2_config`. The head width may be odd: there is no RoPE to rotate its dimensions in pairs."""
    heads, head_dim = draw(st.sampled_from([(1, 4), (2, 3), (3, 2), (4, 1)]))
    return {
        "n_embd": heads * head_dim,
        "n_head": heads,
        "n_layer": draw(st.integers(1, 3)),
        "n_inner": draw(st.sampled_from([None, 1, 5])),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 0.1])),
        "tie_word_embeddings": draw(st.booleans()),
    }
