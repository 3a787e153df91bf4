"""npllm tokenize."""

import json

import pytest
from checkpoints import TOKENS
from default_model import needs_default_model

from npllm import load


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_tokenize_shows_id_and_piece_of_each_token(npllm, lm):
    done = npllm("tokenize", "and the\n12<|end|>")
    ids = lm.tokenizer.encode("and the\n12<|end|>")
    assert [line.split() for line in done.out.splitlines()] == [[str(i), repr(TOKENS[i])] for i in ids]
    assert "'<|end|>'" in done.out, "special tokens are parsed"
    assert (done.code, done.err) == (0, "")
    done = npllm("tokenize", "--json", stdin=b"and the\n12<|end|>\n")
    assert json.loads(done.out) == {"ids": ids, "pieces": [TOKENS[i] for i in ids]}


def test_an_empty_text_has_no_tokens(npllm):
    assert npllm("tokenize", "") == (0, "", "")
    assert npllm("tokenize", "--json", "").out == '{"ids": [], "pieces": []}\n'


def test_tokenize_needs_no_weights(npllm, tmp_path, folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    assert npllm("tokenize", "Hello", "--model", tmp_path) == npllm("tokenize", "Hello")


@needs_default_model
def test_tokenize_with_the_default_model(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    assert json.loads(npllm("tokenize", "The capital of France is", "--json").out)["ids"] == [504, 3575, 282, 4649, 314]
