"""Sections of the page in a notebook's frame: escaped once, sandboxed, as tall as it says, and nothing is loaded."""

import html
import re

import families
import pytest
from chromium import chromium, in_chromium
from test_page import HOSTILE, data_of, seen_by, tiny_lm

from npllm.errors import UsageError
from npllm.inspect.frame import LONGEST, frame
from npllm.inspect.look import look
from npllm.inspect.page import page


def source_of(shown):
    """The page in the frame, as a browser reads the attribute."""
    attributes = re.fullmatch(r"<iframe ([^<>]*)></iframe><script>.*</script>", shown._repr_html_(), re.DOTALL)[1]
    found = dict(re.findall(r'([a-z]+)="([^"]*)"', attributes))
    assert found["sandbox"] == "allow-scripts"
    return html.unescape(found["srcdoc"])


@pytest.mark.parametrize("text", ["Hello", HOSTILE, "&quot; onload=alert(1) x=&#34;", "שלום \u202e\x1b[31m"])
def test_the_frame_holds_the_page_and_nothing_of_it_leaves_the_attribute(text):
    seen = seen_by(tiny_lm(), text)
    shown = frame(seen, ("tokens", "lens"))
    assert source_of(shown) == shown.html == page(seen, len(seen.ids), "llama", ["tokens", "lens"])
    assert repr(shown) == f"Frame({len(shown.html):,} characters of HTML, which a notebook shows)"


def test_a_long_text_has_fewer_sections_and_one_head_is_enough_for_a_map():
    lm = tiny_lm()
    short, long = (frame(look(lm, [7] * count)) for count in (LONGEST, LONGEST + 1))
    assert {"lens", "attention"} <= data_of(short.html).keys()
    assert "attention" in data_of(long.html)
    assert "lens" not in data_of(long.html)
    one = data_of(frame(look(lm, [7] * 5), head=(1, 2)).html)
    assert "lens" not in one
    assert "attention" in one


def test_maps_that_are_too_large_for_a_notebook_are_refused(monkeypatch):
    monkeypatch.setattr("npllm.inspect.frame.LARGEST", 100)
    seen = look(tiny_lm(), [7] * 9)
    with pytest.raises(UsageError, match="attention: expected at most 100 weights in a notebook, got "):
        frame(seen, ("attention",))
    assert "attention" not in data_of(frame(seen).html)


def test_a_model_that_sees_later_tokens_has_no_page():
    with pytest.raises(UsageError, match="expected a model whose tokens see only earlier ones"):
        frame(look(families.random_lm("bert"), [1, 2, 3]))
    with pytest.raises(UsageError, match=r"^a page needs a model whose tokens see only earlier ones, got bert$"):
        page(look(families.random_lm("bert"), [1, 2, 3]), 3, "bert")


@in_chromium[0]
@in_chromium[1]
@in_chromium[2]
def test_in_a_browser_it_is_as_tall_as_its_page_and_asks_for_nothing(tmp_path):
    outputs = "<hr>".join(frame(seen_by(tiny_lm(), HOSTILE), (name,))._repr_html_() for name in ("tokens", "norms"))
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><title>Notebook</title>{outputs}", encoding="utf-8")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 900, "height": 1600})
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(file.as_uri())
        frames = tab.frames[1:]
        for one in frames:
            one.wait_for_selector("html[data-ready]")
        tab.wait_for_timeout(300)  # for the messages with the heights
        heights = tab.evaluate("[...document.querySelectorAll('iframe')].map((frame) => frame.offsetHeight)")
        inside = [one.evaluate("document.documentElement.offsetHeight") for one in frames]
        assert [abs(a - b) < 3 for a, b in zip(heights, inside, strict=True)] == [True, True]
        outside = "(() => { try { return parent.document.title } catch { return 'no' } })()"
        assert [one.evaluate(outside) for one in frames] == ["no", "no"]
    assert (asked, said) == ([file.as_uri()], [])
