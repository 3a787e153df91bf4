"""A conversation in a file: what is written is read, and anything else is one line."""

import json
import os

import pytest
from command_line import unix

from npllm.apps.chat_file import LARGEST, read_chat, write_chat
from npllm.errors import UsageError

MESSAGES = [{"role": "user", "content": "é\n\u202e"}, {"role": "assistant", "content": ""}]


def test_what_is_written_is_read(tmp_path):
    write_chat(tmp_path / "talk.json", MESSAGES, "a model")
    assert read_chat(tmp_path / "talk.json") == (MESSAGES, "a model")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == {
        "model": "a model",
        "messages": MESSAGES,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, got Expecting value"),
        (b"[]", "expected a JSON object, got list"),
        (b"{}", r'expected \{"messages": \[...\]\}, got None'),
        (b'{"messages": {}}', r"got \{\} as the messages"),
        (b'{"messages": ["a"]}', "expected texts under role and content in message 0, got 'a'"),
        (b'{"messages": [{"role": "user"}]}', "in message 0"),
        (b'{"messages": [{"role": "user", "content": 1}]}', "in message 0"),
        (b'{"messages": [{"role": "user", "content": "a", "tools": "b"}]}', "in message 0"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "expected text, got"),
        (b'{"messages": ' + 60 * b"[" + 60 * b"]" + b"}", "levels of JSON"),
        (b"\xff", "expected JSON"),
        (b" " * (LARGEST + 1), "expected at most 1000000 bytes, got more"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_anything_else_is_one_line(tmp_path, content, message):
    (tmp_path / "talk.json").write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        read_chat(tmp_path / "talk.json")
    assert "download" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_file_is_one_line(tmp_path):
    for name, message in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory|Permission denied")):
        with pytest.raises(UsageError, match=f"cannot be read: ({message})"):
            read_chat(name)


@unix
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="expected a file or a folder, got a device, a pipe"):
        read_chat(tmp_path / "pipe")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"expected a name that ends in .json, got .txt"):
        write_chat(tmp_path / "talk.txt", MESSAGES, "")
    assert list(tmp_path.iterdir()) == []
