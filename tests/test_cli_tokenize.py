"""npllm tokenize."""

import ast
import json
from pathlib import Path

import pytest
from checkpoints import TOKENS
from default_model import needs_default_model

from npllm import load


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_tokenize_shows_id_piece_and_text_of_each_token(npllm, lm):
    done = npllm("tokenize", "and the\n12<|end|>")
    ids = lm.tokenizer.encode("and the\n12<|end|>")
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(i), repr(TOKENS[i])] for i in ids]
    assert "".join(ast.literal_eval(line[line.rindex("  ") + 2 :]) for line in lines) == "and the\n12<|end|>"
    assert "'<|end|>'" in done.out, "special tokens are parsed"
    assert (done.code, done.err) == (0, "")
    done = npllm("tokenize", "--json", stdin=b"and the\n12<|end|>\n")
    found = json.loads(done.out)
    assert (found["ids"], found["pieces"]) == (ids, [TOKENS[i] for i in ids])
    assert "".join(found["texts"]) == "and the\n12<|end|>"


def test_a_character_of_several_tokens_is_shown_whole(npllm):
    lines = npllm("tokenize", "é\x1b\u202e\u05d0").out.splitlines()
    assert [line[line.index("'  ") + 3 :].strip() for line in lines] == [
        "1/2 of 'é'", "2/2 of 'é'", "'\\x1b'",
        "1/3 of '\\u202e'", "2/3 of '\\u202e'", "3/3 of '\\u202e'", "1/2 of '\u05d0'", "2/2 of '\u05d0'",
    ]  # fmt: skip
    assert json.loads(npllm("tokenize", "--json", "é!").out)["texts"] == ["", "é", "!"]


def test_a_mark_of_bert_is_no_text(npllm):
    bert = Path(__file__).parent / "golden" / "bert"
    assert json.loads(npllm("tokenize", "--json", "play", "-m", bert).out) == {
        "ids": [2, 37, 59, 48, 72, 3],
        "pieces": ["[CLS]", "p", "##l", "##a", "##y", "[SEP]"],
        "texts": ["[CLS]", "p", "l", "a", "y", "[SEP]"],
    }


def test_an_empty_text_has_no_tokens(npllm):
    assert npllm("tokenize", "") == (0, "", "")
    assert npllm("tokenize", "--json", "").out == '{"ids": [], "pieces": [], "texts": []}\n'


def test_tokenize_needs_no_weights(npllm, tmp_path, folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    assert npllm("tokenize", "Hello", "--model", tmp_path) == npllm("tokenize", "Hello")


@needs_default_model
def test_tokenize_with_the_default_model(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    assert json.loads(npllm("tokenize", "The capital of France is", "--json").out)["ids"] == [504, 3575, 282, 4649, 314]
