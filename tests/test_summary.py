"""The output of npllm inspect as plain data."""

import json
import math
import re

import numpy as np
import pytest
from models import (
    random_weights,
    tiny_config,
)

from npllm.errors import UsageError
from npllm.inspect.lens import likeliest
from npllm.inspect.look import look, norms
from npllm.inspect.summary import DEFAULT, SECTIONS, check_choice, finite, heads_of, named, sections_of, summary
from npllm.lm import LM

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def summary_of(lm: LM, ids=IDS, layer=1, head=2, token=None, top_k=4):
    return summary(look(lm, ids, str(layer)), [(layer, head)], len(ids) - 1 if token is None else token, top_k)


def test_the_json_holds_what_the_text_tells_with_keys_and_types_that_stay():
    seen = look(tiny_lm(), IDS)
    result = summary_of(seen.lm)
    kinds = {key: type(value) for key, value in result.items()}
    assert kinds == {
        "model": dict,
        "not_finite": dict,
        "tokens": list,
        "shapes": dict,
        "token": int,
        "next": list,
        "lens": list,
        "norms": list,
        "layer": int,
        "head": int,
        "attention": list,
        "kv_cache": dict,
        "cost": dict,
    }
    assert [token["id"] for token in result["tokens"]] == IDS
    assert result["tokens"][0] == {"id": 3, "text": None, "bytes": None, "probability": None, "rank": None}
    assert result["shapes"]["layers.1.attention.weights"] == [4, 5, 5]
    assert [token["id"] for token in result["next"]] == likeliest(seen.logits[-1], 4).tolist()
    assert [row["layer"] for row in result["lens"]] == [row["layer"] for row in result["norms"]] == [None, 0, 1]
    np.testing.assert_allclose(result["attention"], seen.values["layers.1.attention.weights"][2])
    assert result["kv_cache"] == {"bytes_per_token": 2 * 2 * 2 * 4 * 4, "bytes": 5 * 2 * 2 * 2 * 4 * 4}
    assert result["cost"]["text"][-1]["part"] == "total"
    assert result["cost"]["next_token"][-1]["cache_bytes"] == result["kv_cache"]["bytes"]
    assert json.loads(json.dumps(finite(result), allow_nan=False))["layer"] == 1


def test_the_token_chosen_is_the_one_looked_at():
    result = summary_of(tiny_lm(), token=2)
    seen = look(tiny_lm(), IDS)
    assert [token["id"] for token in result["next"]] == likeliest(seen.logits[2], 4).tolist()
    assert result["norms"][2]["residual"] == pytest.approx(float(norms(seen).residual[1, 2]))
    assert result["lens"][-1]["likeliest"][0]["id"] == result["next"][0]["id"]


def test_numbers_that_json_has_not_become_none():
    assert finite({"a": [math.nan, -math.inf, 0.1 + 0.2, 3, "x", None]}) == {"a": [None, None, 0.3, 3, "x", None]}


def test_a_token_that_is_no_whole_character_has_bytes_and_no_text():
    assert named(7, b"\xe2\x82") == {"id": 7, "text": None, "bytes": "e282"}
    assert named(7, " é".encode()) == {"id": 7, "text": " é", "bytes": "20c3a9"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"heads": [(0, 1), (2, 0)]}, "--layer: expected 0 to 1 (there are 2 layers), got 2"),
        ({"heads": [(-1, 0)]}, "--layer: expected 0 to 1 (there are 2 layers), got -1"),
        ({"heads": [(1, 4)]}, "--head: expected 0 to 3 (there are 4 heads), got 4"),
        ({"token": 5}, "--token: expected 0 to 4 (there are 5 tokens), got 5"),
        ({"token": -1}, "--token: expected 0 to 4 (there are 5 tokens), got -1"),
        ({"top_k": 0}, "--top-k: expected 1 to 11, the size of the vocabulary, got 0"),
        ({"top_k": 12}, "--top-k: expected 1 to 11, the size of the vocabulary, got 12"),
    ],
)
def test_what_is_not_there_is_refused_with_the_range(choice, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_choice(tiny_lm(), IDS, **({"heads": [(0, 0)], "token": 0, "top_k": 1} | choice))


def test_only_some_sections_are_computed():
    found = summary(look(tiny_lm(), IDS), [(0, 1), (1, 2)], 2, 3, ["lens", "attention"])
    assert list(found) == ["model", "not_finite", "tokens", "shapes", "token", "lens", "maps"]
    whole = summary_of(tiny_lm())
    assert found["maps"][1] == {name: whole[name] for name in ("layer", "head", "attention")}


@pytest.mark.parametrize(
    ("text", "sections"),
    [(None, DEFAULT), ("lens", ("lens",)), ("cost, tokens", ("tokens", "cost")), ("heads,heads", ("heads",))],
)
def test_sections_come_in_the_order_of_the_report(text, sections):
    assert sections_of(text) == sections
    assert {"heads", "attribution", "patching"} == {*SECTIONS} - {*DEFAULT}


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("lense", "got 'lense'; did you mean lens?"),
        ("tokens,attn", "got 'attn'"),
        ("", "got ''"),
        ("atribution", "got 'atribution'; did you mean attribution?"),
    ],
)
def test_an_unknown_section_is_refused_with_the_known_ones(text, end):
    with pytest.raises(UsageError) as error:
        sections_of(text)
    assert str(error.value).startswith(f"--only: expected sections of {', '.join(SECTIONS)}, got ")
    assert end in str(error.value)


@pytest.mark.parametrize(
    ("text", "layer", "heads"),
    [("0", None, [(0, 0)]), ("3", 5, [(5, 3)]), ("3,1", 5, [(5, 3), (5, 1)]), ("5.3, 7.1", None, [(5, 3), (7, 1)])],
)
def test_heads_are_read_from_their_text(text, layer, heads):
    assert heads_of(text, layer) == heads


@pytest.mark.parametrize(("text", "layer"), [("x", None), ("5.3.1", None), ("", None), ("5.3", 2), ("1;2", None)])
def test_a_text_that_names_no_head_is_refused(text, layer):
    with pytest.raises(UsageError, match=r"--head: expected N, or without --layer L.N, or several as 5.3,7.1, got "):
        heads_of(text, layer)


@pytest.mark.parametrize("ids", [[], [11], list(range(10)) * 7])
def test_ids_that_no_pass_can_take_are_refused(ids):
    with pytest.raises(UsageError, match=r"prompt is empty|expected an id from 0 to 10|prompt is too long"):
        look(tiny_lm(), ids)
