"""stdin, stdout and stderr at their edges: what is read, what a terminal gets, and what changes no exit code."""

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import write_folder
from command_line import Done, Stdin, fails, unix

from npllm.checkpoint import gguf_tokenizer
from npllm.cli import options, report
from npllm.cli.main import main
from npllm.errors import UsageError

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


# What is read


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\r\n", "a\nb"),
        (b"\xef\xbb\xbfa\n", "a"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b"a\xef\xbb\xbfb", "a\ufeffb"),
        (b"a\rb\r", "a\rb\r"),
        (b"a\n\n", "a\n"),
        (b"\r\n", ""),
    ],
)
def test_a_file_is_text_without_mark_and_carriage_returns(monkeypatch, data, text):
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    assert options.read_text("-", "PROMPT") == text


def test_the_same_text_has_the_same_tokens_from_windows(npllm):
    assert npllm("tokenize", stdin=b"\xef\xbb\xbfone\r\ntwo\r\n") == npllm("tokenize", stdin=b"one\ntwo")


def test_a_chat_from_windows(npllm):
    mine = npllm("chat", "-n", 2, stdin=b"Hello\n/reset\nHello\n/exit\nmore\n")
    assert npllm("chat", "-n", 2, stdin=b"\xef\xbb\xbfHello\r\n/reset\r\nHello\r\n/exit\r\nmore\r\n") == mine


def test_a_text_from_windows_is_evaluated_alike(npllm, tmp_path):
    (tmp_path / "unix").write_bytes(b"one two\nthree\n")
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbfone two\r\nthree\r\n")
    assert npllm("evaluate", tmp_path / "unix") == npllm("evaluate", tmp_path / "windows")


@pytest.mark.parametrize("command", [["tokenize"], ["chat"], ["generate", "-"], ["evaluate", "-"]], ids=lambda c: c[0])
@unix
def test_a_stdin_that_is_write_only_is_one_line(capsys, monkeypatch, folder, tmp_path, command):
    monkeypatch.setenv("NPLLM_MODEL", str(folder))
    with (tmp_path / "file").open("wb") as file, os.fdopen(file.fileno(), encoding="utf-8", closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = main(command)
    fails(Done(code, *capsys.readouterr()), 2, "stdin: cannot be read: Bad file descriptor")


def test_an_argument_in_a_locale_that_is_ascii(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert options.utf8("PROMPT", b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == "café"
    for wrong in (b"caf\xe9".decode("ascii", "surrogateescape"), "\ud800", "é\ud800"):
        with pytest.raises(UsageError, match="expected UTF-8"):
            options.utf8("PROMPT", wrong)


# What a terminal gets


class Terminal(Stdin):
    """A stdout that is a terminal."""

    def __init__(self):
        super().__init__(b"", terminal=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode()


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal gets for these texts, written one after the other."""

    def shown(*texts: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", Terminal())
            for text in texts:
                report.write(text)
            return sys.stdout.text()

    return shown


CLIPBOARD = "\x1b]52;c;aGk=\x07"


def test_a_sequence_in_pieces_does_not_reach_a_terminal(terminal):
    shown = terminal(*f"a{CLIPBOARD}\x9b2J\r\u202eb\n\tc")
    assert shown == "a\\u001b]52;c;aGk=\\u0007\\u009b2J\\u000d\\u202eb\n\tc"


def test_a_pipe_gets_the_text_as_it_is(capsys):
    report.write(CLIPBOARD)
    assert capsys.readouterr().out == CLIPBOARD


def test_a_name_from_a_file_cannot_begin_a_line(capsys):
    report.write_lines(["labels: good\nPASSED\x1b[31m"])
    assert capsys.readouterr().out == "labels: good\\u000aPASSED\\u001b[31m\n"


def test_json_at_a_terminal_is_the_same_value(terminal):
    value = {"text": f"{CLIPBOARD}\x9b\x7f\u2028é"}
    shown = terminal(json.dumps(value, ensure_ascii=False))
    assert shown.isprintable()
    assert json.loads(shown) == value


# What changes no exit code


@unix
@pytest.mark.slow
@pytest.mark.parametrize(
    "stderr", ["2>/dev/full", "2>&-", "2> >(exec 0<&- 1>&- 2>&-; sleep 5)"], ids=["full", "closed", "gone"]
)
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["generate", "Hello", "-n", "300", "--stats"], 0),
        (["generate", ""], 2),
        (["show", "-m", "./nowhere"], 3),
        (["trace", "Hello", "-o", "x"], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
@full
def test_a_stderr_that_takes_nothing_changes_no_exit_code(start, folder, tmp_path, stderr, argv, code):
    redirected = ["bash", "-c", f'sleep 0.1; exec "$@" {stderr}', "-"]
    process = start(*argv, folder=folder, prefix=redirected, cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"npllm: " not in out, "what is meant for stderr is on stdout"


@unix
@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_stdin_that_does_not_wait_or_is_reset_is_one_line(start, folder, command):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    server = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(server.getsockname())
    ours, _ = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()  # sends RST
    for stdin, message in ((reading, "O_NONBLOCK"), (theirs.fileno(), "stdin: cannot be read: Connection reset")):
        process = start(command, "-n", "2", folder=folder, stdin=stdin)
        out, err = process.communicate(timeout=60)
        fails(Done(process.returncode, out.decode(), err.decode()), 2, message)
    for handle in (reading, writing):
        os.close(handle)
    theirs.close()
    server.close()


@unix
@pytest.mark.slow
@pytest.mark.parametrize(
    "argv", [["generate", "café", "-n", "2"], ["tokenize", "café"], ["generate", "--chat", "é"]], ids=" ".join
)
def test_a_prompt_in_the_c_locale(start, folder, argv):
    expected, _ = start(*argv, folder=folder).communicate(timeout=60)
    ascii_only = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
    process = start(*argv, folder=folder, prefix=ascii_only)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(out.decode("ascii")) == len(expected.decode())


@pytest.mark.slow
def test_numba_writes_no_escape_sequence_at_the_end():
    """colorama would, at a terminal, also with NO_COLOR and TERM=dumb."""
    pytest.importorskip("numba")
    code = "from npllm.__main__ import main; main(['--version']); from numba.core import errors; print(dir(errors))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "NOPColorScheme" in done.stdout
    assert "ColorShell" not in done.stdout


@full
@pytest.mark.slow
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_selftest_checks_its_output_before_it_computes(start, folder, redirect):
    process = start("selftest", folder=folder, prefix=["bash", "-c", f'exec "$@" {redirect}', "-"])
    _, err = process.communicate(timeout=60)
    fails(Done(process.returncode, "", err.decode()), 2, "stdout")


# Names that are not UTF-8, and memory that is not there


@pytest.fixture
def bytes_folder(tmp_path):
    """A model in a folder whose name is not UTF-8."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b")
    write_folder(Path(name))
    return name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are UTF-8")
def test_a_folder_whose_name_is_not_utf8(npllm, bytes_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["tokenize", "a"], ["trace", "a", "-o", f"{bytes_folder}/values"]):
        assert npllm(*argv, "-m", bytes_folder).code == 0
    result = npllm("compare", f"{bytes_folder}/values", f"{bytes_folder}/values")
    assert result.code == 0
    assert "caf\\udce9\\u001b" in result.out
    assert npllm("convert", bytes_folder, f"{bytes_folder}2", "--dtype", "float16").code == 0


@pytest.mark.parametrize("place", ["checkpoint.load.read_weights", "cli.generate.steps"])
def test_a_thread_that_cannot_start_is_exit_code_5(npllm, monkeypatch, place):
    def fail(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(f"npllm.{place}", fail)
    fails(
        npllm("generate", "Hello"),
        5,
        r"can't start new thread: raise the limit of memory \(ulimit -v\) or of processes",
    )


@pytest.mark.parametrize(
    "place",
    [
        "folder_tokenizer.tokenizers",
        "folder_tokenizer.parse_json",
        "load.read_weights",
    ],
)
def test_memory_that_is_not_there_is_not_blamed_on_a_file(npllm, monkeypatch, place):
    def fail(*_, **__):
        raise MemoryError

    # A type of Rust cannot be patched.
    library = SimpleNamespace(Tokenizer=SimpleNamespace(from_buffer=fail))
    monkeypatch.setattr(f"npllm.checkpoint.{place}", library if place.endswith("tokenizers") else fail)
    fails(npllm("generate", "Hello", "--chat", "-n", 2), 5, "an allocation failed")


def test_memory_that_is_not_there_is_not_blamed_on_merges(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(gguf_tokenizer, "gpt2_backend", fail)
    with pytest.raises(MemoryError):
        gguf_tokenizer.tokenizer_from_gguf(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]}
        )
