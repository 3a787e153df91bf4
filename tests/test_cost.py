"""The predicted operations and bytes read, compared with a run that counts them."""

import numpy as np
import pytest
from counting import Counting, CountingNumpy
from hypothesis import given
from hypothesis import strategies as st
from libraries import Library
from models import (
    config_keys,
    gpt2_keys,
    random_gpt2_weights,
    random_ids,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)

import npllm
from npllm.cache import empty_cache, kv_cache_bytes
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect.cost import costs, total
from npllm.lm import LM


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def tiny_gpt2(**keys) -> LM:
    config = tiny_gpt2_config(**keys)
    return LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)


# The part of cost.py that ends with each tap.
ENDS = {
    "embedding": "embedding",
    "position_embedding": "embedding",
    "residual_after_embedding": "position embedding",
    "q": "qkv_proj",
    "k": "qkv_proj",
    "v": "qkv_proj",
    "q_rotated": "RoPE",
    "k_rotated": "RoPE",
    "scores": "scores",
    "weights": "softmax",
    "mixed": "combine",
    "attention.output": "o_proj",
    "residual_after_attention": "residual",
    "gate": "gate_up_proj",
    "residual_after_feedforward": "residual",
    "norm": "norm",
    "logits": "lm_head",
}

TODAY = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "up": "gate_up_proj",
    "activation": "SwiGLU",
    "feedforward.output": "down_proj",
}

GPT2 = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "up": "c_fc",
    "activation": "GELU",
    "feedforward.output": "c_proj",
}


def counted(lm: LM, new: int, past: int) -> dict[str, int]:
    """The operations of a pass by part, counted as it runs."""
    config = lm.config
    weights = Library(CountingNumpy()).tree(lm.weights)
    ids = random_ids(config, past + new)
    cache = empty_cache(config, past + new, like=np.zeros(1)) if past else None
    if past:
        npllm.transform(ids[:past], lm, cache)
    ends = ENDS | (GPT2 if lm.transform is gpt2_transform else TODAY)
    parts: dict[str, int] = {}
    Counting.flops = 0

    def tap(name, value):
        end = next(part for leaf, part in ends.items() if name == leaf or name.endswith("." + leaf))
        parts[end] = parts.get(end, 0) + Counting.flops
        Counting.flops = 0
        return value

    npllm.forward(ids[past:], lm._replace(weights=weights), cache, tap=tap)
    return parts


@given(config_keys(), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_the_arithmetic_is_what_a_counting_run_counts(keys, new, past, biases):
    config = tiny_config(**keys)
    lm = LM(config, random_weights(config, biases=biases), None, {})
    result = {cost.part: cost.flops for cost in costs(config, lm.weights, new, past)}
    assert result == counted(lm, new, past)


@given(gpt2_keys(), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_the_arithmetic_of_gpt2_is_what_a_counting_run_counts(keys, new, past, biases):
    config = tiny_gpt2_config(**keys)
    lm = LM(config, random_gpt2_weights(config, biases=biases), None, {}, gpt2_transform)
    result = {cost.part: cost.flops for cost in costs(config, lm.weights, new, past)}
    assert result == counted(lm, new, past)


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (5, 0), (1, 7)])
def test_each_weight_is_read_once_and_the_cache_whole(lm, new, past):
    weights = lm.weights
    arrays = [weights.norm, weights.norm_bias, weights.lm_head, *(array for block in weights.layers for array in block)]
    tables = [table for table in (weights.embed_tokens, weights.embed_positions) if table is not None]
    _, _, read, cached = total(costs(lm.config, weights, new, past))
    assert read == sum(array.nbytes for array in arrays if array is not None) + new * sum(t[0].nbytes for t in tables)
    assert cached == kv_cache_bytes(lm.config, past)


def test_the_head_is_asked_for_as_many_tokens_as_are_scored():
    lm = tiny_lm()
    of_all, of_one = (
        {cost.part: cost for cost in costs(lm.config, lm.weights, 5, scored=scored)} for scored in (None, 1)
    )
    assert of_all["lm_head"].flops == 5 * of_one["lm_head"].flops == 5 * 2 * 8 * 11
    assert of_all["lm_head"].weight_bytes == of_one["lm_head"].weight_bytes
    assert {**of_all, "lm_head": None} == {**of_one, "lm_head": None}
