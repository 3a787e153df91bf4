"""Edits are what the weights scaled by hand compute; patches put in another run's values, also chunk by chunk."""

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
from families import NAMES, WRITERS, random_lm
from hypothesis import given
from hypothesis import strategies as st
from libraries import Library
from models import random_weights, tiny_config
from tolerance import assert_close

import npllm
from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.families import family_of
from npllm.inspect.edits import (
    Edit,
    Patch,
    check_edits,
    edit_tap,
    edit_text,
    other_values,
    parse_edits,
    patch_tap,
    scaled,
    value_name,
)
from npllm.inspect.record import record
from npllm.inspect.trace import trace
from npllm.lm import LM
from npllm.tap import untapped
from npllm.text.arguments import shown

IDS, OTHER = [3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]


def logits(lm, tap, ids=IDS):
    return npllm.forward(ids, lm, tap=tap)[0]


def reweighted(lm, layer, **changes):
    """The model with some weights of a layer changed by functions."""
    layers = list(lm.weights.layers)
    new = {name: change(getattr(layers[layer], name).copy()) for name, change in changes.items()}
    layers[layer] = layers[layer]._replace(**new)
    return lm._replace(weights=lm.weights._replace(layers=tuple(layers)))


def columns(first, last, scale):
    """A change that scales these columns of a matrix."""

    def change(matrix):
        matrix[:, first:last] *= scale
        return matrix

    return change


@pytest.mark.parametrize("name", WRITERS)
def test_a_head_is_scaled_before_the_output_projection(name):
    lm, width = random_lm(name), random_lm(name).config.head_dim
    for head, scale in ((0, 0.0), (3, 2.5)):
        by_hand = reweighted(lm, 1, o_proj=columns(head * width, (head + 1) * width, scale))
        assert_close("logits", logits(lm, edit_tap(lm, [Edit(1, "head", head, scale)])), logits(by_hand, untapped))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["attention", "feedforward"])
def test_a_layer_is_scaled_as_it_is_added_to_the_residual_stream(name, part):
    lm = random_lm(name)
    which = ("attention", "feedforward").index(part)
    added = f"layers.2.{family_of(lm.config).added[which]}"
    after = f"layers.2.{family_of(lm.config).stream[which]}"
    stream = ("residual_after_attention", "residual_after_feedforward")[which]
    before, edited = {}, {}
    npllm.forward(IDS, lm, tap=record(before))
    npllm.forward(IDS, lm, tap=edit_tap(lm, [Edit(2, part, scale=0.25)], record(edited)))
    assert_close("added", edited[added], 0.25 * before[added])
    assert_close("stream", edited[f"layers.2.{stream}"], before[f"layers.2.{stream}"] - 0.75 * before[added])
    assert not np.allclose(edited[after], before[after])


@pytest.mark.parametrize("name", WRITERS)
def test_a_neuron_is_scaled_or_refused_where_experts_have_their_own(name):
    lm = random_lm(name)
    if hasattr(lm.weights.layers[0], "experts"):
        with pytest.raises(UsageError, match=r"edit of neuron: expected a model with one network in each layer, got "):
            edit_tap(lm, [Edit(1, "neuron", 5)])
        return
    down = "c_proj" if hasattr(lm.weights.layers[0], "c_proj") else "down_proj"
    by_hand = reweighted(lm, 1, **{down: columns(5, 6, 0.0)})
    assert_close("logits", logits(lm, edit_tap(lm, [Edit(1, "neuron", 5)])), logits(by_hand, untapped))


EDITS = [Edit(0, "head", 1), Edit(0, "head", 2, 0.5), Edit(1, "attention", scale=2.0), Edit(3, "feedforward")]


@pytest.mark.parametrize("name", WRITERS)
def test_edits_with_the_cache_are_those_without(name):
    lm = random_lm(name)
    tap = edit_tap(lm, EDITS)
    whole, cache = logits(lm, tap), empty_cache(lm.config, len(IDS), like=lm.weights.norm)
    parts = [npllm.forward(some, lm, cache, total_length=len(IDS), tap=tap)[0] for some in (IDS[:4], IDS[4:6], IDS[6:])]
    assert_close("logits", np.concatenate(parts), whole)
    assert_close("of a batch", npllm.forward([IDS, OTHER], lm, tap=tap)[0][0], whole)


def test_edits_on_every_library(writable_lib: Library):
    lm = random_lm("llama")
    expected = logits(lm, edit_tap(lm, EDITS))
    lm = lm._replace(weights=writable_lib.tree(lm.weights))
    assert_close("logits", to_host(logits(lm, edit_tap(lm, EDITS))), expected)


def test_several_edits_of_one_part_multiply_and_their_order_is_irrelevant():
    lm = random_lm("llama")
    twice = [Edit(1, "head", 2, 0.5), Edit(1, "head", 2, 3.0), Edit(1, "head", 0, 0.0)]
    expected = logits(lm, edit_tap(lm, [Edit(1, "head", 0), Edit(1, "head", 2, 1.5)]))
    assert_close("logits", logits(lm, edit_tap(lm, twice)), expected)
    assert_close("logits", logits(lm, edit_tap(lm, twice[::-1])), expected)


def test_a_part_that_is_off_is_zero_even_where_it_was_infinite():
    value = np.array([[[np.inf]], [[1.0]]], dtype=np.float32)
    off = scaled(value, {0: 0.0}, -3)
    assert off.tolist() == [[[0.0]], [[1.0]]]
    assert off.dtype == np.float32


def test_the_inner_tap_sees_the_edited_values_and_no_edits_are_no_tap():
    lm, seen = random_lm("llama"), {}
    logits(lm, edit_tap(lm, [Edit(1, "head", 2)], record(seen)))
    assert not seen["layers.1.attention.mixed"][2].any()
    assert seen["layers.1.attention.mixed"][1].any()
    assert edit_tap(lm, []) is untapped
    assert patch_tap(lm, [], {}) is untapped


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(4, "head", 0), "edit of head: layer: expected 0 to 3 (there are 4 layers), got 4"),
        (Edit(-1, "feedforward"), "edit of feedforward: layer: expected 0 to 3 (there are 4 layers), got -1"),
        (Edit(True, "feedforward"), "edit of feedforward: layer: expected a whole number, got True"),
        (Edit(1, "head", 4), "edit of layer 1: head: expected 0 to 3 (there are 4 heads), got 4"),
        (Edit(1, "head"), "edit of layer 1: head: expected a whole number, got None"),
        (Edit(1, "neuron", 12), "edit of layer 1: neuron: expected 0 to 11 (there are 12 neurons), got 12"),
        (Edit(1, "attention", 2), "edit of attention: expected no index, got 2; a head has one"),
        (Edit(1, "mlp"), "edit: expected one of head, attention, feedforward, neuron, got 'mlp'"),
        (Edit(1, "head", 0, float("nan")), "head:1.0: scale: expected a finite number, got nan"),
    ],
)
def test_an_edit_that_the_model_cannot_have_is_refused_in_one_line(edit, message):
    with pytest.raises(UsageError) as error:
        edit_tap(random_lm("llama"), [edit])
    assert str(error.value) == message


@pytest.mark.parametrize("scale", ["half", [1], None, 10**400, float("nan")], ids=lambda scale: repr(scale)[:6])
def test_a_scale_that_is_no_finite_number_is_refused_in_one_line(scale, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "off", True)
    with pytest.raises(UsageError) as error:
        check_edits(random_lm("llama"), [Edit(1, "head", 0, scale)])
    assert str(error.value) == f"head:1.0: scale: expected a finite number, got {shown(scale)}"


def test_something_else_than_edits_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "off", True)
    lm = random_lm("llama")
    for wrong in ({"layer": 1}, [(1, "head", 2)], "head:1.2"):
        with pytest.raises(UsageError, match=r"edits: expected a list of npllm.inspect.edits.Edit, got "):
            check_edits(lm, wrong)
    with pytest.raises(UsageError, match=r"lm: expected a model"):
        check_edits(None, [])


PATCHES = [Patch(1, 2), Patch(1, 4), Patch(2, 6, "attention"), Patch(0, 5, "feedforward"), Patch(3, 0, "head", 2)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_patch_puts_in_the_other_runs_value_also_chunk_by_chunk(name):
    lm = random_lm(name)
    values = other_values(lm, OTHER, PATCHES)
    everything = trace(lm, OTHER)
    seen, plain = {}, trace(lm, IDS)
    npllm.forward(IDS, lm, tap=patch_tap(lm, PATCHES, values, record(seen)))
    for patch in PATCHES:
        at = value_name(lm, patch.part, patch.layer)
        index = ((patch.index,) if patch.part == "head" else ()) + (patch.position,)
        assert_close(at, seen[at][index], everything[at][index])
    first = value_name(lm, "feedforward", 0)
    np.testing.assert_array_equal(seen[first][:5], plain[first][:5])
    chunked = {}
    cache = empty_cache(lm.config, len(IDS), like=lm.weights.norm)
    tap = patch_tap(lm, PATCHES, values, record(chunked, "logits"))
    for some in (IDS[:3], IDS[3:6], IDS[6:]):
        npllm.forward(some, lm, cache, total_length=len(IDS), tap=tap)
    assert_close("logits", chunked["logits"], seen["logits"])


def test_a_later_step_is_not_patched():
    lm = LM(tiny_config(), random_weights(tiny_config()), None, {})
    patches = [Patch(1, 0)]
    tap = patch_tap(lm, patches, other_values(lm, OTHER, patches))
    cache = empty_cache(lm.config, 8, like=lm.weights.norm)
    npllm.forward(IDS, lm, cache, tap=tap)
    step, seen = [5], {}
    npllm.forward(step, lm, replace_arrays(cache), tap=record(seen))
    again = {}
    npllm.forward(step, lm, cache, tap=lambda name, value: record(again)(name, tap(name, value)))
    np.testing.assert_array_equal(again["logits"], seen["logits"])


def test_a_patch_changes_no_value_in_place():
    lm = random_lm("llama")
    patches = [Patch(1, 2)]
    tap = patch_tap(lm, patches, other_values(lm, OTHER, patches))
    tap("embedding", np.zeros((7, 16), np.float32))
    value = np.zeros((7, 16), np.float32)
    assert tap("layers.1.residual_after_feedforward", value)[2].any()
    assert not value.any()


def replace_arrays(cache):
    return {name: [one.copy() for one in value] if isinstance(value, list) else value for name, value in cache.items()}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(1, 7), "patch of layer 1: position: expected 0 to 6 (there are 7 tokens in the shorter text), got 7"),
        (Patch(9, 0), "patch of residual: layer: expected 0 to 3 (there are 4 layers), got 9"),
        (Patch(1, 0, "neuron", 1), "patch: expected one of residual, attention, feedforward, head, got 'neuron'"),
        (Patch(1, 0, "head"), "patch of layer 1: head: expected a whole number, got None"),
    ],
)
def test_a_patch_that_the_model_cannot_have_is_refused_in_one_line(patch, message):
    with pytest.raises(UsageError) as error:
        other_values(random_lm("llama"), OTHER, [patch])
    assert str(error.value) == message


EDIT = st.builds(
    lambda layer, part, index, scale: Edit(layer, part, index if part in ("head", "neuron") else None, scale),
    st.integers(0, 10**6),
    st.sampled_from(["head", "attention", "feedforward", "neuron"]),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.5, 2.0, -1.0]),
)


@given(st.lists(EDIT, min_size=1, max_size=4))
def test_the_text_of_edits_is_read_as_the_same_edits(edits):
    assert parse_edits(",".join(edit_text(edit) for edit in edits)) == edits


@pytest.mark.parametrize(
    "text",
    ["", "head:5", "head", "attention:1.2", "head:1.2=x", "head:1.2=nan", "mlp:3", "head:-1.2", "head:1.2.3", ","],
)
def test_a_text_that_is_no_edit_shows_the_syntax(text):
    with pytest.raises(UsageError, match=r"--without: expected head:LAYER.HEAD, .* got "):
        parse_edits(text)


def test_edits_can_be_compared_and_replaced():
    assert replace(Edit(5, "head", 3), scale=0.5) == Edit(5, "head", 3, 0.5)
