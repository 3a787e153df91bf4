"""Hostile tokenizer files are found before they are used, in one line; good ones are tried once."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_attacks import FAIL, HARMLESS, KILL, SETTINGS, file
from tokenizer_cases import GOLDEN

from npllm.checkpoint import tokenizer_check
from npllm.checkpoint.folder_tokenizer import build, read_files, tokenizer_from_folder
from npllm.checkpoint.tokenizer_check import digest_of, place, remember, remembered
from npllm.errors import ModelFileError, UnavailableError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for a tokenizer.json, and an empty cache beside it."""
    monkeypatch.setenv("NPLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def asked(monkeypatch):
    """The requests to the other process."""
    requests, ask = [], tokenizer_check.Child.ask

    def counted(child, request, seconds):
        requests.append(request)
        return ask(child, request, seconds)

    monkeypatch.setattr(tokenizer_check.Child, "ask", counted)
    return requests


def refused(folder):
    """The message of the refusal: one line that names the file."""
    with pytest.raises(ModelFileError) as error:
        tokenizer_from_folder(folder)
    assert str(folder / "tokenizer.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(folder)) + 400
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WordLevel without its unk", "a merge without its result", "backtracking over x"])
def test_a_tokenizer_that_fails_is_refused(folder, name):
    (folder / "tokenizer.json").write_bytes(FAIL[name])
    assert "expected a tokenizer that works for any text" in refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILL)
def test_a_tokenizer_that_kills_its_process_or_hangs_is_refused(folder, monkeypatch, name):
    monkeypatch.setattr(tokenizer_check, "SECONDS", 1.5)
    (folder / "tokenizer.json").write_bytes(KILL[name])
    assert "expected a tokenizer that works for any text" in refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding and truncation", "an id of 2**32 - 1", "a gap in the ids"])
def test_what_is_odd_and_harmless_passes(folder, name):
    (folder / "tokenizer.json").write_bytes(HARMLESS[name])
    assert tokenizer_from_folder(folder).decode([0]) == "a"


@pytest.mark.parametrize("name", SETTINGS)
def test_odd_settings_are_taken_or_refused_in_one_line(folder, name):
    text, message = SETTINGS[name]
    (folder / "tokenizer.json").write_bytes(file())
    (folder / "tokenizer_config.json").write_bytes(text)
    if message is None:
        backend, _, _ = build(folder, read_files(folder))
        assert backend.encode("abc", add_special_tokens=False).tokens == ["a", "b", "c"]
        return
    with pytest.raises(ModelFileError, match=message) as error:
        build(folder, read_files(folder))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(folder)) + 400


def test_a_good_tokenizer_is_tried_once(folder, asked):
    shutil.copytree(GOLDEN / "tokenizer-bytes", folder, dirs_exist_ok=True)
    for _ in range(2):
        tokenizer_from_folder(folder)
        assert asked == [str(folder)]
    (folder / "tokenizer_config.json").write_text("{}")  # one other byte, and it is tried again
    tokenizer_from_folder(folder)
    assert len(asked) == 2


def test_a_refused_tokenizer_is_not_remembered(folder, asked):
    (folder / "tokenizer.json").write_bytes(FAIL["WordLevel of nothing"])
    for count in (1, 2):
        refused(folder)
        assert len(asked) == count


def test_files_that_change_while_they_are_tried_are_refused(folder, monkeypatch):
    (folder / "tokenizer.json").write_bytes(file())
    monkeypatch.setattr(tokenizer_check.Child, "ask", lambda *_, **__: {"digest": digest_of([b"other"])})
    assert "expected files that do not change" in refused(folder)


def test_without_a_process_there_is_no_tokenizer(folder, monkeypatch):
    (folder / "tokenizer.json").write_bytes(file())
    monkeypatch.setattr(sys, "executable", str(folder / "no-python"))
    with pytest.raises(UnavailableError, match="a Python process for the model's files does not start: "):
        tokenizer_from_folder(folder)


# The memory


def test_each_file_and_its_end_count_in_the_digest():
    digests = {digest_of(files) for files in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"ab", b"c", b""])}
    assert len(digests) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_only_what_this_user_alone_can_write_is_trusted(folder, monkeypatch):
    path = place("0" * 64, folder)
    assert not remembered(path)
    remember(path)
    assert remembered(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o777)
    assert not remembered(path)
    path.parent.chmod(0o700)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert not remembered(path)


@pytest.mark.parametrize("cache", ["", ".", "relative", "model", "model/cache", "../x/model", "~nosuchuser/x"])
def test_a_cache_that_the_model_could_have_written_is_not_used(folder, monkeypatch, cache):
    inside = cache.startswith("model")
    monkeypatch.setenv("NPLLM_CACHE", str(folder.parent / cache) if inside else cache)
    assert place("0" * 64, folder) is None


def test_a_cache_that_is_a_link_into_the_model_is_not_used(folder, tmp_path):
    (tmp_path / "cache").symlink_to(folder)
    assert place("0" * 64, folder) is None


@pytest.mark.parametrize(
    ("system", "variables", "where"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/npllm"),
        ("linux", {"HOME": "/home/a"}, "/home/a/.cache/npllm"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, None),
        ("darwin", {"HOME": "/Users/a"}, "/Users/a/Library/Caches/npllm"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_the_cache_is_where_the_platform_has_its_caches(folder, monkeypatch, system, variables, where):
    for name in ("NPLLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert place("0", folder) == (None if where is None else Path(where) / "tokenizers" / "0")


@pytest.mark.parametrize("kind", ["file", "loop", "full"])
def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch, kind):
    cache = folder.parent / "cache"
    if kind == "file":
        cache.write_text("")
    elif kind == "loop":
        cache.symlink_to(cache)
    else:
        monkeypatch.setattr(Path, "touch", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    path = place("0" * 64, folder)
    remember(path)
    assert not remembered(path)


@pytest.mark.slow
def test_many_processes_at_once(folder):
    shutil.copytree(GOLDEN / "tokenizer-bytes", folder, dirs_exist_ok=True)
    code = (
        "import sys; from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder;"
        "print(tokenizer_from_folder(sys.argv[1]).encode('a'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert len(list((folder.parent / "cache" / "tokenizers").iterdir())) == 1
