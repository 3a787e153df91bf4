import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import config_keys, random_gpt2_weights, random_weights, tiny_config, tiny_gpt2_config
from tolerance import assert_close

import npllm
from npllm.apps.packing import first_fit, pack
from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.families import family_of
from npllm.flash import flash_attention
from npllm.lm import LM
from npllm.masks import causal, same_document, sliding_window
from npllm.model import forward

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def documents(lengths, vocab_size=11):
    random = np.random.default_rng(0)
    return [random.integers(0, vocab_size, length).tolist() for length in lengths]


def masks(packing, config):
    """One mask per layer: earlier tokens of the same document, within the layer's window."""
    places = np.arange(packing.ids.shape[-1])
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    return [
        same_document(packing.documents, packing.documents)
        & (causal(places, places) if window is None else sliding_window(places, places, window))
        for window in windows
    ]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([5, 4, 3, 2], [[0, 2], [1, 3]]),
        ([8], [[0]]),
        ([1] * 9, [[0, 1, 2, 3, 4, 5, 6, 7], [8]]),
        ([7, 7, 1, 1], [[0, 2], [1, 3]]),
        ([6, 5, 3, 2, 2], [[0, 3], [1, 2], [4]]),  # 3 does not fit after 6, but the later 2 does
        ([], []),
    ],
)
def test_a_document_goes_into_the_first_row_with_room(lengths, rows):
    assert first_fit(lengths, capacity=8) == rows


@given(lengths=st.lists(st.integers(1, 9), max_size=30))
def test_every_document_is_in_one_row_and_at_most_one_row_is_half_empty(lengths):
    rows = first_fit(lengths, capacity=9)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = [sum(lengths[number] for number in row) for row in rows]
    assert all(1 <= tokens <= 9 for tokens in filled)
    assert sum(2 * tokens <= 9 for tokens in filled) <= 1


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_each_row_was_opened_by_a_document_that_fitted_nowhere_before(lengths):
    rows = first_fit(lengths, capacity=9)
    for place, row in enumerate(rows):
        for earlier in rows[:place]:
            assert sum(lengths[number] for number in earlier if number < row[0]) + lengths[row[0]] > 9


@pytest.mark.parametrize("length", [0, 9])
def test_a_document_longer_than_a_row_or_empty_is_refused(length):
    with pytest.raises(UsageError, match=f"document 1: expected 1 to 8 tokens, got {length}; "):
        first_fit([3, length], capacity=8)


@given(lengths=LENGTHS, capacity=st.integers(6, 12))
def test_each_document_is_there_in_one_piece_with_positions_of_its_own(lengths, capacity):
    texts = documents(lengths)
    packing = pack(texts, capacity)
    assert packing.ids.shape == packing.positions.shape == packing.documents.shape
    for number, text in enumerate(texts):
        rows, places = np.nonzero(packing.documents == number)
        assert len(set(rows)) == 1
        assert list(places) == list(range(places[0], places[0] + len(text)))
        assert packing.ids[rows, places].tolist() == text
        assert packing.positions[rows, places].tolist() == list(range(len(text)))
    padding = packing.documents == -1
    assert packing.utilisation == sum(lengths) / padding.size
    assert not np.any(packing.ids[padding])
    for row in padding:
        assert list(row) == sorted(row), "padding is at the end of the row"


def test_no_documents_make_no_rows():
    assert pack([], 4).ids.shape == (0, 4)
    assert pack([], 4).utilisation == 0


@given(keys=config_keys(), lengths=LENGTHS)
def test_packed_equals_separate(keys, lengths):
    config = tiny_config(**keys)
    weights, texts = random_weights(config), documents(lengths)
    packing = pack(texts, capacity=9)
    for attention in ({}, {"attention": functools.partial(flash_attention, tile=(3, 2))}):
        together, _ = forward(
            packing.ids, weights, config, positions=packing.positions, visible=masks(packing, config), **attention
        )
        for number, text in enumerate(texts):
            alone, _ = forward(np.array(text), weights, config)
            assert_close("logits", together[packing.documents == number], alone)


def test_packed_equals_separate_on_every_library(lib):
    config = tiny_config()
    weights, texts = random_weights(config), documents([3, 4, 2])
    packing = pack(texts, capacity=7)
    ids, positions, numbers = lib.array(packing.ids), lib.array(packing.positions), lib.array(packing.documents)
    places = lib.array(np.arange(7))
    visible = causal(places, places) & same_document(numbers, numbers)
    together, _ = forward(ids, lib.tree(weights), config, positions=positions, visible=visible)
    for number, text in enumerate(texts):
        alone, _ = forward(np.array(text), weights, config)
        assert_close("logits", to_host(together)[packing.documents == number], alone)


def test_positions_that_begin_anew_are_not_enough_without_the_mask_documents_leak(lib):
    config = tiny_config()
    weights, texts = lib.tree(random_weights(config)), documents([3, 4])
    packing = pack(texts, capacity=7)

    def logits(ids, **options):
        return to_host(forward(lib.array(ids), weights, config, **options)[0])

    positions = lib.array(packing.positions)
    leaking = logits(packing.ids, positions=positions)  # causal over the whole row
    first, second = (logits(text) for text in texts)
    assert_close("first", leaking[0, :3], first)  # nothing precedes it
    assert np.all(np.max(np.abs(leaking[0, 3:] - second), axis=-1) > 1e-2)
    other = packing.ids.copy()
    other[0, 0] = (other[0, 0] + 1) % config.vocab_size
    result = logits(other, positions=positions)
    assert np.all(np.any(result[0, 3:] != leaking[0, 3:], axis=-1)), "a token of the first document, seen by the second"


def test_under_the_mask_absolute_positions_must_begin_anew_and_rotary_ones_need_not(lib):
    texts = documents([3, 4])
    packing = pack(texts, capacity=7)

    def off(config, weights, **options):
        """The largest difference between the second document's logits in the row and on its own."""
        ids, visible = lib.array(packing.ids), list(map(lib.array, masks(packing, config)))
        lm = LM(config, lib.tree(weights), None, {}, family_of(config).transform)
        together, _ = npllm.forward(ids, lm, visible=visible, **options)
        alone, _ = npllm.forward(lib.array(texts[1]), lm)
        return np.max(np.abs(to_host(together)[0, 3:] - to_host(alone)))

    config, gpt2 = tiny_config(), tiny_gpt2_config()
    assert off(config, random_weights(config)) < 1e-5  # RoPE depends on distances, and these are the same
    weights = random_gpt2_weights(gpt2)
    assert off(gpt2, weights) > 1e-2
    assert off(gpt2, weights, positions=lib.array(packing.positions)) < 1e-5


def test_nobody_sees_the_padding(lib):
    config = tiny_config()
    weights, packing = lib.tree(random_weights(config)), pack(documents([3, 2]), capacity=8)
    padding = packing.documents == -1
    assert np.sum(padding) == 3
    before, after = (
        to_host(
            forward(
                lib.array(np.where(padding, token, packing.ids)),
                weights,
                config,
                positions=lib.array(packing.positions),
                visible=list(map(lib.array, masks(packing, config))),
            )[0]
        )
        for token in (0, 7)
    )
    np.testing.assert_array_equal(before[~padding], after[~padding])
    assert np.all(np.isfinite(after))
