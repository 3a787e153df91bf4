"""JSON objects in files; anything else is refused with a message that names the file."""

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


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b"\xff", b"null"])
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
