"""Labelled arrays as HTML: every label is escaped, and a large array stays small."""

import re
from html.parser import HTMLParser

import numpy as np

from npllm.inspect.labelled import labelled

HOSTILE = ["<script>alert(1)</script>", "\"' onload='x", "</td></table>", "שלום", "&amp;"]


class Found(HTMLParser):
    """The elements, their attributes and the text of a fragment."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def html(array, axes, **options):
    return labelled(np.asarray(array), HOSTILE[0], axes, **options)._repr_html_()


def test_hostile_labels_titles_and_words_stay_text():
    square = np.tril(np.full((5, 5), 0.5))
    words = np.array([HOSTILE] * 5, dtype=object)
    numbers = list("01234")
    for text in (
        html(square, {"query": HOSTILE, "key": HOSTILE}, words=words),
        html(square[4], {"token": HOSTILE}, words=words[0]),
        html([square] * 5, {"head": HOSTILE, "query": HOSTILE, "key": HOSTILE}),
        html([[square] * 5] * 5, {"layer": numbers, "head": numbers, "query": HOSTILE, "key": HOSTILE}),
    ):
        found = Found(text)
        assert set(found.tags) <= {
            "figure", "figcaption", "small", "table", "tr", "th", "td", "bdi", "div", "pre"
        }  # fmt: skip
        assert found.attributes <= {"style", "title", "cellpadding", "colspan"}
        assert HOSTILE[0] in "".join(found.text)
        assert "http" not in text


def test_colours_go_with_the_sign_and_the_size():
    def backgrounds(array, **options):
        return re.findall(r"background:#(\w{6})", html([array], {"layer": ["0"], "head": list("0123")}, **options))

    zero, blue, orange, dark = backgrounds([0.0, 1.0, -1.0, 2.0])
    assert (zero, dark) == ("f3f0ea", "0b2f52")
    assert int(blue[4:], 16) > int(blue[:2], 16)
    assert int(orange[4:], 16) < int(orange[:2], 16)
    assert backgrounds([0.0, 0.01, 1.0, np.nan], share=True)[::2] == ["f3f0ea", "0b2f52"]


def test_a_share_that_is_not_there_has_no_percent_sign():
    text = html([np.nan, 0.0, 0.25], {"token": list("abc")}, share=True)
    assert re.findall(r"<td>([^<]*)</td><td style", text) == ["-", "", "25.0 %"]


def test_a_large_array_shows_its_first_and_last_rows():
    labels = [f" t{i}" for i in range(300)]
    text = html(np.full((300, 300), 0.5), {"query": labels, "key": labels}, share=True)
    assert len(text) < 150_000
    assert "32 of 300 shown (query); 32 of 300 shown (key)" in text
    assert "<bdi>␣t0</bdi>" in text
    assert "<bdi>␣t299</bdi>" in text
    bars = html(np.arange(300.0), {"part": labels}, ranked=True)
    assert bars.count("<tr>") == 15
    assert "and 285 smaller ones" in bars
