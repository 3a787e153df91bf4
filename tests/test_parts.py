"""Every value of the pass has a description, a shape and a source line."""

import pytest
from models import (
    random_gpt2_weights,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)

from npllm.families.gpt2 import GPT2_PARTS, gpt2_transform
from npllm.families.llama import PARTS
from npllm.inspect.look import look
from npllm.inspect.parts import PACKAGE, part, source
from npllm.lm import LM

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def tiny_gpt2(**keys) -> LM:
    config = tiny_gpt2_config(**keys)
    return LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_every_value_of_the_pass_is_explained_and_its_line_of_the_source_found(lm):
    for name, shape in look(lm, IDS).shapes.items():
        what = part(lm.config, name)
        assert len(what.shape.split()) == len(shape), name
        path, line = source(what.function, what.line).split(":")
        text = (PACKAGE.parent / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert what.line in text
        if not what.line:
            assert text.startswith(f"def {what.function.__name__}("), name
    assert {f for p in GPT2_PARTS.values() for f in p.figures.split(", ")} <= {f"3-{i}" for i in range(1, 34)}


def test_letters_are_the_sizes_that_the_glossary_says():
    lm = tiny_lm(num_attention_heads=4, num_key_value_heads=2)
    sizes = {"T": 5, "S": 5, "D": 8, "N": 4, "K": 2, "H": 4, "F": 6, "V": 11}
    for name, shape in look(lm, IDS).shapes.items():
        assert tuple(sizes[letter] for letter in part(lm.config, name).shape.split()) == shape, name
    assert PARTS["attention.k"].shape != PARTS["attention.q"].shape
