"""Which models run on the kernels: those with a supported pass, head and weights. Others use the plain functions."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from kernel_models import pass_by_pass, random_lm
from libraries import NUMPY
from models import random_gpt2_weights, random_ids, tiny_config, tiny_gpt2_config
from tolerance import assert_close

import npllm
from npllm import heads, model
from npllm.arrays import array_namespace
from npllm.cuda import twins
from npllm.cuda.block import cuda_block
from npllm.cuda.fit import BLOCK_FIELDS, MODEL_FIELDS, why_not, why_not_block, why_not_sizes, why_not_weights
from npllm.cuda.gpu import on_gpu, why_no_kernels, with_kernels
from npllm.cuda.step import replayed
from npllm.errors import UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.lm import LM
from npllm.model import transform
from npllm.norm import rms_norm
from npllm.shapes import BlockWeights, Weights


class OneMoreWeight(NamedTuple):
    """The block weights of a made-up family: the chapter's, plus an extra norm."""

    input_layernorm: np.ndarray
    qkv_proj: np.ndarray
    o_proj: np.ndarray
    post_attention_layernorm: np.ndarray
    gate_up_proj: np.ndarray
    down_proj: np.ndarray
    qkv_proj_bias: np.ndarray | None = None
    o_proj_bias: np.ndarray | None = None
    gate_up_proj_bias: np.ndarray | None = None
    down_proj_bias: np.ndarray | None = None
    first_norm: np.ndarray | None = None


def family_block(x, weights, config, *rest, **options):
    """The chapter's block, applied after a norm that only this family has."""
    chapters = BlockWeights(*weights[: len(BLOCK_FIELDS)])
    return model.block(rms_norm(x, weights.first_norm, config.rms_norm_eps), chapters, config, *rest, **options)


def family_transform(*arguments, block=family_block, **options):
    """The pass of the made-up family."""
    return transform(*arguments, block=block, **options)


def family_lm(whole_pass=family_transform):
    """A model of the made-up family."""
    lm = random_lm(NUMPY)
    norm = np.linspace(0.5, 2.0, lm.config.hidden_size, dtype=np.float32)
    layers = tuple(OneMoreWeight(*layer, norm) for layer in lm.weights.layers)
    return LM(lm.config, lm.weights._replace(layers=layers), None, {}, whole_pass)


def test_the_chapters_models_fit():
    lm = random_lm(NUMPY)
    assert why_not(lm) is None
    assert BlockWeights._fields == BLOCK_FIELDS
    assert set(MODEL_FIELDS) <= set(Weights._fields)
    classifier = lm.weights._replace(lm_head=None, score=lm.weights.embed_tokens)
    assert why_not_weights(classifier) is None


def test_kernels_stay_out_of_a_family_with_one_more_weight(counted):
    lm = family_lm()
    assert with_kernels(lm, twins) is lm
    assert why_not(lm) == f"the kernels do not know the pass {__name__}.family_transform"
    placed = on_gpu(lm)
    assert placed.weights is lm.weights
    assert why_no_kernels(placed) == why_not(lm)
    ids = random_ids(lm.config, 6)
    expected = pass_by_pass(lm, ids, family_transform, (3, 1, 1, 1))[0]
    plain = pass_by_pass(random_lm(NUMPY), ids, transform, (3, 1, 1, 1))[0]
    assert not np.allclose(expected[-1], plain[-1], atol=0.1)  # the weight matters
    for whole_pass in (with_kernels(lm, twins).transform, replayed(family_transform, twins)):
        made, cache = pass_by_pass(lm, ids, whole_pass, (3, 1, 1, 1))
        for a, b in zip(made, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert "step" not in cache
    assert npllm.generate(with_kernels(lm, twins), [1, 2], max_new_tokens=4).ids == (
        npllm.generate(lm, [1, 2], max_new_tokens=4).ids
    )
    assert counted == {"block": 0, "step": 0}


def test_kernels_stay_out_of_a_known_pass_with_one_more_weight(counted):
    """For example, a family whose block reads the weight, run through the chapter's pass."""
    lm = family_lm(transform)
    assert why_not(lm) == "the kernels do not know the weights first_norm of a block"
    assert with_kernels(lm, twins) is lm
    ids = random_ids(lm.config, 3)
    expected = pass_by_pass(lm, ids, partial(transform, block=family_block), (2, 1))[0]
    made = pass_by_pass(lm, ids, partial(replayed(transform, twins), block=family_block), (2, 1))[0]
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert counted == {"block": 0, "step": 0}


def test_one_layer_with_another_weight_is_enough():
    lm, other = random_lm(NUMPY), family_lm()
    layers = (*lm.weights.layers[:-1], other.weights.layers[-1])
    assert why_not(lm._replace(weights=lm.weights._replace(layers=layers))) is not None


def test_the_block_of_kernels_refuses_weights_that_it_would_ignore():
    lm = family_lm(transform)
    x, tables = np.ones((1, lm.config.hidden_size), np.float32), (np.ones((1, 2), np.float32),) * 2
    with pytest.raises(UsageError, match=r"^cuda_block: expected .*first_norm of a block.*; use the model's own block"):
        cuda_block(x, lm.weights.layers[0], lm.config, *tables, None, functions=twins)
    with pytest.raises(UsageError, match="first_norm"):
        npllm.transform([1, 2], lm, block=cuda_block)


def wrapped_transform(*arguments, **options):
    return transform(*arguments, **options)


@pytest.mark.parametrize(
    "whole_pass",
    [wrapped_transform, partial(transform), lambda *arguments, **options: transform(*arguments, **options)],
)
def test_another_pass_keeps_the_plain_functions(whole_pass):
    lm = random_lm(NUMPY)._replace(transform=whole_pass)
    assert with_kernels(lm, twins) is lm
    assert why_not(lm).startswith("the kernels do not know the pass ")
    assert "\n" not in why_not(lm)


def test_another_head_keeps_the_plain_functions():
    def capped(hidden, weights, config):
        xp = array_namespace(hidden)
        return xp.tanh(heads.lm_head(hidden, weights, config))

    lm = random_lm(NUMPY)._replace(lm_head=capped)
    assert with_kernels(lm, twins) is lm
    assert why_not(lm) == f"the kernels do not know the head {__name__}.{capped.__qualname__}"


@pytest.mark.parametrize("field", ["embed_positions", "norm_bias", "lm_head_bias"])
def test_a_weight_of_the_model_that_the_kernels_do_not_list(field):
    lm = random_lm(NUMPY)
    lm = lm._replace(weights=lm.weights._replace(**{field: lm.weights.norm}))
    assert why_not(lm) == f"the kernels do not know the weight {field}"


def test_another_architecture_keeps_its_own_pass():
    config = tiny_gpt2_config()
    lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
    assert with_kernels(lm, twins) is lm
    assert why_not_weights(lm.weights) is not None
    assert why_not_block(None) == f"the kernels expect the weights {', '.join(BLOCK_FIELDS)} in a block, got NoneType"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, None),
        ({"head_dim": 96, "num_attention_heads": 32, "num_key_value_heads": 32}, None),  # Phi-3-mini
        ({"head_dim": 128, "num_attention_heads": 40, "num_key_value_heads": 10}, None),  # Phi-3-medium
        ({"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 1}, None),
        ({"head_dim": 6}, "multiples of 4, got 8 and 6"),
        ({"hidden_size": 18}, "multiples of 4, got 18 and"),
        ({"head_dim": 512}, "head_dim up to 256, got 512"),  # more dimensions than threads
        ({"head_dim": 128, "num_attention_heads": 64, "num_key_value_heads": 1}, "shared memory for 64 query heads"),
    ],
)
def test_which_models_the_kernels_fit(keys, reason):
    lm = random_lm(NUMPY, **keys)
    assert (with_kernels(lm, twins) is lm) == (reason is not None)
    if reason is None:
        assert why_not_sizes(lm.config) is None
    else:
        assert reason in why_not_sizes(lm.config)


def test_sizes_that_the_kernels_do_not_support_take_the_plain_block(counted):
    lm, ids = random_lm(NUMPY, head_dim=6), random_ids(tiny_config(), 3)
    expected = pass_by_pass(lm, ids, transform, (2, 1))[0]
    for whole_pass in (partial(transform, block=partial(cuda_block, functions=twins)), replayed(transform, twins)):
        made = pass_by_pass(lm, ids, whole_pass, (2, 1))[0]
        for a, b in zip(made, expected, strict=True):
            assert_close("hidden", a, b)
    assert counted == {"block": 0, "step": 0}
