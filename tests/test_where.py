"""Where to look, as data and as lines: the numbers of heads.py and attribution.py, in a table that fits."""

import json

import numpy as np
import pytest
from families import random_lm

from npllm.inspect.attribution import attribution, ranked_parts
from npllm.inspect.heads import KINDS, head_scores, labels, ranked
from npllm.inspect.look import look
from npllm.inspect.summary import finite
from npllm.inspect.tables import plain
from npllm.inspect.tokens import columns
from npllm.inspect.where import (
    PARTS,
    attribution_data,
    attribution_lines,
    head_data,
    head_lines,
    patching_data,
    patching_lines,
)

IDS = [3, 1, 4, 1, 5, 9, 2]
LM = random_lm("llama")


def test_heads_as_data_are_the_scores_labels_and_definitions():
    scores = head_scores(LM, look(LM, IDS))
    found = json.loads(json.dumps(finite(head_data(scores)), allow_nan=False))
    assert found["labels"] == labels(scores)
    assert found["kinds"]["induction"]["definition"] == KINDS["induction"].definition
    np.testing.assert_allclose(found["scores"]["same_token"], scores.same_token, rtol=1e-5)


def test_heads_as_lines_show_the_best_of_each_kind_and_a_letter_for_each():
    scores = head_scores(LM, look(LM, IDS))._replace(induction=np.full((4, 4), 0.1))
    scores.induction[2, 3] = 0.9
    text = plain(head_lines(head_data(scores), 80, ".:+#@"))
    assert "induction (1 head, from 40.0 %): In a random text" in text
    assert "2.3 (90.0 %)" in text
    layer, head, _ = ranked(scores, "first_token", 1)[0]
    assert f"{layer}.{head} (" in text
    rows = [line.split()[1:] for line in text.splitlines()[-5:-1]]
    assert text.splitlines()[-1] == "  I: induction, P: previous token, S: same token, F: first token"
    letters = {"": ".", **{kind.label: kind.label[0].upper() for kind in KINDS.values()}}
    assert rows == [[letters[one] for one in row] for row in labels(scores)]


def test_a_text_of_one_token_has_no_scores():
    text = plain(head_lines(head_data(head_scores(LM, look(LM, IDS[:1]))), 80, ".:+#@"))
    assert text.count("none: the text is too short") == 3
    bert = random_lm("bert")
    text = plain(head_lines(head_data(head_scores(bert, look(bert, IDS))), 80, ".:+#@"))
    assert text.count("none: it cannot be measured here") == 1
    assert "too short" not in text


@pytest.mark.parametrize("against", [None, 7])
def test_an_attribution_as_data_has_every_part(against):
    found = attribution(LM, IDS, 6, against=against)
    data = json.loads(json.dumps(attribution_data(LM, found)))
    assert (data["token"], data["against"], data["token_text"]) == (6, against, "#6")
    assert data["against_text"] == (None if against is None else "#7")
    parts = [*np.ravel(data["heads"]), *data["attention_bias"], *data["feedforward"], *data["others"].values()]
    assert sum(parts) == pytest.approx(data["total"])


def test_an_attribution_as_lines_lists_the_largest_parts_and_their_sum():
    found = attribution(LM, IDS, 6, against=7)
    lines = plain(attribution_lines(attribution_data(LM, found), 80, ".:+#@")).splitlines()
    assert lines[0].startswith(f"  '#6' minus '#7': {found.logit:.2f}. The parts sum to it")
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["part", "logit"]) + 1
    for line, (name, value) in zip(lines[start:], ranked_parts(found, PARTS), strict=False):
        assert line.startswith(f"  {name} ")
        assert f" {value:+.2f}" in line
        assert line.rstrip().endswith("@" if value > 0 else ":") or abs(value) < 0.1
    rest = sum(value for _, value in ranked_parts(found)[PARTS:])
    assert lines[start + PARTS].split()[1:] == ["others", f"{rest:+.2f}"]
    assert lines[start + PARTS + 1].split() == ["total", f"{found.total:+.2f}"]
    largest = np.unravel_index(np.abs(found.heads).argmax(), found.heads.shape)
    cells = lines[start + PARTS + 3 + largest[0]][8:]
    assert cells[2 * largest[1] : 2 * largest[1] + 2] == ("-@" if found.heads[largest] < 0 else " @")


@pytest.mark.parametrize("width", [24, 40, 80])
def test_no_line_is_wider_than_the_terminal(width):
    scores = head_data(head_scores(LM, look(LM, IDS)))
    for lines in (
        head_lines(scores, width, ".:+#@"),
        attribution_lines(attribution_data(LM, attribution(LM, IDS, 6)), width, ".:+#@"),
        patching_lines(patching_data(LM, IDS, [*IDS[:4], 7, 8, 2], 6, 7), width, ".:+#@"),
    ):
        assert max(columns(line) for line in plain(lines).splitlines()) <= width


def test_a_grid_of_patching_has_a_row_for_each_layer_from_the_first_difference_on():
    data = {
        "texts": ["Paris", "Rome"],
        "clean": 7.0,
        "other": -6.0,
        "tokens": [["a", "a"], ["France", "Italy"], ["is", "is"]],
        "rows": [[0.0, 1.0, 0.02], [0.0, -0.5, 0.3]],
    }
    assert plain(patching_lines(data, 80, ".:+#@")).splitlines()[-4:] == [
        "  1 'France', there 'Italy'",
        "  layer   1  2",
        "      0   @  .",
        "      1  -.  +",
    ]
