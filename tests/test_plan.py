"""What each weight is built from: the tensors in the files, found by name and put in order."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_folder
from safetensors.numpy import load_file, save_file

import npllm
from npllm.checkpoint.plan import first_five, spelling_of, stacked
from npllm.storage.stored import Stored

STORED = Stored(Path("model.safetensors"), "any", "F32", (1,), 0)
SPELLINGS = "a.*.gate a.*.up | a.*.up"


@pytest.mark.parametrize(
    ("tensors", "names"),
    [
        (["a.0.gate.weight", "a.0.up.weight"], ["a.*.gate", "a.*.up"]),
        (["a.0.up.weight"], ["a.*.up"]),
        ([], ["a.*.gate", "a.*.up"]),
    ],
)
def test_the_names_are_those_that_the_file_has(tensors, names):
    assert spelling_of(SPELLINGS, dict.fromkeys(tensors, STORED)) == names


def test_of_projections_that_are_incomplete_the_most_complete_is_named():
    assert spelling_of("q k v | qkv", {"q.weight": STORED, "k.weight": STORED}) == ["q", "k", "v"]


def test_parts_lie_one_below_the_other():
    parts = stacked(["q", "k", "v"], "weight", [(8, 3), (4, 3), (4, 3)], [2, 1, 0], 4)
    assert [(part.name, part.first, part.interleaved_heads) for part in parts] == [
        ("q.weight", 0, 2),
        ("k.weight", 8, 1),
        ("v.weight", 12, 0),
    ]


def test_a_head_that_differs_in_its_last_row_only(tmp_path, monkeypatch):
    monkeypatch.setattr("npllm.storage.stored.PIECE", 64)  # one row at a time
    write_folder(tmp_path / "m", "llama", tied=True, tokenizer=False)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1] += 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "m" / "model.safetensors")
    np.testing.assert_array_equal(npllm.load(tmp_path / "m", dtype="float32").weights.lm_head, head)


def test_of_many_names_the_first_five_are_shown():
    assert first_five(list("abcde")) == "a, b, c, d, e"
    assert first_five(list("abcdef")) == "a, b, c, d, e, ..."
