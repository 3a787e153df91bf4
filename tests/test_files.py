"""Files and folders are written completely or not at all, with no temporary files left over."""

import os
from pathlib import Path

import pytest

from npllm.errors import UsageError
from npllm.storage.files import new_file, new_folder, temporary, write_file


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    for parts in ([b"one"], [b"t", memoryview(b"wo")], []):
        write_file(tmp_path / "x", parts)
        assert (tmp_path / "x").read_bytes() == b"".join(parts)
        assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_a_file_that_fails_leaves_the_old_one(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")

    def parts():
        yield b"new"
        raise error

    with pytest.raises(UsageError if isinstance(error, OSError) else error):
        write_file(tmp_path / "x", parts())
    assert left_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_rename_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="x: cannot be written: "):
        write_file(tmp_path / "x", [b"new"])
    assert left_in(tmp_path) == ["x"]


def test_temporary_names_cannot_be_guessed_and_are_not_shared(tmp_path):
    names = {temporary(tmp_path / "x") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith("x.") for name in names)


def test_a_file_that_exists_is_never_written_to(tmp_path, monkeypatch):
    """Nor is the target of a link with that name."""
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "link"):
        with pytest.raises(FileExistsError), new_file(tmp_path / name) as file:
            file.write(b"other")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("on the disk"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append("renamed"), replace(path, to)))
    write_file(tmp_path / "x", [b"new"])
    assert events == ["on the disk", "renamed"]


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    for existing in (False, True):
        place = tmp_path / f"existing {existing}"
        if existing:
            place.mkdir()
        with new_folder(place) as folder:
            (folder / "x").write_text("new")
            assert not existing or left_in(place) == []
        assert left_in(place) == ["x"]
    assert left_in(tmp_path) == ["existing False", "existing True"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error):
    def fill():
        with new_folder(tmp_path / "m") as folder, new_file(folder / "x") as file:
            file.write(b"new")
            raise error

    with pytest.raises(UsageError if isinstance(error, OSError) else error):
        fill()
    assert left_in(tmp_path) == []


def test_a_folder_where_none_can_be_made(tmp_path):
    with pytest.raises(UsageError, match="m: cannot be written: No such file"), new_folder(tmp_path / "no" / "m"):
        pass


def test_permissions_are_those_of_other_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "x", [b""])
        with new_folder(tmp_path / "m"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750
