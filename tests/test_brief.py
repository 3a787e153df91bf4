"""What records print: short, and never the weights."""

from types import SimpleNamespace

import families
import numpy as np
import pytest

import npllm
from npllm.apps.generation import Generation
from npllm.families import FAMILIES
from npllm.inspect.funnel import funnel
from npllm.inspect.look import lens, look, norms
from npllm.inspect.structure import LINES, described, structure
from npllm.text.brief import brief


@pytest.mark.parametrize("name", families.NAMES)
def test_a_model_prints_its_structure_and_none_of_its_weights(name):
    lm = families.random_lm(name)
    assert repr(lm) == str(lm) == described(lm)
    assert len(repr(lm).splitlines()) <= LINES
    assert repr(lm).splitlines()[0] == "(model):"
    assert "parameters" in repr(lm)
    assert len(repr(lm.config).splitlines()) <= LINES
    assert repr(lm.config).startswith(f"{type(lm.config).__name__}(family={lm.config.family!r},")
    for weights in (lm.weights, *lm.weights.layers):
        assert len(str(weights)) < 600
        assert "\n" not in str(weights)
        assert "array(" not in str(weights)
    assert FAMILIES[name].block_weights.__repr__(lm.weights.layers[0]) == brief(lm.weights.layers[0])


def test_a_structure_of_many_lines_says_how_many_it_leaves_out():
    lm = families.random_lm("gpt_oss")
    lines, whole = described(lm).splitlines(), structure(lm)
    assert (lines[:22], lines[23:]) == (whole[:22], whole[-17:])
    assert lines[22] == f"      ... {len(whole) - 39} more lines: npllm show"


def test_weights_print_without_their_values():
    """As those of a GPU do, without a copy: of an array, only its shape, dtype and size are asked for."""
    lm = families.random_lm("llama")
    weights = lm.weights._replace(norm=SimpleNamespace(shape=(16,), dtype="float32", nbytes=64))
    assert str(weights) == str(lm.weights)
    assert "(norm): RMSNorm(16" in repr(lm._replace(weights=weights))


def test_packed_weights_and_a_tokenizer_print_what_they_are(folder):
    lm = npllm.load(folder, dtype="int4")
    assert "qkv_proj=int4/32[128, 64]" in str(lm.weights.layers[0])
    assert "int4/32" in repr(lm)
    assert repr(lm.tokenizer) == "Tokenizer(BPE, 270 pieces, end ids [269], chat format)"


def test_the_results_of_the_public_calls_print_on_a_line():
    lm = families.random_lm("llama")
    seen = look(lm, [1, 2, 3])
    assert repr(seen).startswith("Look(lm=LM(...), ids=[1, 2, 3], bytes=[None, None, None], shapes={'embedding': ..., ")
    assert repr(lens(seen, [0], 2)) == "Lens(ids=int64[5, 1, 2], probabilities=float32[5, 1, 2], next=float32[5, 1])"
    assert repr(norms(seen)).startswith("Norms(embedding=float32[3], attention=float32[4, 3], ")
    assert repr(funnel(np.ones(9))[-1]).endswith("logits=float64[9], probabilities=float64[9], left=1)")
    long = Generation("word " * 100, list(range(100)), [7], "length")
    assert "word '... 500 characters in all, ids=[0, 1, 2, 3, 4, ... 100 in all], " in repr(long)
    assert repr(Generation(" Paris", [7], [5, 6], "stop")) == (
        "Generation(text=' Paris', ids=[7], prompt_ids=[5, 6], finish_reason='stop')"
    )
