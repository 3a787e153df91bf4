"""The history of a chat: kept for its owner alone, harmless when it is damaged, and off when that is asked for."""

import pytest
from command_line import unix

from npllm.cli.history import LARGEST, MOST, add, history_file, line_editing, turns
from npllm.errors import UsageError


def test_what_was_added_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "history"
    for turn in ("one", 'two\nlines\t"', "é\u202e"):
        add(path, turn)
    assert [*turns(path)] == ["one", 'two\nlines\t"', "é\u202e"]


@unix
def test_only_its_owner_can_read_it(tmp_path):
    add(tmp_path / "new" / "history", "a secret")
    assert (tmp_path / "new" / "history").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_damaged_lines_are_skipped(tmp_path):
    path = tmp_path / "history"
    path.write_bytes(b'"good"\n"cut\n\xff\n3\n"\\u0000"\n' + 9999 * b"[" + b'\n\n"\\ud800"\n"too"\n')
    assert [*turns(path)] == ["good", "?", "too"]
    assert [*turns(tmp_path)] == [*turns(tmp_path / "none")] == [*turns(None)] == []


def test_a_long_history_keeps_its_end(tmp_path):
    path = tmp_path / "history"
    path.write_bytes(b'"old"\n' * (LARGEST // 6 + 1))
    path.chmod(0o600)
    add(path, "new")
    read = [*turns(path)]
    assert (len(read), read[-1]) == (MOST, "new")
    assert path.stat().st_size == 6 * MOST
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_it_is_and_how_to_turn_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("NPLLM_CACHE", str(tmp_path))
    monkeypatch.delenv("NPLLM_HISTORY", raising=False)
    assert history_file() == tmp_path / "chat_history"
    monkeypatch.setenv("NPLLM_HISTORY", str(tmp_path / "mine"))
    assert history_file() == tmp_path / "mine"
    monkeypatch.setenv("NPLLM_HISTORY", "")
    assert history_file() is None
    add(None, "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_read(npllm, tmp_path, monkeypatch):
    monkeypatch.setenv("NPLLM_HISTORY", str(tmp_path / "no" / "history"))
    with pytest.raises(UsageError, match=r"NPLLM_HISTORY .*: expected an existing folder"):
        line_editing()
    assert npllm("chat", "-n", 1, stdin=b"Hello\n").code == 0, "a pipe has no history"


def test_a_disk_that_is_full_is_no_error(tmp_path):
    add(tmp_path, "a folder cannot be written")
