"""Tables and lines for a terminal: as wide as it is, and no wider."""

import pytest

from npllm.inspect import tables
from npllm.inspect.tables import NARROW, plain, table, wrapped
from npllm.inspect.tokens import columns

HEAD, ALIGN = ["", "token", "bytes", "share"], "rllr"
ROWS = [["0", "'東京都庁舎展望室'", "e6 9d b1 e4 ba ac", "12.5 %"], ["1", "'a'", "61", "0.001 %"]]


def test_a_table_that_fits_is_as_wide_as_its_cells():
    lines = plain(table(HEAD, ROWS, ALIGN, 100)).splitlines()
    assert lines == [
        "     token               bytes                share",
        "  0  '東京都庁舎展望室'  e6 9d b1 e4 ba ac   12.5 %",
        "  1  'a'                 61                 0.001 %",
    ]


@pytest.mark.parametrize("width", [15, 20, 24, 32, 40, 50, 52, 53])
def test_a_wide_table_shortens_texts_then_leaves_out_columns_and_never_cuts_a_number(width):
    lines = plain(table(HEAD, ROWS, ALIGN, width)).splitlines()
    assert max(columns(line) for line in lines) <= width
    assert "'a'" in lines[2]
    assert "0.001 %" in lines[2] or "share" not in lines[0]
    if width >= 32:
        assert "0.001 %" in lines[2]


def test_a_number_that_does_not_fit_is_left_out():
    lines = table(["text", "number"], [["a text of some length", "123,456,789,012"]], "lr", 20)
    assert plain(lines).splitlines() == ["  text", "  a text of some ..."]


def test_texts_are_not_shortened_below_the_least_width():
    lines = plain(table(HEAD, ROWS, ALIGN, 1)).splitlines()
    assert lines == ["", "  0", "  1"]
    narrow = plain(table(HEAD, ROWS, ALIGN, 14)).splitlines()
    assert columns(narrow[1]) <= 2 + 1 + 2 + NARROW
    assert "..." in narrow[1]


def test_a_wrapped_text_keeps_what_belongs_together():
    lines = plain(wrapped("one two 3\xa0% four", 20)).splitlines()
    assert lines == ["  one two 3 % four"]
    assert plain(wrapped("aaaa bbbb cccc dddd 3\xa0%", 22)).splitlines() == ["  aaaa bbbb cccc dddd", "  3 %"]


def test_colour_needs_a_terminal_and_rich_and_no_objection(monkeypatch):
    class Out:
        def __init__(self, terminal):
            self.isatty = lambda: terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(tables.sys, "stdout", Out(True))
    assert tables.wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not tables.wants_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not tables.wants_colour()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(tables.sys, "stdout", Out(False))
    assert not tables.wants_colour()
    monkeypatch.setattr(tables.sys, "stdout", None)
    assert not tables.wants_colour()
