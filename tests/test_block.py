import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_weights, tiny_config
from tolerance import assert_close

from npllm.attention import attention
from npllm.block import block, self_attention
from npllm.devices.device import to_host
from npllm.masks import decoder_mask
from npllm.rope import rope_tables


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(config, length, like):
    """cos, sin and the mask for a sequence without a cache."""
    return *rope_tables(like[:length], config, total_length=length), decoder_mask(0, length, config.window(0), like)


@given(keys=config_keys(), length=st.integers(1, 4), biases=st.booleans())
def test_it_is_the_loop(lib, keys, length, biases):
    config = tiny_config(**keys)
    weights, x = random_weights(config, biases=biases).layers[0], random(length, config.hidden_size)
    y = block(lib.array(x), lib.tree(weights), config, *whole(config, length, lib.array(np.arange(9))))
    assert_close("block", to_host(y), loops.block(x, weights, config, config.window(0)))


def test_with_projections_of_zero_the_residual_stream_passes_unchanged(lib):
    config = tiny_config()
    weights = random_weights(config).layers[0]
    weights = weights._replace(o_proj=0 * weights.o_proj, down_proj=0 * weights.down_proj)
    x = 1000 * random(3, config.hidden_size)
    y = block(lib.array(x), lib.tree(weights), config, *whole(config, 3, lib.array(np.arange(3))))
    np.testing.assert_array_equal(to_host(y), x)


def test_the_norms_stand_before_the_layers_so_a_longer_input_adds_the_same(lib):
    config = tiny_config()
    weights, x = random_weights(config).layers[0], random(3, config.hidden_size)
    added = []
    for scale in (10, 1000):
        seen = {}
        tables = whole(config, 3, lib.array(np.arange(3)))
        block(lib.array(scale * x), lib.tree(weights), config, *tables, tap=seen.setdefault)
        added.append(to_host(seen["attention.output"]))
    assert_close("added", *added)


def test_the_feedforward_network_sees_what_attention_has_added(lib):
    config, seen = tiny_config(), {}
    weights, x = random_weights(config).layers[0], random(3, config.hidden_size)
    tables = whole(config, 3, lib.array(np.arange(3)))
    block(lib.array(x), lib.tree(weights), config, *tables, tap=seen.setdefault)
    seen = {name: to_host(value) for name, value in seen.items()}
    np.testing.assert_array_equal(seen["residual_after_attention"], x + seen["attention.output"])
    expected = [
        loops.rms_norm(row, weights.post_attention_layernorm, config.rms_norm_eps)
        for row in seen["residual_after_attention"]
    ]
    assert_close("normed", seen["post_attention_layernorm"], expected)
    np.testing.assert_array_equal(
        seen["residual_after_feedforward"], seen["residual_after_attention"] + seen["feedforward.output"]
    )


@pytest.mark.parametrize("layer", [self_attention, block])
def test_another_attention_is_an_argument(layer):
    config, calls = tiny_config(), []
    weights, x = random_weights(config).layers[0], random(3, config.hidden_size)

    def counted(*arguments, **options):
        calls.append(1)
        return attention(*arguments, **options)

    tables = whole(config, 3, np.arange(3))
    same = layer(x, weights, config, *tables, attention=counted)
    assert len(calls) == 1
    np.testing.assert_array_equal(same, layer(x, weights, config, *tables))
    nothing = layer(x, weights, config, *tables, attention=lambda q, k, v, visible, tap: 0 * q)
    assert np.any(nothing != same)


def test_queries_and_keys_are_rotated_and_values_are_not(lib):
    config, seen = tiny_config(), {}
    weights, x = random_weights(config).layers[0], random(3, config.hidden_size)

    def looking(q, k, v, visible, *, tap):
        seen["attended"] = q, k, v
        return attention(q, k, v, visible, tap=tap)

    tables = whole(config, 3, lib.array(np.arange(3)))
    block(lib.array(x), lib.tree(weights), config, *tables, attention=looking, tap=seen.setdefault)
    for attended, name in zip(seen["attended"], ("q_rotated", "k_rotated", "v"), strict=True):
        np.testing.assert_array_equal(to_host(attended), to_host(seen[f"attention.{name}"]))
    for name in ("q", "k"):
        before, after = to_host(seen[f"attention.{name}"]), to_host(seen[f"attention.{name}_rotated"])
        np.testing.assert_array_equal(after[:, 0], before[:, 0])  # position 0
        assert np.all(np.any(after[:, 1:] != before[:, 1:], axis=-1))
