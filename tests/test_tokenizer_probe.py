"""Tokenizers that raise or panic are recognized; what is odd and harmless passes."""

import pytest
from tokenizer_attacks import FAIL, HARMLESS, file

from npllm.checkpoint.folder_tokenizer import build, read_files
from npllm.checkpoint.tokenizer_check import digest_of
from npllm.checkpoint.tokenizer_probe import answer, strings
from npllm.tokenizer import Tokenizer


def quick(names):
    """The names, with the slow ones marked."""
    slow = ("backtracking", "an added token of a million")
    return [pytest.param(name, marks=pytest.mark.slow) if name.startswith(slow) else name for name in names]


@pytest.mark.parametrize("name", quick(FAIL))
def test_a_tokenizer_that_fails_is_recognized(tmp_path, name):
    (tmp_path / "tokenizer.json").write_bytes(FAIL[name])
    assert {"refused", "fails"} & set(answer(str(tmp_path)))


@pytest.mark.parametrize("name", quick(HARMLESS))
def test_what_is_odd_and_harmless_has_no_effect(tmp_path, name):
    (tmp_path / "tokenizer.json").write_bytes(HARMLESS[name])
    tokenizer = Tokenizer(build(tmp_path, read_files(tmp_path))[0])
    assert tokenizer.pieces(tokenizer.encode("abc")) == ["a", "b", "c"]


def test_the_answer_is_the_digest_of_what_was_read(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(file())
    assert answer(str(tmp_path)) == {"digest": digest_of([file(), b"{}", b"{}"])}


def test_all_strings_of_a_rule_are_found():
    assert list(strings({"a": "b", "c": [{"d": "e"}, 7, None, ["f"]]})) == ["b", "e", "f"]
