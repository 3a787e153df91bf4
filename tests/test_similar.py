"""What a mistyped name may have meant."""

import doctest

import pytest

from npllm.text import similar as module
from npllm.text.similar import hint, similar

COMMANDS = ["generate", "chat", "tokenize", "evaluate", "trace"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("generat", "generate"),
        ("Genrate", "generate"),
        ("TRACE", "trace"),
        ("tokenise", "tokenize"),
        ("eval", "evaluate"),
    ],
)
def test_a_mistyped_name(word, meant):
    assert similar(word, COMMANDS) == [meant]
    assert hint(word, COMMANDS) == f"; did you mean {meant}?"


def test_an_abbreviation_comes_first():
    assert similar("--all", ["--tall", "--all-of-them"]) == ["--all-of-them"]


@pytest.mark.parametrize("word", ["", "-", "--", "g", "hello"])
def test_nothing_like_it(word):
    assert similar(word, COMMANDS) == []
    assert hint(word, COMMANDS) == ""


def test_the_examples():
    assert doctest.testmod(module).failed == 0
