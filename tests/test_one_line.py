"""A text as one short line without control characters, as every error and warning is."""

import pickle
import unicodedata
from time import perf_counter

import pytest

from npllm import errors
from npllm.text.one_line import escaped, one_line

OBEYED = [
    *map(chr, (*range(32), *range(0x7F, 0xA0))),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ud800\udcff",
]
PLAIN = [
    "",
    "é",
    "한국어",
    "שלום",
    "العربية",
    "👩\u200d👩\u200d👧",
    "नमस्\u200cते",
    "a\\u001b",
    "  two  spaces  ",
    "x" * 500,
]
CLASSES = [errors.UsageError, errors.UnavailableError, errors.ModelFileError, errors.NotEnoughMemoryError]


@pytest.mark.parametrize("character", OBEYED, ids=lambda c: f"U+{ord(c):04X}")
def test_every_character_that_a_terminal_obeys_is_escaped(character):
    assert escaped(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert escaped(character, keep=character) == character
    assert one_line(f"a{character}b") == ("a b" if character in "\r\n" else f"a\\u{ord(character):04x}b")


@pytest.mark.slow
def test_no_character_of_unicode_that_a_terminal_obeys_is_left_out():
    orders = {"S", "B", "LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    every = map(chr, range(0x110000))
    obeyed = [c for c in every if unicodedata.category(c) in kinds or unicodedata.bidirectional(c) in orders]
    assert [c for c in obeyed if escaped(c) == c] == []


@pytest.mark.parametrize("text", PLAIN)
def test_any_other_text_stays(text):
    assert one_line(text) == text


def test_line_breaks_become_spaces_and_a_second_time_changes_nothing():
    assert one_line("one\r\n\r\ntwo\nthree") == "one two three"
    once = one_line("\x1b]52;c;\n" * 1000)
    assert one_line(once) == once


@pytest.mark.parametrize("body", ["x", "\x1b", "\n", "é\u202e", "\udcff"], ids=ascii)
@pytest.mark.parametrize("most", [60, 500])
def test_a_long_text_keeps_its_beginning_and_its_end(body, most):
    line = one_line(f"model.safetensors: got {body * 1000}; download it again", most)
    assert line.startswith("model.safetensors: got ")
    assert line.endswith("again")
    assert len(line) == (most if body != "\n" else len(line)) <= most


def test_6_million_characters_take_no_time():
    text = "\x1b[31m\n" * 1_000_000
    started = perf_counter()
    assert len(one_line(text)) == 500
    assert perf_counter() - started < 0.2


@pytest.mark.parametrize("kind", CLASSES)
def test_the_message_of_every_error_is_one_line(kind):
    error = kind("a\n\x1b[31m" + "x" * 1000)
    assert str(error).startswith("a \\u001b[31mx")
    assert len(str(error)) == 500
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
