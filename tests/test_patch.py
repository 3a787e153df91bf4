"""Patches: the pass goes on with the patched value, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

import npllm
from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.flash import flash_attention
from npllm.inspect.patch import zero_head, zero_neuron
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.model import forward, transform

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
IDS = random_ids(CONFIG, 4)


def recorded(changes=(), ids=IDS, weights=WEIGHTS, config=CONFIG):
    seen = {}
    forward(ids, weights, config, tap=npllm.patch(dict(changes), record(seen)))
    return seen


NAMES = list(recorded())


@given(name=st.sampled_from(NAMES))
def test_a_value_put_in_the_place_of_itself_changes_nothing(name):
    before = recorded()
    after = recorded({name: before[name]})
    for other in NAMES:
        np.testing.assert_array_equal(after[other], before[other])


@given(name=st.sampled_from(NAMES), data=st.data())
def test_what_came_before_stays_and_the_value_is_the_new_one(name, data):
    before, other = recorded(), recorded(ids=random_ids(CONFIG, 4, seed=1))
    after = recorded({name: other[name]})
    np.testing.assert_array_equal(after[name], other[name])
    for earlier in NAMES[: NAMES.index(name)]:
        np.testing.assert_array_equal(after[earlier], before[earlier])


@pytest.mark.parametrize("layer", [0, 1])
def test_the_whole_residual_stream_of_another_text_gives_its_logits(layer):
    name = f"layers.{layer}.residual_after_feedforward"
    other = recorded(ids=random_ids(CONFIG, 4, seed=1))
    np.testing.assert_array_equal(recorded({name: other[name]})["logits"], other["logits"])


@pytest.mark.parametrize("head", range(4))
def test_a_head_without_a_word_is_a_head_without_columns_in_o_proj(head):
    block = WEIGHTS.layers[1]
    o_proj = block.o_proj.copy()
    o_proj[:, 4 * head : 4 * head + 4] = 0
    without = WEIGHTS._replace(layers=(WEIGHTS.layers[0], block._replace(o_proj=o_proj)))
    got = recorded({"layers.1.attention.mixed": zero_head(head)})["logits"]
    assert_close("logits", got, forward(IDS, without, CONFIG)[0])


@pytest.mark.parametrize("neuron", range(6))
def test_a_neuron_of_zero_is_one_without_a_column_in_down_proj(neuron):
    block = WEIGHTS.layers[0]
    down_proj = block.down_proj.copy()
    down_proj[:, neuron] = 0
    without = WEIGHTS._replace(layers=(block._replace(down_proj=down_proj), WEIGHTS.layers[1]))
    got = recorded({"layers.0.feedforward.activation": zero_neuron(neuron)})["logits"]
    assert_close("logits", got, forward(IDS, without, CONFIG)[0])


def test_edited_attention_weights_mix_the_values_accordingly():
    def all_to_the_first(weights):
        weights[...] = 0
        weights[..., 0] = 1
        return weights

    seen = recorded({"layers.0.attention.weights": all_to_the_first})
    values = np.repeat(seen["layers.0.attention.v"], 2, axis=0)  # two query heads share one value head
    np.testing.assert_array_equal(seen["layers.0.attention.mixed"], np.repeat(values[:, :1], 4, axis=1))


def test_a_pattern_changes_all_that_it_names_and_changes_follow_each_other():
    seen = recorded({"layers.*.feedforward.output": lambda value: 0 * value})
    for layer in range(2):
        assert not np.any(seen[f"layers.{layer}.feedforward.output"])
        after = seen[f"layers.{layer}.residual_after_feedforward"]
        np.testing.assert_array_equal(after, seen[f"layers.{layer}.residual_after_attention"])
    seen = recorded({"*.gate,*.up": lambda value: 0 * value + 1, "layers.1.*.gate": lambda value: value + 2})
    assert np.all(seen["layers.0.feedforward.gate"] == 1)
    assert np.all(seen["layers.1.feedforward.gate"] == 3)
    assert np.all(seen["layers.1.feedforward.up"] == 1)


def test_a_function_may_write_into_what_it_gets(lib):
    before, kept = {}, {}
    ids, weights = lib.array(IDS), lib.tree(WEIGHTS)
    forward(ids, weights, CONFIG, tap=record(before))

    def overwrite(value):
        if lib.xp.__name__ == "jax.numpy":
            return 0 * value
        value[...] = 0.0
        return value

    keep, patcher = record(kept), npllm.patch({"layers.0.attention.q": overwrite})
    forward(ids, weights, CONFIG, tap=lambda name, value: patcher(name, keep(name, value)))
    np.testing.assert_array_equal(to_host(kept["layers.0.attention.q"]), to_host(before["layers.0.attention.q"]))
    assert np.any(to_host(kept["logits"]) != to_host(before["logits"]))


def test_values_of_a_trace_go_into_a_pass_on_any_library(lib):
    other = recorded(ids=random_ids(CONFIG, 4, seed=1))
    name = "layers.0.residual_after_attention"
    expected = recorded({name: other[name]})["logits"]
    tap = npllm.patch({name: other[name], "layers.1.attention.mixed": zero_head(2), "*.gate": lambda value: value})
    logits, _ = forward(lib.array(IDS), lib.tree(WEIGHTS), CONFIG, tap=tap)
    plain, _ = forward(lib.array(IDS), lib.tree(WEIGHTS), CONFIG, tap=npllm.patch({name: other[name]}))
    assert_close("logits", to_host(plain), expected)
    assert np.any(to_host(logits) != to_host(plain))


def test_a_wider_dtype_does_not_spread():
    seen = recorded({"*.mixed": lambda value: value.astype(np.float64)})
    assert {value.dtype for value in seen.values()} == {np.dtype(np.float32)}


def test_it_is_recorded_after_the_change():
    seen = recorded({"embedding": lambda value: 0 * value})
    assert not np.any(seen["embedding"])


def test_every_step_of_generation_is_patched():
    class Patched:
        calls = 0

    def count(value):
        Patched.calls += 1
        return value

    tap = npllm.patch({"norm": count})
    lm = LM(CONFIG, WEIGHTS, None, {}, lambda *args, **options: transform(*args, **{**options, "tap": tap}))
    npllm.generate(lm, [1, 2, 3], max_new_tokens=4)
    assert Patched.calls == 4


# Bad input


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (np.zeros((4, 4), dtype=np.float32), r"one of shape \(4, 4\)"),
        (np.zeros((1, 4, 4, 4), dtype=np.float32), r"one of shape \(1, 4, 4, 4\)"),
        (np.float32(0), r"one of shape \(\)"),
        (lambda value: value[0], r"one of shape \(4, 4\)"),
        (lambda value: None, "NoneType"),
        (lambda value: 0.0, "float"),
    ],
)
def test_a_wrong_shape_names_the_value_and_both_shapes(change, got):
    with pytest.raises(UsageError, match=r"patch: layers\.1\.attention\.q: expected .* \(4, 4, 4\), got " + got):
        recorded({"layers.1.attention.q": change})


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layers.0.attention.wieghts", r"did you mean layers\.0\.attention\.weights"),
        ("*.wieghts", r"did you mean \*\.weights"),
        ("layers.2.attention.q", "the layers are 0 to 1"),
        ("LOGITS", "the names are embedding, layers"),
        ("norm,zzz", "no value is named zzz"),
    ],
)
def test_a_name_that_no_value_has_is_an_error_at_the_end_of_the_pass(pattern, hint):
    with pytest.raises(UsageError, match=hint):
        recorded({pattern: lambda value: value})
    with pytest.raises(UsageError, match=hint):
        transform(IDS, WEIGHTS, CONFIG, tap=npllm.patch({pattern: lambda value: value}))


def test_a_patch_of_the_logits_waits_for_the_head():
    tap = npllm.patch({"logits": lambda value: 0 * value})
    transform(IDS, WEIGHTS, CONFIG, tap=tap)
    assert not np.any(forward(IDS, WEIGHTS, CONFIG, tap=tap)[0])


def test_flash_attention_has_no_weights_to_patch():
    tap = npllm.patch({"*.weights": lambda value: value})
    with pytest.raises(UsageError, match=r"no value is named \*\.weights"):
        forward(IDS, WEIGHTS, CONFIG, attention=flash_attention, tap=tap)


@pytest.mark.parametrize("head", [-1, 4, 99])
def test_a_head_out_of_range(head):
    with pytest.raises(UsageError, match=f"head: expected 0 to 3, got {head}"):
        recorded({"layers.0.attention.mixed": zero_head(head)})


def test_a_neuron_out_of_range_and_a_value_without_heads():
    with pytest.raises(UsageError, match="neuron: expected 0 to 5, got 6"):
        recorded({"layers.0.feedforward.activation": zero_neuron(6)})
    with pytest.raises(UsageError, match=r"head: expected a value with 3 axes, got one of shape \(4, 8\)"):
        recorded({"norm": zero_head(0)})
