"""docs/taps.md: the list of all values, their shapes and order, and the cost of tapping."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from models import random_gpt2_weights, random_ids, random_weights, tiny_config, tiny_gpt2_config

import npllm
from npllm.block import original_block
from npllm.cache import empty_cache
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.model import forward, transform

PAGE = (Path(__file__).parent.parent / "docs" / "taps.md").read_text(encoding="utf-8")
TODAY, GPT2 = (
    dict(re.findall(r"^\| `([\w.*]+)` \| ([A-Z ]+) \|", section, re.MULTILINE))
    for section in re.findall(r"^## (?:Modern models|GPT-2)$(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
)
GROUND_FLOOR = sorted(Path(npllm.__file__).parent.glob("*.py"))


def in_order(listed, layers):
    """{name: letters} for a model with this many layers, in the order of the page."""
    of_block = {name.removeprefix("layers.*."): shape for name, shape in listed.items() if name.startswith("layers.*")}
    before = dict(list(listed.items())[: list(listed).index(next(name for name in listed if "*" in name))])
    after = {name: shape for name, shape in listed.items() if "*" not in name and name not in before}
    blocks = {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in of_block.items()}
    return before | blocks | after


def shapes(config, weights, model, batch, past=2, new=3):
    """{name: shape} of the values in a pass over new tokens after cached ones."""
    cache = empty_cache(config, past + new, batch, like=weights.norm)
    model(random_ids(config, *batch, past), weights, config, cache)
    seen = {}
    npllm.forward(random_ids(config, *batch, new), LM(config, weights, None, {}, model), cache, tap=record(seen))
    return {name: value.shape for name, value in seen.items()}


def listed_shapes(listed, config, batch):
    """The same shapes according to the page."""
    sizes = {"T": 3, "S": 5, "D": config.hidden_size, "N": config.num_attention_heads, "H": config.head_dim}
    sizes |= {"K": config.num_key_value_heads, "F": config.intermediate_size, "V": config.vocab_size}
    return {
        name: (*(() if name == "position_embedding" else batch), *(sizes[letter] for letter in letters.split()))
        for name, letters in in_order(listed, config.num_hidden_layers).items()
    }


def test_the_page_has_both_tables():
    assert len(TODAY) == 20
    assert len(GPT2) == 19


@pytest.mark.parametrize("batch", [(), (2,)], ids=["T", "BT"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_a_pass_has_the_values_of_the_page_in_its_order(kv_heads, batch):
    config = tiny_config(num_key_value_heads=kv_heads, num_hidden_layers=3)
    assert len({3, 5, 8, 4, 6, 11}) == 6, "no two letters may have the same size, but for N and H"
    got = shapes(config, random_weights(config), transform, batch)
    expected = listed_shapes(TODAY, config, batch)
    assert list(got) == list(expected)
    assert got == expected


@pytest.mark.parametrize("batch", [(), (2,)], ids=["T", "BT"])
def test_a_pass_of_gpt2_too(batch):
    config = tiny_gpt2_config(n_embd=8, n_head=2, n_inner=6)
    got = shapes(config, random_gpt2_weights(config), gpt2_transform, batch)
    expected = listed_shapes(GPT2, config, batch)
    assert list(got) == list(expected)
    assert got == expected


def test_the_original_block_ends_with_a_norm_of_its_own():
    assert "`post_feedforward_layernorm` [T, D] is its last value" in PAGE
    config = tiny_gpt2_config()
    seen = {}
    weights = random_gpt2_weights(config)
    gpt2_transform(random_ids(config, 3), weights, config, block=original_block, final_norm=False, tap=record(seen))
    of_block = [name.removeprefix("layers.1.") for name in seen if name.startswith("layers.1.")]
    listed = [name.removeprefix("layers.*.") for name in GPT2 if name.startswith("layers.*.")]
    assert of_block == [name for name in listed if name != "input_layernorm"] + ["post_feedforward_layernorm"]
    assert seen["layers.1.post_feedforward_layernorm"].shape == (3, config.hidden_size)


# The cost: calls and nothing else


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_decode_step_calls_the_tap_once_for_each_value(layers):
    config = tiny_config(num_hidden_layers=layers)
    weights, calls = random_weights(config), []

    def counting(name, value):
        calls.append(name)
        return value

    cache = empty_cache(config, 4, like=weights.norm)
    forward(random_ids(config, 3), weights, config, cache)
    forward(random_ids(config, 1), weights, config, cache, tap=counting)
    assert len(calls) == len(set(calls)) == 17 * layers + 3


def functions():
    """Every function of the ground floor that takes a tap."""
    for path in GROUND_FLOOR:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "tap" in {arg.arg for arg in node.args.kwonlyargs}:
                yield pytest.param(node, id=f"{path.stem}.{node.name}")


def is_tap_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tap"


FUNCTIONS = list(functions())


def test_the_functions_with_taps_are_found():
    assert {"block.block", "attention.attention", "model.transform"} <= {parameter.id for parameter in FUNCTIONS}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_array_operation_is_there_for_a_tap_alone(function):
    """The pass uses each tapped value: it is returned, passed on, or in a local that is read afterwards."""
    for statement in ast.walk(function):
        assert not (isinstance(statement, ast.Expr) and is_tap_call(statement.value)), "its value is thrown away"
        if isinstance(statement, ast.Assign) and any(is_tap_call(node) for node in ast.walk(statement.value)):
            targets = {
                node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)
            }
            read = {
                node.id
                for node in ast.walk(function)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.lineno > statement.lineno
            }
            assert targets <= read, f"{targets - read} is never read"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whether_somebody_looks_changes_no_step(function):
    """No branch depends on the tap: the computation is the same with and without one."""
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            assert "tap" not in {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}


def test_every_value_of_the_page_reaches_the_logits_or_is_them():
    config = tiny_config()
    weights, ids = random_weights(config), random_ids(config, 4)
    expected, _ = forward(ids, weights, config)
    for name in in_order(TODAY, 2):
        changed, _ = forward(ids, weights, config, tap=npllm.patch({name: lambda value: value[..., ::-1]}))
        assert np.any(changed != expected), name
