"""Every family: its record describes its pass correctly, and every part of npllm works with it."""

import pickle
import re
import sys
from pathlib import Path

import families
import numpy as np
import pytest
from counting import counted_flops
from libraries import Library
from tolerance import assert_close

import npllm
from npllm.cache import empty_cache
from npllm.cuda.fit import why_not
from npllm.devices.device import to_host
from npllm.families import FAMILIES, family_of
from npllm.flash import flash_attention
from npllm.inspect.cost import costs, total
from npllm.inspect.lens import logit_lens
from npllm.inspect.look import look, norms
from npllm.inspect.parts import part, source
from npllm.inspect.record import record
from npllm.inspect.structure import structure

IDS = np.random.default_rng(1).integers(0, 23, 9)
PAGE = (Path(__file__).parent.parent / "docs" / "taps.md").read_text(encoding="utf-8")
each_family = pytest.mark.parametrize("name", families.NAMES)


def values_of(lm, ids=IDS, **options):
    seen = {}
    npllm.forward(ids, lm, tap=record(seen), **options)
    return seen


@each_family
def test_it_has_a_tiny_model_here(name):
    assert name in families.KEYS, "add the keys that show what is special about it to tests/families.py"


@each_family
def test_the_record_is_whole(name):
    family, config = FAMILIES[name], families.random_lm(name).config
    shapes = family.shapes(config)
    fields = families.weight_names(family)
    in_blocks = {ours for ours in shapes if "*" in family.names[ours]}
    assert in_blocks == fields
    assert {*family.biases(config)} <= shapes.keys()
    assert {*family.transposed} <= shapes.keys()
    assert {field for _, field in family.structure(config, 0) if field} == fields, "npllm show has all weights"
    assert fields <= {
        name
        for work in family.work(config, 0, families.random_lm(name).weights.layers[0], 1, 1)
        for name in work.weights
    }


@each_family
def test_a_pass_in_chunks_and_by_tiles_is_the_whole_pass(name):
    lm = families.random_lm(name)
    expected, _ = npllm.forward(IDS, lm)
    assert_close("flash", npllm.forward(IDS, lm, attention=flash_attention)[0], expected)
    assert_close("batch", npllm.forward(np.stack([IDS, IDS[::-1]]), lm)[0][0], expected)
    for size in () if lm.config.bidirectional else (1, 4):  # what sees later tokens has no cache
        cache, rows = empty_cache(lm.config, len(IDS), like=lm.weights.norm), []
        for start in range(0, len(IDS), size):
            rows.append(npllm.forward(IDS[start : start + size], lm, cache, total_length=len(IDS))[0])
        assert_close(f"chunks of {size}", np.concatenate(rows), expected)


@each_family
def test_it_is_the_same_on_every_library(name, lib: Library):
    lm = families.random_lm(name)
    expected, _ = npllm.forward(IDS, lm)
    got, _ = npllm.forward(lib.array(IDS), lm._replace(weights=lib.tree(lm.weights)))
    assert_close("logits", to_host(got), expected)


def changes(weight):
    """A weight of a block, larger; of experts first the one weight of all of them, then the next."""
    if not isinstance(weight, tuple):
        yield 1.5 * weight
        return
    for field, inside in weight[0]._asdict().items():
        if inside is not None:
            yield tuple(expert._replace(**{field: 1.5 * getattr(expert, field)}) for expert in weight)


@each_family
def test_every_weight_counts(name):
    """No weight is loaded but ignored."""
    lm = families.random_lm(name)
    expected, _ = npllm.forward(IDS, lm)
    layer = lm.weights.layers[2]
    for field, weight in layer._asdict().items():
        if weight is not None:
            for change in changes(weight):
                layers = (*lm.weights.layers[:2], layer._replace(**{field: change}), lm.weights.layers[3])
                got, _ = npllm.forward(IDS, lm._replace(weights=lm.weights._replace(layers=layers)))
                assert np.any(got != expected), field


@each_family
def test_every_value_is_explained_traced_and_on_the_page(name):
    lm = families.random_lm(name)
    family, seen = family_of(lm.config), values_of(lm)
    computed = {re.sub(r"^layers\.\d+\.", "", value) for value in seen}
    assert computed == family.parts.keys()
    sizes = {"T": len(IDS), "S": len(IDS), "D": lm.config.hidden_size, "H": lm.config.head_dim}
    sizes |= {"N": lm.config.num_attention_heads, "K": lm.config.num_key_value_heads}
    sizes |= {"F": lm.config.intermediate_size, "V": lm.config.vocab_size}
    sizes |= {"E": getattr(lm.config, "num_experts", 0), "A": getattr(lm.config, "num_experts_per_tok", 0)}
    for value, array in seen.items():
        what = part(lm.config, value)
        assert array.shape == tuple(sizes[letter] for letter in what.shape.split()), value
        assert source(what.function, what.line).startswith("npllm/")
        assert f"`{re.sub(r'^layers[.][0-9]+[.]', 'layers.*.', value)}`" in PAGE, f"docs/taps.md lacks {value}"
    by_attention = ("_rotated", ".scores", ".weights", ".mixed")  # wrapped by tools/hf_trace.py
    traced = {value.removeprefix("layers.*.") for value in family.traced}
    assert "transformers" not in family.checked or traced == {
        value for value in computed if not value.endswith(by_attention)
    }


def halved(array):
    """Half of each element; of experts' numbers, the next lower one."""
    return 0.5 * array if array.dtype.kind == "f" else np.maximum(array - 1, 0)


@each_family
def test_every_value_can_be_patched(name):
    lm = families.random_lm(name)
    expected, _ = npllm.forward(IDS, lm)
    for value in values_of(lm):
        changed, _ = npllm.forward(IDS, lm, tap=npllm.patch({value: halved}))
        assert np.any(changed != expected), value


@each_family
def test_the_values_that_are_added_make_the_residual_stream(name):
    lm = families.random_lm(name)
    seen, family = values_of(lm), family_of(lm.config)
    attention, feedforward = family.added
    middle, end = family.stream  # normalized in BERT, which adds to them all the same
    for layer in range(1, 4):
        before = seen[f"layers.{layer - 1}.{end}"]
        sums = [seen[f"layers.{layer}.residual_after_{part}"] for part in ("attention", "feedforward")]
        assert_close("attention", before + seen[f"layers.{layer}.{attention}"], sums[0])
        between = seen[f"layers.{layer}.{middle}"]
        assert_close("feedforward", between + seen[f"layers.{layer}.{feedforward}"], sums[1])
    looked = look(lm, IDS.tolist())
    assert norms(looked).attention.shape == (4, len(IDS))
    last = seen[f"layers.3.{end}"]
    np.testing.assert_array_equal(logit_lens(last, lm), seen["logits"])


@each_family
def test_the_arithmetic_is_what_a_counting_run_counts(name):
    lm = families.random_lm(name)
    counted = counted_flops(lm, IDS)
    assert total(costs(lm.config, lm.weights, len(IDS))).flops == counted


@each_family
def test_it_can_be_shown_and_pickled(name):
    lm = families.random_lm(name)
    text = "\n".join(structure(lm))
    assert f"{lm.config.family}: " in text
    again = pickle.loads(pickle.dumps(lm))
    np.testing.assert_array_equal(npllm.forward(IDS, again)[0], npllm.forward(IDS, lm)[0])


@each_family
def test_kernels_take_part_only_in_the_chapters_pass(name):
    lm = families.random_lm(name)
    plain = lm.transform is npllm.model.transform
    assert (why_not(lm) is None) == plain or lm.config.hidden_size % 4


@each_family
def test_a_family_is_one_file_that_can_be_read(name):
    file = Path(sys.modules[FAMILIES[name].read_config.__module__].__file__)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert file.parent.name == "families"
    assert len(lines) <= 320
