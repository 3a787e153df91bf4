import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_weights, tiny_config
from tolerance import assert_close

from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.inspect.record import record
from npllm.model import forward, transform
from npllm.tap import under, untapped

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)

# Every tap of a block, in execution order, with the letters of npllm/shapes.py.
OF_A_BLOCK = {
    "input_layernorm": "T D",
    "attention.q": "N T H",
    "attention.k": "K T H",
    "attention.v": "K T H",
    "attention.q_rotated": "N T H",
    "attention.k_rotated": "K T H",
    "attention.scores": "N T S",
    "attention.weights": "N T S",
    "attention.mixed": "N T H",
    "attention.output": "T D",
    "residual_after_attention": "T D",
    "post_attention_layernorm": "T D",
    "feedforward.gate": "T F",
    "feedforward.up": "T F",
    "feedforward.activation": "T F",
    "feedforward.output": "T D",
    "residual_after_feedforward": "T D",
}
TAPS = {
    "embedding": "T D",
    **{f"layers.{layer}.{name}": shape for layer in range(2) for name, shape in OF_A_BLOCK.items()},
    "norm": "T D",
    "logits": "T V",
}


def recorded(ids, cache=None, only="*", config=CONFIG, weights=WEIGHTS):
    seen = {}
    forward(ids, weights, config, cache, tap=record(seen, only))
    return seen


def test_untapped_returns_the_value_itself():
    value = np.zeros(2)
    assert untapped("name", value) is value


def test_under_names_the_part():
    names = []

    def tap(name, value):
        names.append(name)
        return value

    under(under(tap, "layers.7"), "attention")("q", np.zeros(1))
    assert names == ["layers.7.attention.q"]
    assert under(untapped, "layers.7") is untapped


@pytest.mark.parametrize("batch", [(), (2,)], ids=["sequence", "batch"])
@pytest.mark.parametrize("name", TAPS)
def test_each_tap_has_its_shape(name, batch):
    sizes = {"T": 3, "S": 5, "D": 8, "N": 4, "K": 2, "H": 4, "F": 6, "V": 11}
    cache = empty_cache(CONFIG, 5, batch, like=WEIGHTS.norm)
    transform(random_ids(CONFIG, *batch, 2), WEIGHTS, CONFIG, cache)
    seen = recorded(random_ids(CONFIG, *batch, 3), cache, only=name)
    assert list(seen) == [name]
    assert seen[name].shape == (*batch, *(sizes[letter] for letter in TAPS[name].split()))


def test_there_are_no_other_taps_and_they_come_in_the_order_of_execution():
    assert list(recorded(random_ids(CONFIG, 3))) == list(TAPS)


def test_looking_changes_nothing(lib):
    weights, ids = lib.tree(WEIGHTS), lib.array(random_ids(CONFIG, 4))
    seen = {}
    tapped, _ = forward(ids, weights, CONFIG, tap=record(seen))
    np.testing.assert_array_equal(to_host(tapped), to_host(forward(ids, weights, CONFIG)[0]))
    np.testing.assert_array_equal(to_host(seen["logits"]), to_host(tapped))


@pytest.mark.parametrize("name", TAPS)
def test_a_tap_that_returns_another_value_changes_the_result(name):
    ids = random_ids(CONFIG, 4)

    def patching(tapped, value):
        return value[..., ::-1] if tapped == name else value

    patched, _ = forward(ids, WEIGHTS, CONFIG, tap=patching)
    assert np.any(patched != forward(ids, WEIGHTS, CONFIG)[0])


def test_what_a_tap_returns_is_what_the_pass_goes_on_with(lib):
    ids = lib.array(random_ids(CONFIG, 4))

    def patching(name, value):
        return 0 * value if name == "layers.1.feedforward.output" else value

    layers = (WEIGHTS.layers[0], WEIGHTS.layers[1]._replace(down_proj=0 * WEIGHTS.layers[1].down_proj))
    patched, _ = forward(ids, lib.tree(WEIGHTS), CONFIG, tap=patching)
    without, _ = forward(ids, lib.tree(WEIGHTS._replace(layers=layers)), CONFIG)
    np.testing.assert_array_equal(to_host(patched), to_host(without))


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("*", list(TAPS)),
        ("logits", ["logits"]),
        ("*.weights", ["layers.0.attention.weights", "layers.1.attention.weights"]),
        ("layers.1.*", [name for name in TAPS if name.startswith("layers.1.")]),
        ("embedding,*.0.attention.[qkv]", ["embedding", *(f"layers.0.attention.{name}" for name in "qkv")]),
        ("LOGITS", []),
        ("nothing.of.this.name", []),
    ],
)
def test_only_chooses_by_patterns(only, names):
    assert list(recorded(random_ids(CONFIG, 3), only=only)) == names


@given(
    chunks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    batch=st.sampled_from([(), (2,)]),
    window=st.sampled_from([None, 2]),
)
def test_chunks_are_recorded_as_the_whole(writable_lib, chunks, batch, window):
    config = tiny_config(model_type="mistral", num_key_value_heads=2, sliding_window=window)
    ids = random_ids(config, *batch, sum(chunks))
    whole = recorded(ids, config=config)
    seen, start, weights = {}, 0, writable_lib.tree(WEIGHTS)
    cache = empty_cache(config, sum(chunks), batch, like=weights.norm)
    for chunk in chunks:
        forward(writable_lib.array(ids[..., start : start + chunk]), weights, config, cache, tap=record(seen))
        start += chunk
    visible = np.tri(sum(chunks), dtype=bool)
    assert list(seen) == list(whole)
    for name, value in seen.items():
        scores = name.endswith("scores")
        assert_close(name, to_host(value), whole[name], where=visible if scores else None)


def test_what_an_earlier_chunk_could_not_see_is_filled_as_a_mask_would(writable_lib):
    lib, seen, weights = writable_lib, {}, writable_lib.tree(WEIGHTS)
    cache = empty_cache(CONFIG, 5, like=weights.norm)
    ids = random_ids(CONFIG, 5)
    for chunk in (ids[:2], ids[2:]):
        forward(lib.array(chunk), weights, CONFIG, cache, tap=record(seen, "*.scores,*.weights"))
    assert np.all(to_host(seen["layers.1.attention.scores"])[:, :2, 2:] == -np.inf)
    weights = to_host(seen["layers.1.attention.weights"])
    assert np.all(weights[:, :2, 2:] == 0)
    assert_close("sum", np.sum(weights, axis=-1), np.ones((4, 5)))


def test_a_second_text_into_the_same_dict_is_refused():
    config = tiny_config()
    weights, seen = random_weights(config), {}
    forward(np.array([1, 2, 3]), weights, config, tap=record(seen))
    with pytest.raises(ValueError, match="record into a new dict"):
        forward(np.array([1, 2, 3]), weights, config, tap=record(seen, "*.weights"))
