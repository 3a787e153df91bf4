"""Any path that a user can give ends in an answer or in one line with the right exit code."""

import importlib
import os
import re
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_folder
from command_line import unix

from npllm.checkpoint.load import load
from npllm.checkpoint.write import convert
from npllm.errors import UnavailableError, UsageError
from npllm.inspect.page import write_page
from npllm.inspect.trace import read_trace, write_trace
from npllm.storage.paths import input_path, output_file, output_folder, user_path

# Each place that takes a path: the exit code of one that is refused, and the command.
PLACES = {
    "-m": (3, lambda path: ["generate", "-m", path, "Hello"]),
    "tokenize -m": (3, lambda path: ["tokenize", "-m", path, "Hello"]),
    "--against": (3, lambda path: ["evaluate", __file__, "--against", path]),
    "SRC": (3, lambda path: ["convert", path, "out", "--dtype", "float32"]),
    "DST": (2, lambda path: ["convert", "m", path, "--dtype", "float32"]),
    "-o": (2, lambda path: ["trace", "Hello", "-o", path]),
    "--html": (2, lambda path: ["inspect", "Hello", "--html", path]),
    "A": (2, lambda path: ["compare", path, "m", "--ids", "1,2"]),
    "TEXTFILE": (2, lambda path: ["evaluate", path]),
    "--cache-dir": (2, lambda path: ["generate", "-m", "owner/model", "--offline", "--cache-dir", path, "Hello"]),
}
REFUSED = {
    "a name that is too long": lambda place: str(place / ("x" * 300)),
    "a path that is too long": lambda place: "/" + "x/" * 3000,
    "a loop of links": lambda place: str(place / "loop"),
    "below a loop of links": lambda place: str(place / "loop" / "x.safetensors"),
    "a user who does not exist": lambda place: "~nosuchuser/x",
    "a NUL": lambda place: "a\0b",
    "a socket": lambda place: str(place / "socket"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if os.name != "posix":
        pytest.skip("links, sockets and users as Unix has them")
    folder = tmp_path_factory.mktemp("paths")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.safetensors")
    for command in ("generate", "tokenize", "evaluate", "convert", "trace", "inspect", "compare"):
        importlib.import_module(f"npllm.cli.{command}")  # not later, by a user who may not read it
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as one:
        patch.chdir(folder)  # a socket's path is short
        one.bind("socket")
        yield folder


@contextmanager
def nobody():
    """Run as a user without rights, if this is root, for whom nothing is private."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(done, *codes):
    """Assert that a command was refused in one line, and not by the handler of last resort."""
    assert done.code in codes, done
    assert done.out == ""
    assert re.fullmatch(r"npllm: error: [^\n]+\n", done.err), done.err
    assert "bug of npllm" not in done.err


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("where", PLACES)
def test_what_the_system_refuses_to_look_up_is_one_line(npllm, place, tmp_path, monkeypatch, where, name):
    monkeypatch.chdir(tmp_path)
    code, command = PLACES[where]
    if (where, name) == ("A", "a socket"):
        code = 3  # it could be a model
    refused(npllm(*command(REFUSED[name](place))), code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_the_environment_is_no_exception(npllm, place, monkeypatch, name):
    if "\0" in REFUSED[name](place):
        pytest.skip("no variable can hold it")
    monkeypatch.setenv("NPLLM_MODEL", REFUSED[name](place))
    refused(npllm("generate", "Hello"), 3)
    refused(npllm("convert", "out", "--dtype", "int8"), 3)


@unix
@pytest.mark.parametrize("where", PLACES)
def test_a_private_folder(npllm, tmp_path, monkeypatch, where):
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.chdir(tmp_path)
    private.chmod(0)
    with nobody():
        done = npllm(*PLACES[where][1](str(private / "x")))
    private.chmod(0o700)
    refused(done, 2, 3)  # as root, the folder around it is private too, and is found out first
    assert "Permission denied" in done.err


@unix
@pytest.mark.parametrize("where", PLACES)
def test_a_working_folder_that_is_gone(npllm, tmp_path, monkeypatch, where):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = npllm(*PLACES[where][1]("./x"))
    monkeypatch.chdir(tmp_path)
    refused(done, 2, 3)


@pytest.mark.parametrize("where", PLACES)
def test_a_component_that_is_a_file(npllm, place, where):
    refused(
        npllm(*PLACES[where][1](str(place / "file" / "x"))), 3 if where in ("A", "--cache-dir") else PLACES[where][0]
    )


@pytest.mark.parametrize("where", PLACES)
def test_an_empty_name(npllm, place, where):
    refused(npllm(*PLACES[where][1]("")), 2)


@unix
@pytest.mark.parametrize(
    ("where", "path"),
    [
        (where, path)
        for where in PLACES
        for path in ("pipe", "pipe.safetensors", "/dev/zero", "/dev/null")
        if where not in ("-o", "--html", "TEXTFILE")  # the first two are written, and the last may be a pipe
    ],
)
def test_a_pipe_or_a_device_is_not_read(npllm, place, where, path):
    """Opening the pipe would wait for ever, and reading the device too."""
    code = 2 if where in ("DST", "--cache-dir") or (where, path) == ("A", "pipe.safetensors") else 3
    refused(npllm(*PLACES[where][1](str(place / path))), code)


@unix
def test_a_text_comes_from_a_pipe(npllm):
    read, write = os.pipe()
    os.write(write, b"Hello, you")
    os.close(write)
    done = npllm("evaluate", f"/dev/fd/{read}")
    os.close(read)
    assert done.code == 0
    assert "of 10 tokens scored, 10 bytes" in done.out


@pytest.mark.slow
def test_a_home_folder_is_looked_up_everywhere(npllm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_folder(tmp_path / "m")
    assert npllm("trace", "-m", "~/m", "Hello", "-o", "~/a.safetensors").code == 0
    assert npllm("compare", "~/a.safetensors", "~/m").code == 0
    assert npllm("inspect", "-m", "~/m", "Hello", "--html", "~/page.html").code == 0
    assert npllm("convert", "~/m", "~/n", "--dtype", "float32").code == 0
    (tmp_path / "text").write_text("Hello")
    assert npllm("evaluate", "~/text", "-m", "~/n").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "n", "a.safetensors", "page.html", "text"}


# Python calls

VALUES = {"logits": np.zeros((2, 3), dtype=np.float32)}
CALLS = {
    "load": (UnavailableError, load),
    "convert from": (UnavailableError, lambda path: convert(path, "out", "float32")),
    "convert to": (UsageError, lambda path: convert("m", path, "float32")),
    "write_trace": (UsageError, lambda path: write_trace(path, VALUES, {})),
    "read_trace": (UsageError, read_trace),
    "write_page": (UsageError, lambda path: write_page(path, "")),
}


@pytest.mark.parametrize("name", [*REFUSED, "a lone surrogate"])
@pytest.mark.parametrize("call", CALLS)
def test_python_calls_raise_the_same_errors(place, call, name):
    error, function = CALLS[call]
    path = "\ud800/x" if name == "a lone surrogate" else REFUSED[name](place)
    for kind in (str, Path):
        with pytest.raises(error):
            function(kind(path))


def test_traces_and_pages_take_names(tmp_path):
    write_trace(str(tmp_path / "x"), VALUES, {"ids": "1,2"})
    assert read_trace(str(tmp_path / "x"))[0].keys() == VALUES.keys()
    write_page(str(tmp_path / "page"), "text")
    assert (tmp_path / "page").read_text() == "text"


# The functions


def test_a_path_that_names_nothing_is_no_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no", tmp_path / "file" / "x"):
        assert user_path(str(path), "x") == path
        assert input_path(path, "x") == path


@unix
def test_a_device_is_refused_and_a_pipe_only_where_none_is_expected(place):
    for path in ("/dev/null", "socket"):
        with pytest.raises(UsageError, match="x: expected a file or a folder, got a device, a pipe or a socket"):
            input_path(path, "x", pipes=True)
    assert input_path("pipe", "x", pipes=True) == Path("pipe")
    with pytest.raises(UsageError):
        input_path("pipe", "x")


def test_an_error_names_the_argument_and_has_the_class_asked_for():
    with pytest.raises(UsageError, match="--flag: expected a path, got an empty name"):
        user_path("", "--flag")
    with pytest.raises(UnavailableError, match="model x: expected a path, got one with a NUL"):
        input_path("a\0b", "model x", UnavailableError)


def test_an_output_has_its_links_resolved(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "to nothing").symlink_to("folder/x")
    assert output_file(tmp_path / "link" / "x", "x") == (tmp_path / "folder" / "x").resolve()
    assert output_file(tmp_path / "to nothing", "x") == (tmp_path / "folder" / "x").resolve()
    assert output_folder(tmp_path / "link", "x") == (tmp_path / "folder").resolve()


def test_what_is_write_protected_is_refused_before_anything_is_computed(npllm, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    real = os.access

    def protect(*protected):
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in protected and real(path, mode))

    protect(tmp_path / "file", tmp_path / "empty")
    refused(npllm("trace", "-m", "no/such/model", "Hello", "-o", tmp_path / "file"), 2)
    refused(npllm("convert", "no/such/model", tmp_path / "empty", "--dtype", "int8"), 2)
    protect(tmp_path)
    for name in ("file", "new"):
        refused(npllm("inspect", "-m", "no/such/model", "Hello", "--html", tmp_path / name), 2)
    refused(npllm("convert", "no/such/model", tmp_path / "new", "--dtype", "int8"), 2)
    assert (tmp_path / "file").read_text() == "kept"


@unix
def test_a_disk_is_not_an_output(tmp_path, monkeypatch):
    """Only by its kind: a test must not open one."""
    (tmp_path / "disk").write_text("x")
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(UsageError, match="expected the name of a file, got a folder, a disk or a socket"):
        output_file(tmp_path / "disk", "x")
