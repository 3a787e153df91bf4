"""The log-probabilities of new tokens on the command line."""

import json
import math

import pytest
from command_line import fails

from npllm.apps.calls import generate
from npllm.checkpoint.load import load
from npllm.cli.logprobs import records, write_table
from npllm.inspect.tokens import token_bytes
from npllm.loop import Step


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_json_has_a_record_for_each_token(npllm, lm):
    result = json.loads(npllm("generate", "Hello", "-n", 3, "--json", "--logprobs", 2).out)
    made = generate(lm, "Hello", max_new_tokens=3, top_logprobs=2)
    assert [record["id"] for record in result["logprobs"]] == result["ids"] == made.ids
    assert [record["logprob"] for record in result["logprobs"]] == made.logprobs
    for record, step in zip(result["logprobs"], made.top_logprobs, strict=True):
        assert [(one["id"], one["logprob"]) for one in record["top_logprobs"]] == step
        assert bytes(record["bytes"]) == token_bytes(lm.tokenizer, [record["id"]])[0]
    assert "logprobs" not in json.loads(npllm("generate", "Hello", "-n", 3, "--json").out)


def test_the_table_goes_to_stderr_after_the_text(npllm, lm):
    done = npllm("generate", "Hello", "-n", 3, "--logprobs", 1)
    assert done.out == npllm("generate", "Hello", "-n", 3).out
    head, *lines = done.err.splitlines()
    assert head.split() == ["logprob", "share", "token", "likeliest"]
    logprobs = generate(lm, "Hello", max_new_tokens=3, top_logprobs=0).logprobs
    assert [line.split()[:2] for line in lines] == [[f"{x:.3f}", f"{math.exp(x):.1%}"] for x in logprobs]
    head, *lines = npllm("generate", "Hello", "-n", 3, "--logprobs", 0).err.splitlines()
    assert "likeliest" not in head
    assert len(lines) == 3


def test_a_token_cannot_move_the_cursor_and_half_a_character_is_shown_as_bytes(lm, capsys):
    of_each = token_bytes(lm.tokenizer, range(256))
    ids = [of_each.index(b"\x1b"), of_each.index(b"\xc3")]
    steps = [Step(ids[0], "", None, -0.5, [(ids[1], -1.0)])]
    write_table(lm.tokenizer, steps)
    line = capsys.readouterr().err.splitlines()[1]
    assert line.split() == ["-0.500", "60.7%", '"\\x1b"', '"\\xc3"', "-1.00"]
    [record] = records(lm.tokenizer, steps)
    assert (record["token"], record["bytes"]) == ("\x1b", [27])
    assert record["top_logprobs"][0]["token"] == "\ufffd"


@pytest.mark.parametrize("value", ["-1", "two"])
def test_a_number_below_zero_or_none_is_refused(npllm, value):
    fails(npllm("generate", "Hello", "--logprobs", value), 2, "--logprobs: (expected 0 or more|invalid int value)")
