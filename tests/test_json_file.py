"""JSON objects in files; anything else is refused with a message that names the file."""

import math

import pytest

from npllm.errors import ModelFileError
from npllm.storage import json_file
from npllm.storage.json_file import json_text, parse_json, read_json


def test_what_is_written_is_read_again(tmp_path):
    keys = {"name": "Grüße", "list": [1, 2.5, None]}
    (tmp_path / "x.json").write_text(json_text(keys), encoding="utf-8")
    assert read_json(tmp_path / "x.json") == keys
    assert json_text(keys).endswith("}\n")
    assert "Grüße" in json_text(keys)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"null", b"NaN", b"\xef\xbb\xbf"),
        *(b'{"a" 1}', b"{'a': 1}", b'{"a": 01}', b'{"a": +1}', b'{"a": .5}', b'{"a": 1.}', b'{"a": 1,}', b'{"a": \0}'),
        *(b'{"a": "\n"}', b'{"a": "\\x"}', b'{"a": "\\u12"}', b'{"a": tru}', b"{} {}", b"{1: 2}", b"{}\0"),
        *('{"a": 1}'.encode(one) for one in ("utf-16", "utf-16-le", "utf-32")),
        b'{"a": "\xed\xa0\x80"}',  # a surrogate in UTF-8
    ],
)
def test_what_is_not_an_object_is_refused(tmp_path, text):
    with pytest.raises(ModelFileError, match=r"x\.json: expected "):
        parse_json(text, tmp_path / "x.json")


def test_a_file_that_is_missing_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(ModelFileError, match="expected this file, there is none"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}" + 100 * " ")
    monkeypatch.setattr(json_file, "LARGEST_JSON", 100)
    with pytest.raises(ModelFileError, match="expected at most 100 bytes of JSON, got 102"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"\xef\xbb\xbf" + b'{"a": 1}', 1),  # as Windows's editor writes
        (b' {"a": 1}\r\n', 1),
        (b'{"a": 1, "a": 2}', 2),  # as in transformers
        (b'{"a": NaN}', pytest.approx(math.nan, nan_ok=True)),
        (b'{"a": -Infinity}', -math.inf),
        (b'{"a": 1e999}', math.inf),
        (b'{"a": 1' + b"0" * 4000 + b"}", 10**4000),
        (b'{"a": 0.' + b"1" * 100_000 + b"}", 1 / 9),
        (rb'{"a": "\ud83d\ude00"}', "\U0001f600"),
        (rb'{"a": "\\ud83d"}', r"\ud83d"),
        (b'{"a": ' + b"[" * 49 + b"]" * 49 + b"}", ...),
    ],
)
def test_what_is_read_as_python_reads_it(tmp_path, text, value):
    found = parse_json(text, tmp_path / "x.json")["a"]
    assert value is ... or found == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": ' + b"1" * 5000 + b"}", "expected JSON, got Exceeds the limit (4300 digits) for integer string"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "expected at most 50 levels of JSON, got more"),
        (b'{"a": ' * 51 + b"1" + b"}" * 51, "expected at most 50 levels of JSON, got more"),
        (rb'{"a": "x\ud800"}', r"expected text, got '\ud800', which is no character"),
        (rb'{"\uDFFF": 1}', r"expected text, got '\udfff', which is no character"),
        (rb'{"a": "\ud83d \ude00"}', r"expected text, got '\ud83d', which is no character"),
    ],
)
def test_the_reason_is_in_the_message(tmp_path, text, message):
    with pytest.raises(ModelFileError) as refused:
        parse_json(text, tmp_path / "x.json")
    assert message in str(refused.value)
    assert ";" not in str(refused.value).removesuffix("; download the file again")


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        (b"a" * 100, 400),  # the bytes, and the characters three times
        ("é".encode() * 50, 1300),  # the characters may take 4 bytes each
        (b"\\u00e9".ljust(100), 1300),
        (b"{", 4 + 128),
        (b":", 4 + 100),
        (b"[", 4 + 120),
        (b",", 4 + 64),
        (b'"', 4 + 40),
    ],
)
def test_the_memory_for_a_text_is_bounded(tmp_path, monkeypatch, text, cost):
    spare = cost - 4 * len(text)
    monkeypatch.setattr(json_file, "SPARE", spare)
    json_file.check_cost(text, tmp_path / "x.json")
    monkeypatch.setattr(json_file, "SPARE", spare - 1)
    with pytest.raises(ModelFileError, match=rf"x\.json: expected JSON that takes at most {cost - 1} bytes of memory"):
        json_file.check_cost(text, tmp_path / "x.json")
