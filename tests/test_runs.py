"""The two sides of a comparison, and how a model is run for one."""

import numpy as np
import pytest
from models import random_ids, random_weights, tiny_config

from npllm.errors import UsageError
from npllm.inspect.compare import compare, first_beyond
from npllm.inspect.runs import Run, Side, check_same_text, chunks, from_file, from_run, only_in, trace_metadata
from npllm.inspect.trace import write_trace
from npllm.lm import LM

CONFIG = tiny_config()

MODEL = LM(CONFIG, random_weights(CONFIG), None, {})

IDS = [int(i) for i in random_ids(CONFIG, 6)]


@pytest.mark.parametrize(
    ("run", "tokens", "expected"),
    [
        (Run(), 5, [4, 1]),
        (Run(), 1, [1]),
        (Run(use_cache=False), 5, None),
        (Run(chunk=2), 5, [2, 2, 1]),
        (Run(chunk=5), 5, [5]),
        (Run(chunk=9), 5, [5]),
        (Run(chunk=1), 3, [1, 1, 1]),
    ],
)
def test_the_passes_of_a_run(run, tokens, expected):
    assert chunks(run, tokens) == expected


@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 3])
def test_all_ways_to_run_agree_position_by_position(window, length):
    config = tiny_config(model_type="mistral", sliding_window=window)
    lm = LM(config, random_weights(config), None, {})
    ways = [Run(), Run(use_cache=False), *(Run(chunk=chunk) for chunk in (1, 2, 5))]
    whole, *others = (from_run(lm, way, IDS[:length]) for way in ways)
    for other in others:
        check_same_text(whole, other)
        rows = compare(whole.values, other.values)
        assert len(rows) == 37
        assert first_beyond(rows) is None


def test_a_bug_in_the_cache_shows_at_the_last_position_and_nowhere_before(monkeypatch):
    """With wrong keys in the cache, only what reads the cache is wrong, starting with the scores."""
    from npllm import block

    append = block.append
    whole = from_run(MODEL, Run(use_cache=False), IDS)
    monkeypatch.setattr(block, "append", lambda cache, layer, k, v: append(cache, layer, k[..., ::-1], v))
    row = first_beyond(compare(whole.values, from_run(MODEL, Run(), IDS).values))
    assert row.name == "layers.0.attention.scores"


def test_a_run_and_a_file_say_what_they_are(tmp_path):
    side = from_run(MODEL, Run("m", "cpu", "bfloat16"), IDS)
    write_trace(tmp_path / "x", side.values, side.metadata)
    again = from_file(tmp_path / "x")
    assert again.ids == side.ids == IDS
    assert again.rounded_to == side.rounded_to == "bfloat16"
    assert again.metadata["model"] == "m"


@pytest.mark.parametrize(
    ("dtype", "device", "rounded"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "float16"),
        ("float32", "cuda:1", "float32"),
        ("float16", "cpu", "float16"),
        ("int8", "cpu", "int8"),
    ],
)
def test_what_the_weights_were_rounded_to(dtype, device, rounded):
    assert Side({}, trace_metadata([1], None, dtype, device)).rounded_to == rounded
    assert Side({}, {}).rounded_to == "float32"


def test_other_ids_and_other_lengths_are_refused():
    def side(ids, result=True):
        return Side({"a": np.zeros((len(ids), 2))}, {"ids": ",".join(map(str, ids))} if result else {})

    check_same_text(side([1, 2]), side([1, 2]))
    check_same_text(side([1, 2]), side([3, 4], result=False))
    with pytest.raises(UsageError, match="same text, got 2 tokens in A and 3 in B"):
        check_same_text(side([1, 2]), side([1, 2, 3]))
    with pytest.raises(UsageError, match="expected the same ids, got 2 in A and 7 in B at token 1"):
        check_same_text(side([1, 2, 3]), side([1, 7, 3]))


def test_names_in_one_side_only_are_listed_and_masks_are_none():
    a = Side({"x": np.zeros(1), "y": np.zeros(1), "z.visible": np.zeros(1)}, {})
    b = Side({"y": np.zeros(1)}, {})
    assert only_in(a, b, "*") == ["x"]
    assert only_in(a, b, "y") == []
    assert only_in(b, a, "*") == []
