"""Files and folders are written completely or not at all, with no temporary files left over."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from command_line import unix

from npllm.errors import UsageError
from npllm.storage import files
from npllm.storage.files import locked, new_file, remove_stale, temporary, write_file, write_folder

FULL = OSError(errno.ENOSPC, "No space left on device")


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(path, *names, text="new"):
    """Write a folder with these files."""

    def write(folder):
        for name in names:
            with new_file(folder / name) as file:
                file.write(text.encode())

    write_folder(path, write, last="config.json")


def test_a_file_is_written_and_replaced(tmp_path):
    for parts in ([b"one"], [b"t", memoryview(b"wo")], []):
        write_file(tmp_path / "x", parts)
        assert (tmp_path / "x").read_bytes() == b"".join(parts)
        assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, FULL])
def test_a_file_that_fails_leaves_the_old_one(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")

    def parts():
        yield b"new"
        raise error

    with pytest.raises(UsageError if isinstance(error, OSError) else error):
        write_file(tmp_path / "x", parts())
    assert left_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_rename_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise FULL

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError, match="x: cannot be written: No space left"):
        write_file(tmp_path / "x", [b"new"])
    assert left_in(tmp_path) == []


def test_temporary_names_cannot_be_guessed_and_are_not_shared(tmp_path):
    names = {temporary(tmp_path / "x") for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"x\.[0-9a-f]{16}\.part", name.name) and name.parent == tmp_path for name in names)


@pytest.mark.parametrize("name", ["x" * 250, "x" * 255, "é" * 127, "語" * 85, "." * 200, "a b\n*?[x]"])
def test_a_long_or_odd_name(tmp_path, name):
    """File systems allow 255 bytes; some allow fewer characters, and Windows not all of them."""
    try:
        (tmp_path / name).write_bytes(b"old")
    except OSError:
        pytest.skip("this file system has no such name")
    stale = temporary(tmp_path / name)
    stale.mkdir()
    write_file(tmp_path / name, [b"new"])
    assert (tmp_path / name).read_bytes() == b"new"
    (tmp_path / name).unlink()
    fill(tmp_path / name, "config.json")
    assert left_in(tmp_path) == ([name] if os.name == "posix" else sorted([name, stale.name]))


def test_a_file_that_exists_is_never_written_to(tmp_path):
    """Nor is the target of a link with that name."""
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "link"):
        with pytest.raises(FileExistsError), new_file(tmp_path / name) as file:
            file.write(b"other")
    assert (tmp_path / "mine").read_bytes() == b"mine"


@unix
def test_a_file_and_its_name_are_on_the_disk_in_order(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, Path.replace
    kinds = {True: "the folder", False: "the file"}
    monkeypatch.setattr(
        os, "fsync", lambda file: (events.append(kinds[stat.S_ISDIR(os.fstat(file).st_mode)]), fsync(file))
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append("renamed"), replace(path, to)))
    write_file(tmp_path / "x", [b"new"])
    assert events == ["the file", "renamed", "the folder"]


def test_a_disk_that_loses_bytes_without_an_error_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    fstat = os.fstat

    def short(file):
        return types.SimpleNamespace(st_size=2) if stat.S_ISREG(fstat(file).st_mode) else fstat(file)

    monkeypatch.setattr(os, "fstat", short)
    with pytest.raises(
        UsageError, match="x: cannot be written: expected a file of 3 bytes, got 2; the disk may be full"
    ):
        write_file(tmp_path / "x", [b"new"])
    assert (tmp_path / "x").read_bytes() == b"old"


# Links, modes, owners, pipes and devices


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"old")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("folder/x")
    write_file(tmp_path / "one", [b"new"])
    assert (tmp_path / "folder" / "x").read_bytes() == b"new"
    assert left_in(tmp_path) == ["folder", "one", "two"]
    assert left_in(tmp_path / "folder") == ["x"]
    assert (tmp_path / "one").is_symlink()


def test_another_hard_link_keeps_the_old_content(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "y").hardlink_to(tmp_path / "x")
    write_file(tmp_path / "x", [b"new"])
    assert ((tmp_path / "x").read_bytes(), (tmp_path / "y").read_bytes()) == (b"new", b"old")


@unix
def test_permissions_are_those_of_other_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "x", [b""])
        fill(tmp_path / "m", "y")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"x": 0o640, "m": 0o750, "y": 0o640}


@unix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o200])
def test_the_mode_of_an_old_file_is_kept(tmp_path, mode):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(mode)
    write_file(tmp_path / "x", [b"new"])
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


@unix
def test_set_user_id_is_not_kept(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o4755)
    write_file(tmp_path / "x", [b"new"])
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


@unix
def test_the_owner_of_an_old_file_is_kept_where_this_is_allowed(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    owner = (65534, 65534) if os.geteuid() == 0 else (os.getuid(), os.getgroups()[0])
    os.chown(tmp_path / "x", *owner)
    write_file(tmp_path / "x", [b"new"])
    after = (tmp_path / "x").stat()
    assert (after.st_uid, after.st_gid) == owner


@unix
def test_an_owner_that_cannot_be_kept_is_no_error(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "chown", denied)
    write_file(tmp_path / "x", [b"new"])
    assert (tmp_path / "x").read_bytes() == b"new"


@unix
def test_nobody_else_can_open_what_is_not_complete(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    seen = []

    def parts():
        part = next(path for path in tmp_path.iterdir() if path.name != "x")
        seen.append(stat.S_IMODE(part.stat().st_mode))
        yield b"new"

    before = os.umask(0)
    try:
        write_file(tmp_path / "x", parts())
        write_folder(tmp_path / "m", lambda folder: seen.append(stat.S_IMODE(folder.parent.stat().st_mode)), last="")
    finally:
        os.umask(before)
    assert seen == [0o700, 0o700]


@unix
@pytest.mark.skipif(sys.platform != "linux", reason="knows the numbers of Linux's devices")
def test_a_device_is_written_to_and_not_replaced(tmp_path):
    """Devices of its own: a bug, planted or not, would replace those of the system if root runs this test."""
    null, full = tmp_path / "null", tmp_path / "full"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        null.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, and not on every file system")
    write_file(null, [b"new"])
    assert null.is_char_device()
    with pytest.raises(UsageError, match="full: cannot be written: No space left on device"):
        write_file(full, [b"new"])
    assert full.is_char_device()


@unix
def test_a_pipe_is_written_to(tmp_path):
    read, write = os.pipe()
    write_file(f"/dev/fd/{write}", [b"n", b"ew"])
    assert os.read(read, 10) == b"new"
    os.close(read)
    with pytest.raises(BrokenPipeError):  # ends a command quietly, as `npllm ... | head` does
        write_file(f"/dev/fd/{write}", [b"new"])
    os.close(write)


# A disk that is full


@pytest.mark.skipif(sys.platform != "linux" or os.name != "posix", reason="mounts a small disk as Linux does")
def test_a_disk_that_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a disk")
    try:
        write_file(disk / "x", [b"old"])
        for size in (65_536, 10**6):
            with pytest.raises(UsageError, match="cannot be written: No space left on device"):
                write_file(disk / "x", [bytes(size // 2), bytes(size // 2)])
            with pytest.raises(UsageError, match="cannot be written: No space left on device"):
                fill(disk / "m", "a", "config.json", text="x" * (size // 2))
            assert left_in(disk) == ["x"]
            assert (disk / "x").read_bytes() == b"old"
        write_file(disk / "x", [bytes(50_000)])  # as much as fits beside the old one
        assert (disk / "x").stat().st_size == 50_000
    finally:
        subprocess.run(["umount", disk], check=True)


# Folders


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    def write(folder):
        (folder / "x").write_text("new")
        assert not (tmp_path / "m").exists()

    write_folder(tmp_path / "m", write, last="x")
    assert left_in(tmp_path / "m") == ["x"]
    assert left_in(tmp_path) == ["m"]


def test_an_empty_folder_stays_the_same_one(tmp_path, monkeypatch):
    """It may be the current folder, or a mount point; and its own folder may be write-protected."""
    place = tmp_path / "m"
    place.mkdir(mode=0o750)
    before = place.stat()
    monkeypatch.chdir(place)

    def write(folder):
        for name in ("config.json", "x", "z"):
            (folder / name).write_text("new")
        assert len(left_in(place)) == 1  # the temporary folder

    write_folder(place, write, last="config.json")
    assert left_in(Path()) == ["config.json", "x", "z"]
    after = place.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert left_in(tmp_path) == ["m"]


def test_the_last_file_of_a_folder_comes_last(tmp_path, monkeypatch):
    moved, rename = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: (moved.append(path.name), rename(path, to)))
    (tmp_path / "m").mkdir()
    fill(tmp_path / "m", "a", "config.json", "z")
    assert moved[-1] == "config.json"
    assert sorted(moved[1:]) == ["a", "config.json", "z"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, FULL])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error, exists):
    if exists:
        (tmp_path / "m").mkdir()

    def write(folder):
        with new_file(folder / "x") as file:
            file.write(b"new")
            raise error

    with pytest.raises(UsageError if isinstance(error, OSError) else error):
        write_folder(tmp_path / "m", write, last="x")
    assert [path.name for path in tmp_path.rglob("*")] == ["m"] * exists


def test_files_that_cannot_all_be_moved_are_taken_back(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    moved, rename = [], Path.rename

    def fail(path, to):
        if len(moved) == 3:
            raise FULL
        moved.append(path.name)
        rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UsageError, match="No space left"):
        fill(tmp_path / "m", "a", "b", "config.json")
    assert len(moved) == 3  # the temporary folder and two files
    assert left_in(tmp_path / "m") == []


def test_a_folder_where_none_can_be_made(tmp_path):
    with pytest.raises(UsageError, match="m: cannot be written: No such file"):
        fill(tmp_path / "no" / "m")


# Two writers


def test_of_two_writers_of_a_new_folder_one_is_refused(tmp_path):
    def first(folder):
        (folder / "a").write_text("the first")
        fill(tmp_path / "m", "b", text="the second")

    with pytest.raises(UsageError, match=r"m: cannot be written: (Directory not empty|File exists)"):
        write_folder(tmp_path / "m", first, last="a")
    assert left_in(tmp_path) == ["m"]
    assert left_in(tmp_path / "m") == ["b"]


def test_of_two_writers_of_an_empty_folder_one_is_refused(tmp_path):
    def first(folder):
        (folder / "a").write_text("the first")
        with pytest.raises(
            UsageError, match=r"expected an empty folder, got 'm\.\w+\.part', which appeared in the meantime"
        ):
            fill(tmp_path / "m", "b", text="the second")

    (tmp_path / "m").mkdir()
    write_folder(tmp_path / "m", first, last="a")
    assert left_in(tmp_path / "m") == ["a"]


def test_what_another_program_puts_there_meanwhile_is_kept(tmp_path):
    def write(folder):
        (folder / "a").write_text("ours")
        (tmp_path / "m" / "a").write_text("theirs")

    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError, match="expected an empty folder, got 'a', which appeared in the meantime"):
        write_folder(tmp_path / "m", write, last="a")
    assert left_in(tmp_path / "m") == ["a"]
    assert (tmp_path / "m" / "a").read_text() == "theirs"


@pytest.mark.slow
def test_writers_of_one_file_never_mix(tmp_path):
    """A reader finds one of them, complete, and no writer takes the folder of another one for a stale one."""
    path, refused = tmp_path / "x", []
    path.write_bytes(b"0" * 100_000)

    def write(letter):
        for _ in range(15):
            try:
                write_file(path, [letter * 50_000] * 2)
            except UsageError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=write, args=(bytes([letter]),)) for letter in b"abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        data = path.read_bytes()
        assert data == data[:1] * 100_000
    assert left_in(tmp_path) == ["x"]
    assert refused == []


# What a killed process leaves

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")


@needs_locks
@pytest.mark.parametrize("kind", ["file", "new folder", "empty folder"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, kind):
    """The system has released its lock; see test_convert.py for one that is killed."""
    path = tmp_path / "x"
    if kind == "empty folder":
        path.mkdir()
    stale = temporary(path / "x" if kind == "empty folder" else path)
    (stale / "folder").mkdir(parents=True)
    (stale / "folder" / "model.safetensors").write_text("half")
    if kind == "file":
        write_file(path, [b"new"])
    else:
        fill(path, "config.json")
        assert left_in(path) == ["config.json"]
    assert left_in(tmp_path) == ["x"]


@needs_locks
def test_what_a_living_process_uses_stays(tmp_path):
    part = temporary(tmp_path / "x")
    part.mkdir()
    with locked(part):
        assert remove_stale(tmp_path / "x") == [part]
        write_file(tmp_path / "x", [b"new"])
        assert left_in(tmp_path) == sorted(["x", part.name])
    assert remove_stale(tmp_path / "x") == []
    assert left_in(tmp_path) == ["x"]


@needs_locks
def test_what_only_looks_like_ours_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    hexadecimal = "0123456789abcdef"
    for name in ("x.old.part", "x.1234.part", f"y.{hexadecimal}.part", f"x.{hexadecimal}.part.old", f"x.{hexadecimal}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"x.{hexadecimal}.part").symlink_to("mine")
    (tmp_path / f"x.{hexadecimal[::-1]}.part").write_text("a file")
    before = left_in(tmp_path)
    write_file(tmp_path / "x", [b"new"])
    assert left_in(tmp_path) == sorted([*before, "x"])
    assert (tmp_path / "mine" / "file").read_text() == "mine"


@needs_locks
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """What is left stays, and stops nobody."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    stale = temporary(tmp_path / "x")
    stale.mkdir()
    write_file(tmp_path / "x", [b"new"])
    assert left_in(tmp_path) == sorted(["x", stale.name])
    assert remove_stale(tmp_path / "x") == []


# Ctrl-C anywhere


def interrupted(action, at):
    """Run `action`, with Ctrl-C before the line of that number in files.py or contextlib; whether it came so far."""
    sources, lines = {files.__file__, contextlib.__file__}, itertools.count()

    def step(frame, event, _):
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line" and next(lines) == at:
            signal.raise_signal(signal.SIGINT)
        return step

    before = sys.gettrace()
    try:
        sys.settrace(step)
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "new folder", "empty folder"])
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_and_nothing_else(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it takes most of the time
    path = tmp_path / "x"
    for at in itertools.count():
        if kind == "file":
            path.write_bytes(b"old")
            came = interrupted(lambda: write_file(path, [b"new"]), at)
            assert path.read_bytes() in (b"old", b"new")
            assert left_in(tmp_path) == ["x"]
        else:
            if kind == "empty folder":
                path.mkdir()
            came = interrupted(lambda: fill(path, "a", "config.json"), at)
            after = left_in(path) if path.exists() else []
            assert after in ([], ["a", "config.json"]), at
            assert left_in(tmp_path) in ([], ["x"]), at
            shutil.rmtree(path, ignore_errors=True)
        if not came:
            break
    assert at > 40
