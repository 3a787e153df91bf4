"""npllm fill."""

import json

import pytest
from test_golden import GOLDEN

import npllm
from npllm.cli.main import main

MODEL = ["-m", str(GOLDEN / "bert")]


def test_fill_prints_probability_token_and_text(capsys):
    assert main(["fill", "Paris is the [MASK] of France", "--top-k", "2", *MODEL]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "   18.9 %  in                paris is the in of france",
        "   8.98 %  it                paris is the it of france",
    ]
    assert err == ""


def test_fill_prints_each_mask_under_its_place(capsys):
    assert main(["fill", "The [MASK] of [MASK]", "--pair", "It is [MASK].", "--top-k", "1", *MODEL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["token 2:", "token 4:", "token 8:"]


def test_fill_prints_json(capsys):
    assert main(["fill", "The [MASK] of [MASK]", "--json", *MODEL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [mask["position"] for mask in found["masks"]] == [2, 4]
    answers = npllm.fill(npllm.load(GOLDEN / "bert"), "The [MASK] of [MASK]")
    assert [mask["answers"] for mask in found["masks"]] == answers
    assert [found["ids"][mask["position"]] for mask in found["masks"]] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Paris is", *MODEL], 2, "the text has no [MASK]: expected one where a token is to be filled in\n"),
        (["Paris <mask>", *MODEL], 2, "to be filled in, written [MASK]"),
        (["Paris", "--pair", "[mask]", *MODEL], 2, "to be filled in, written [MASK]"),
        (["Paris", "[MASK]", *MODEL], 2, 'expected one TEXT, got 2; quote them: "Paris [MASK]"; see'),
        (
            ["a [MASK]"],
            2,
            "--model: expected a masked language model, such as google-bert/bert-base-uncased, got the def",
        ),
        (["a [MASK]", "--top-k", "0", *MODEL], 2, "--top-k: expected 1 to 74, got 0"),
        (["a [MASK]", "-m", str(GOLDEN / "gpt2")], 2, "expected a masked language model"),
        (["a [MASK]", "-m", "/nothing/there"], 3, "there is nothing of that name"),
    ],
)
def test_fill_refuses_in_one_line(capsys, arguments, code, message):
    assert main(["fill", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
