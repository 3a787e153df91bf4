"""The lines of an input: text as it is, and what is no text as an error of its own record."""

import datetime
import json

import pytest

from npllm.corpus import source as module
from npllm.corpus.records import Bad, parsed
from npllm.corpus.source import Source, opened
from npllm.errors import UsageError


def lines_of(path, data):
    path.write_bytes(data)
    return list(Source(path, path.suffix).lines())


def prompts(path, data):
    found = [parsed(line) for line in lines_of(path, data)]
    return [one if isinstance(one, Bad) else (one["id"], one["prompt"]) for one in found]


def test_a_text_file_has_a_prompt_in_each_line_that_is_not_blank(tmp_path):
    data = "a\r\n\n \t\n b \r\rc\u2028d\n\nö".encode()
    assert prompts(tmp_path / "a.txt", data) == [(1, "a"), (4, " b \r\rc\u2028d"), (6, "ö")]


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    assert prompts(tmp_path / "a.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n") == [(1, "a"), (2, "\ufeffb")]
    assert prompts(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\n') == [(1, "a")]


def test_a_line_that_is_not_utf8_is_an_error_of_its_own(tmp_path):
    first, second, third = prompts(tmp_path / "a.txt", b"a\nb\xfc\xfd\nc")
    assert (first, third) == ((1, "a"), (3, "c"))
    assert second == Bad(2, 2, "expected UTF-8, got the byte 0xfc at byte 1")
    [found] = prompts(tmp_path / "a.jsonl", b'{"prompt": "\xfc"}')
    assert found.error.startswith("the record: expected JSON, got 'utf-8' codec can't decode byte 0xfc")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_line_that_is_too_long_is_read_in_parts_and_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(module, "LARGEST_JSON", 20)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"a" * 100 + b'"}\n{"prompt": "c"}\n')
    numbers = [(line.number, line.error) for line in Source(path, suffix).lines()]
    assert numbers == [(1, ""), (2, "expected at most 20 bytes in a line, got more"), (3, "")]
    assert parsed(list(Source(path, suffix).lines())[1]).id is None


def test_a_fingerprint_is_that_of_the_content(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    (tmp_path / "b.txt").write_bytes(b"{}\n")
    (tmp_path / "c.jsonl").write_bytes(b"{}\n\n")
    found = []
    for name in ("a.jsonl", "b.txt", "c.jsonl"):
        with opened(str(tmp_path / name)) as source:
            found.append(source.fingerprint)
    assert found[0] == found[1] != found[2]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    with (
        pytest.raises(UsageError, match=r"expected a \.jsonl, \.ndjson, \.txt or \.parquet file, or - for stdin"),
        opened(str(tmp_path / "a.csv")),
    ):
        pass


# Parquet


def rows_of(path, rows):
    pyarrow, parquet = (
        pytest.importorskip("pyarrow", reason="pip install pyarrow"),
        pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow"),
    )
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, path)
    return [parsed(line) for line in Source(path, ".parquet").lines()]


def test_values_that_json_lacks_are_text():
    assert [module.as_text(value) for value in ("ö".encode(), datetime.date(2026, 11, 30))] == ["ö", "2026-11-30"]
    with pytest.raises(UnicodeDecodeError):
        module.as_text(b"\xff")


@pytest.mark.extra
def test_a_column_of_bytes_is_text_in_utf8_and_else_an_error(tmp_path):
    first, second = rows_of(tmp_path / "a.parquet", [{"prompt": "ö".encode()}, {"prompt": b"\xff"}])
    assert first == {"prompt": "ö", "id": 1}
    assert second == Bad(2, None, "expected UTF-8 in binary columns, got other bytes")


@pytest.mark.extra
def test_missing_values_are_null_as_in_json(tmp_path):
    found = rows_of(tmp_path / "a.parquet", [{"prompt": "a", "id": 2.0, "max_new_tokens": 5.0}, {"prompt": "b"}])
    assert found == [
        {"prompt": "a", "id": 2, "max_new_tokens": 5.0},
        {"prompt": "b", "id": 2, "max_new_tokens": None},
    ]


@pytest.mark.extra
def test_nan_in_a_column_is_an_error_of_its_row(tmp_path):
    first, second = rows_of(tmp_path / "a.parquet", [{"prompt": "a", "x": float("nan")}, {"prompt": "b", "x": 1.0}])
    assert "expected finite numbers" in first.error
    assert second["x"] == 1.0


@pytest.mark.extra
def test_dates_and_nested_columns_are_copied(tmp_path):
    day = datetime.date(2026, 11, 30)
    row = {"messages": [{"role": "user", "content": "a"}], "day": day, "of": {"a": [1, None]}}
    [found] = rows_of(tmp_path / "a.parquet", [row])
    assert found == json.loads(json.dumps(row, default=str)) | {"id": 1}
