"""The grid of activation patching is that of whole runs, one for each layer and position."""

from contextlib import nullcontext

import numpy as np
import pytest
from default_model import default_lm, needs_default_model
from families import NAMES, random_lm
from libraries import Library

import npllm
from npllm.errors import UsageError
from npllm.inspect import patching
from npllm.inspect.edits import Patch, patch_tap
from npllm.inspect.patching import first_difference, patching_grid, patching_rows
from npllm.inspect.trace import trace
from npllm.sampling import softmax
from npllm.tap import untapped

IDS, OTHER = [3, 1, 4, 1, 5, 9, 2], [3, 1, 2, 1, 5, 8, 2]  # the first two tokens are the same


def run(lm, ids, position, token, against, tap=untapped):
    logits = npllm.forward(ids, lm, tap=tap)[0][position].astype(np.float64)
    return softmax(logits)[token] if against is None else logits[token] - logits[against]


def check_cells(lm, grid, part, against=None, position=-1, token=6):
    """Some cells of the grid are those of whole runs of the other text, each with one patch."""
    clean, other = (run(lm, ids, position, token, against) for ids in (IDS, OTHER))
    values = trace(lm, IDS)
    for layer, at in [(0, 1), (0, 2), (1, 5), (1, 6), (2, 3), (3, 6), (3, 2)]:
        tap = patch_tap(lm, [Patch(layer, at, part)], values)
        expected = (run(lm, OTHER, position, token, against, tap) - other) / (clean - other)
        assert grid[layer, at] == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_is_that_of_whole_runs(name):
    lm = random_lm(name)
    for part in ("residual", "attention", "feedforward"):
        grid = patching_grid(lm, IDS, OTHER, 6, part, against=7)
        assert grid.shape == (4, 7)
        check_cells(lm, grid, part, against=7)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_probabilities_at_another_position_likewise(name):
    lm = random_lm(name)
    check_cells(lm, patching_grid(lm, IDS, OTHER, 6, position=3), "residual", position=3)


def test_a_decoder_gets_zeros_before_the_first_difference_and_after_the_answer():
    lm = random_lm("llama")
    got = patching_grid(lm, IDS, OTHER, 6, position=4, against=7)
    assert got[:, :2].tolist() == got[:, 5:].tolist() == np.zeros((4, 2)).tolist()
    assert got[3, 4] == pytest.approx(1, abs=1e-5)  # all that the answer is computed from
    assert np.abs(got[0, 2]) > 1e-3


def test_the_first_layer_holds_the_text_at_the_tokens_that_differ():
    """If they differ in one token only, the residual stream there is all of the difference, until it has moved on."""
    lm = random_lm("llama")
    other = [*IDS[:2], 2, *IDS[3:]]
    got = patching_grid(lm, IDS, other, 6, against=7)
    after_embedding = got[0]
    assert abs(after_embedding[2]) > 0.1
    assert got[3].round(4).tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_rows_come_one_by_one_with_what_both_runs_measure(monkeypatch):
    lm, calls = random_lm("llama"), []
    found = patching_rows(lm, IDS, OTHER, 6, against=7)
    assert found.clean == pytest.approx(run(lm, IDS, -1, 6, 7), rel=1e-5)
    assert found.other == pytest.approx(run(lm, OTHER, -1, 6, 7), rel=1e-5)
    original = patching.patched_run
    monkeypatch.setattr(patching, "patched_run", lambda *args: calls.append(args[4]) or original(*args))
    first = next(found.rows)
    assert calls == [0]
    np.testing.assert_array_equal(first, patching_grid(lm, IDS, OTHER, 6, against=7)[0])


def test_many_positions_are_computed_in_several_passes(monkeypatch):
    lm = random_lm("gpt2")
    expected = patching_grid(lm, IDS, OTHER, 6)
    monkeypatch.setattr(patching, "MOST_TOKENS", 14)  # two positions of seven tokens, of which two are cached
    np.testing.assert_allclose(patching_grid(lm, IDS, OTHER, 6), expected, rtol=1e-4, atol=1e-6)


def test_the_copies_of_the_cached_tokens_count(monkeypatch):
    """A long common beginning is copied once for each patched position, so fewer fit in one pass."""
    copied, original = [], patching.batch_of
    monkeypatch.setattr(patching, "MOST_TOKENS", 16)
    monkeypatch.setattr(patching, "batch_of", lambda cache, count: copied.append(count) or original(cache, count))
    patching_grid(random_lm("gpt2"), IDS, OTHER, 6, layers=[1])
    assert copied == [2, 2, 1]
    assert max(copied) * len(IDS) <= 16


def test_only_the_blocks_from_the_patched_one_are_computed(monkeypatch):
    lm, seen = random_lm("gpt2"), []
    before = npllm.families.gpt2.layer_norm
    monkeypatch.setattr(npllm.families.gpt2, "layer_norm", lambda x, *args: seen.append(x.shape) or before(x, *args))
    rows = patching_rows(lm, IDS, OTHER, 6).rows
    norms = []
    for _ in rows:
        norms.append(len(seen))
        seen.clear()
    assert norms[1:] == [7, 5, 3]  # two in each block, and the last


@pytest.mark.slow
def test_the_grid_on_every_library(writable_lib: Library):
    lm = random_lm("llama")
    expected = patching_grid(lm, IDS, OTHER, 6, "attention", against=7)
    found = patching_grid(lm._replace(weights=writable_lib.tree(lm.weights)), IDS, OTHER, 6, "attention", against=7)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_row_gives_no_warning():
    """It is computed after the call, so it needs its own setting."""
    lm = random_lm("llama")
    found = patching_rows(lm, IDS, OTHER, 6, against=7, layers=[3])
    lm.weights.lm_head[6:8] = 0
    lm.weights.lm_head[6:8, 0] = np.inf  # both logits are infinite, and their difference is NaN
    with np.errstate(all="raise"):
        next(found.rows)


def test_the_first_difference():
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2]) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ([1, 2, 3], [1, 2], 6),
            {},
            "patching: expected two texts with the same number of tokens, got 3 and 2; add words to the shorter one",
        ),
        (([1, 2], [1, 3], 6, "mlp"), {}, "part: expected residual, attention, feedforward, got 'mlp'"),
        (([1, 2], [1, 3], 23), {}, "token: expected 0 to 22, got 23"),
        (([1, 2], [1, 3], 6), {"against": -1}, "against: expected 0 to 22, got -1"),
        (([1, 2], [1, 3], 6), {"layers": [0, 4]}, "layers: expected 0 to 3, got 4"),
        (([1, 2], [1, 3], 6), {"position": 2}, "position: expected -2 to 1, got 2"),
        (([], [1, 3], 6), {}, "the prompt is empty: expected at least one token"),
        (([1, 3], [], 6), {}, "the second prompt is empty: expected at least one token"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, options, message):
    with pytest.raises(UsageError) as error:
        patching_grid(random_lm("llama"), *arguments, **options)
    assert str(error.value) == message


def test_two_texts_with_the_same_answer_are_refused():
    with pytest.raises(
        UsageError, match=r"patching: expected two texts with different answers, got the same probability"
    ):
        patching_grid(random_lm("llama"), IDS, IDS, 6)
    with pytest.raises(UsageError, match=r"got the same difference of logits in both, 0; choose another token"):
        patching_grid(random_lm("llama"), IDS, OTHER, 6, against=6)


@pytest.mark.parametrize(("difference", "refused"), [(2e-6, True), (1e-3, False)])
def test_a_difference_as_small_as_the_noise_of_float32_is_refused(monkeypatch, difference, refused):
    measured = iter([1.0, 1.0 + difference])
    whole = patching.whole_run
    monkeypatch.setattr(patching, "whole_run", lambda *args: (next(measured), whole(*args)[1]))
    with pytest.raises(UsageError, match="with different answers") if refused else nullcontext():
        patching_rows(random_lm("llama"), IDS, OTHER, 6)


@needs_default_model
@pytest.mark.slow
def test_the_default_model_moves_the_country_to_the_last_token():
    lm = default_lm()
    france, italy = (lm.tokenizer.encode(f"The capital of {name} is") for name in ("France", "Italy"))
    paris, rome = (lm.tokenizer.encode(name)[0] for name in (" Paris", " Rome"))
    grid = patching_grid(lm, france, italy, paris, against=rome, layers=[10, 28])
    np.testing.assert_allclose(grid, [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], atol=0.1)
