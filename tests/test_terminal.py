"""The output of npllm inspect as text for a terminal."""

import json
import math
import re

import numpy as np
import pytest
from checkpoints import byte_tokenizer
from models import (
    random_weights,
    tiny_config,
)

from npllm.inspect.heatmap import SHADES, window
from npllm.inspect.look import look
from npllm.inspect.summary import finite, summary
from npllm.inspect.tables import amount, coloured, percent, plain
from npllm.inspect.terminal import report
from npllm.inspect.tokens import columns
from npllm.lm import LM

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def named_lm(**keys) -> LM:
    """A tiny model with the tests' byte-level tokenizer."""
    config = tiny_config(vocab_size=len(byte_tokenizer()), **keys)
    return LM(config, random_weights(config), byte_tokenizer(), {})


def summary_of(lm: LM, ids=IDS, layer=1, head=2, token=None, top_k=4):
    return summary(look(lm, ids, str(layer)), [(layer, head)], len(ids) - 1 if token is None else token, top_k)


def text_of(lm: LM, width=100, ascii_only=False, **choice) -> str:
    return plain(report(summary_of(lm, **choice), lm, width, ascii_only=ascii_only))


def test_the_text_has_every_section_and_number():
    lm = named_lm()
    text = text_of(lm, ids=lm.tokenizer.encode("a#b!"))
    for title in [
        "Tokens",
        "Shapes along the pass",
        "Next token, after token 3 '!'",
        "Logit lens: what each block would predict after token 3 '!'",
        "Attention, layer 1, head 2",
        "Norms of vectors, at token 3 '!'",
        "KV cache",
        "Cost",
    ]:
        assert f"\n{title}" in text
    assert re.search(r"1 +\d+ +'#' +23 +[\d.e-]+ % +\d+\n", text)
    assert "2 blocks, each:" in text
    assert re.search(r"attention\.k +\[2, 4, 4\] +K T H +npllm/attention\.py:\d+\n", text)
    assert "128 bytes per token" in text


def test_a_prompt_of_one_token():
    lm = named_lm()
    text = text_of(lm, ids=[40])
    assert re.search(r"\n +0 +'[^']+' +██ +100 % on 0 ", text)
    assert "\n  0  40  '" in text


def test_nothing_in_a_text_can_command_the_terminal():
    lm = named_lm()
    hostile = "\x1b[31m\x07\x9b2J\u202eabc\r"
    result = summary_of(lm, ids=lm.tokenizer.encode(hostile))
    for lines in (report(result, lm, 60), report(result, lm, 60, ascii_only=True)):
        assert all(line.isprintable() for line in plain(lines).split("\n"))
    assert r"'\x1b'" in plain(report(result, lm, 60))
    styled = re.sub(r"\x1b\[[\d;]*m", "", coloured(report(result, lm, 60, colour=True)))
    assert all(line.isprintable() for line in styled.split("\n"))


def test_an_ascii_terminal_gets_ascii():
    lm = named_lm()
    assert not set(text_of(lm, ids=[40, 41, 42], ascii_only=True)) & set(SHADES.replace("·", ""))


def test_a_long_text_shows_a_part_of_the_map_that_fits():
    lm = named_lm(max_position_embeddings=128)
    ids = [40 + i % 50 for i in range(100)]
    text = text_of(lm, width=80, ids=ids, token=60)
    part_of_it = text[text.index("Attention, layer") : text.index("Norms of vectors")]
    assert "the first token and those up to 60, of 100; --token selects others" in part_of_it
    rows = re.findall(r"^ +(\d+)  '", part_of_it, flags=re.MULTILINE)
    assert [int(row) for row in rows] == list(window(100, 60, (80 - 56) // 2))
    assert max(map(len, part_of_it.splitlines())) <= 80


def test_nan_is_shown_and_counted():
    lm = tiny_lm()
    block = lm.weights.layers[1]
    broken = block._replace(down_proj=block.down_proj.copy())
    broken.down_proj[3, :] = np.nan
    lm = lm._replace(weights=lm.weights._replace(layers=(lm.weights.layers[0], broken)))
    result = summary_of(lm)
    assert result["not_finite"]["layers.1.feedforward.output"] == 5
    assert next(iter(result["not_finite"])) == "layers.1.feedforward.output"
    text = plain(report(result, lm, 100))
    assert "not finite: layers.1.feedforward.output: 5 of 40 elements are NaN or infinite" in text
    assert re.search(r"  1 +#\d+ +NaN", text)
    assert json.dumps(finite(result), allow_nan=False)


def test_nan_in_the_attention_is_shown_as_such():
    lm = tiny_lm()
    block = lm.weights.layers[0]
    broken = block._replace(qkv_proj=np.full_like(block.qkv_proj, np.nan))
    lm = lm._replace(weights=lm.weights._replace(layers=(broken, lm.weights.layers[1])))
    result = summary_of(lm, layer=0, head=0)
    text = plain(report(result, lm, 100))
    assert "??????????" in text
    assert re.search(r"and \d+ more values after these", text)


def test_colour_adds_nothing_but_colour(monkeypatch):
    pytest.importorskip("rich", reason="rich is not installed: pip install -e '.[inspect]'")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lm = tiny_lm()
    result = summary_of(lm)
    lines = report(result, lm, 100, colour=True)
    styled = coloured(lines)
    assert "\x1b[1mTokens" in styled
    assert "48;2;" in styled  # a background for the heat map
    without = re.sub(r"\x1b\[[\d;]*m", "", styled)
    assert [line.rstrip() for line in without.split("\n")] == plain(lines).split("\n")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.45, "45.0 %"), (0.0123456, "1.23 %"), (0.0, "0 %"), (1e-9, "<0.0001 %"), (math.nan, "NaN")],
)
def test_shares_have_three_digits(share, text):
    assert percent(share) == text


def test_large_numbers_are_written_for_people():
    assert [amount(n) for n in (0, 12, 1348, 1_350_000_000)] == ["0", "12", "1.35 k", "1.35 G"]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    lm = named_lm()
    text = text_of(lm, width=width, ids=lm.tokenizer.encode("a#b!é東"))
    assert max(columns(line) for line in text.splitlines()) <= max(width, 56)  # a map and its labels
    rest = text[: text.index("Attention, layer")] + text[text.index("Norms of vectors") :]
    assert max(columns(line) for line in rest.splitlines()) <= max(width, 50)  # norms
    lens = re.findall(r"^ +(?:embedding|\d+) .*", rest[rest.index("Logit lens") : rest.index("Norms of")], re.MULTILINE)
    assert len(lens) == 3
    assert all(line.endswith(" %") for line in lens)
