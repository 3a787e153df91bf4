"""Tiny models of every family, with random weights, for tests/test_families.py."""

import json
import math
from pathlib import Path

import numpy as np

from npllm.checkpoint.plan import expert_count
from npllm.families import FAMILIES, family_of, read_config
from npllm.families.experts import ExpertWeights
from npllm.lm import LM

SMALL = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 100.0,
}
# The config keys that exercise what is special about each family.
KEYS = {
    "phi3": SMALL | {"sliding_window": 3, "partial_rotary_factor": 0.5},
    "phi3small": {
        key: value for key, value in SMALL.items() if key not in ("intermediate_size", "head_dim", "rope_theta")
    }
    | {
        "hidden_size": 32,
        "ff_intermediate_size": 12,
        "blocksparse_block_size": 2,
        "blocksparse_num_local_blocks": 1,
        "blocksparse_vert_stride": 3,
        "gegelu_limit": 1.5,
        "mup_attn_multiplier": 2.0,
        "rope_embedding_base": 100.0,
        "tie_word_embeddings": False,
    },
    "phimoe": SMALL
    | {
        "sliding_window": 3,
        "num_local_experts": 5,
        "router_jitter_noise": 0.3,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "llama": SMALL | {"attention_bias": True, "mlp_bias": True},
    "mistral": SMALL | {"sliding_window": 3},
    "ministral": SMALL | {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "mixtral": SMALL | {"sliding_window": 3, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2": SMALL | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": SMALL | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2, "attention_bias": True},
    "qwen3_moe": SMALL
    | {"use_sliding_window": True, "sliding_window": 3, "num_experts": 5, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 12, "norm_topk_prob": True, "attention_bias": True},
    "olmo2": SMALL | {"attention_bias": True},
    "olmo3": {key: value for key, value in SMALL.items() if key != "rope_theta"}
    | {
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "olmoe": SMALL | {"num_experts": 5, "num_experts_per_tok": 3, "attention_bias": True},
    "smollm3": SMALL | {"use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2},
    "granite": SMALL
    | {
        "attention_bias": True,
        "embedding_multiplier": 0.5,
        "attention_multiplier": 0.6,
        "residual_multiplier": 0.7,
        "logits_scaling": 0.4,
    },
    "gemma": SMALL | {"attention_bias": True},
    "gemma2": SMALL
    | {
        "sliding_window": 3,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": SMALL
    | {
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 5,
        "final_logit_softcapping": 3.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "gpt_oss": SMALL
    | {
        "sliding_window": 3,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "swiglu_limit": 0.5,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "gpt2": {
        "vocab_size": 23,
        "n_embd": 16,
        "n_inner": 12,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "activation_function": "gelu",
    },
    "bert": {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 0.1,  # else a norm undoes a change of scale
    },
}

KEYS["gemma3"] = {"text_config": KEYS["gemma3_text"] | {"final_logit_softcapping": None}}


def random_lm(name: str, seed: int = 0, **keys) -> LM:
    """A tiny model of this model_type, with weights large enough for every part to affect the result."""
    config = read_config({"model_type": name} | KEYS[name] | keys)
    family, random = family_of(config), np.random.default_rng(seed)

    def weight(rows, columns):
        if columns is None:  # a norm
            return random.uniform(0.5, 1.5, sum(rows)).astype(np.float32)
        return (random.standard_normal((sum(rows), columns)) / math.sqrt(columns)).astype(np.float32)

    shapes, biased = family.shapes(config), family.biases(config)
    in_blocks = {ours for ours in shapes if "*" in family.names[ours]}

    def some(names):
        weights = {ours: weight(*shapes[ours]) for ours in names}
        return weights | {f"{ours}_bias": 0.3 * weight(shapes[ours][0], 1)[:, 0] for ours in names if ours in biased}

    def expert():
        inside = some(sorted(ours for ours in in_blocks if ours.startswith("experts.")))
        return ExpertWeights(**{ours.removeprefix("experts."): weight for ours, weight in inside.items()})

    def block():
        weights = some(sorted(ours for ours in in_blocks if not ours.startswith("experts.")))
        experts = {"experts": tuple(expert() for _ in range(expert_count(config)))} if expert_count(config) else {}
        return family.block_weights(**weights, **experts)

    layers = tuple(block() for _ in range(config.num_hidden_layers))
    outside = some(sorted(shapes.keys() - in_blocks))
    outside["embed_tokens"] *= np.float32(math.sqrt(config.hidden_size))
    if config.tie_word_embeddings:
        outside["lm_head"] = outside["embed_tokens"]
    weights = family.weights(**{name: outside.get(name) for name in family.weights._fields} | {"layers": layers})
    return LM(config, weights, None, {}, family.transform, family.lm_head)


def weight_names(family):
    """The names of a block's weights without biases, "experts.down_proj" for those of its experts."""
    fields = [*family.block_weights._fields]
    if "experts" in fields:
        fields.remove("experts")
        fields += [f"experts.{field}" for field in ExpertWeights._fields]
    return {field for field in fields if not field.endswith("_bias")}


NAMES = sorted(FAMILIES)
WRITERS = [name for name in NAMES if name != "bert"]  # those that predict the next token

# The chapter's pass, its most common form, and the passes that are most unlike them.
QUICK = {"phi3", "llama", "gpt2", "gemma3_text", "gpt_oss"}
GOLDEN = Path(__file__).parent / "golden"
FAMILY = {name: name for name in NAMES} | {
    file.parent.name: json.loads(file.read_text(encoding="utf-8"))["model_type"]
    for file in GOLDEN.glob("*/config.json")
}


def slow(parameters: dict) -> bool:
    """Whether a test is slow, by its parameters: one names a family that is not in QUICK, or a golden model of one.

    One pass of each golden model is quick.
    """
    found = {FAMILY[value] for value in parameters.values() if isinstance(value, str) and value in FAMILY}
    return not found <= QUICK and parameters.get("chunk", "") is not None
