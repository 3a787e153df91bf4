"""npllm chat: at a terminal, and from a pipe."""

import inspect
import json
import re
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from checkpoints import write_folder
from command_line import Stdin, fails, unix

from npllm import load
from npllm.apps.chat import Chat
from npllm.cli import chat, chat_commands, turns


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A model that can generate for several seconds."""
    path = tmp_path_factory.mktemp("models") / "talkative"
    write_folder(path, max_position_embeddings=8192)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_chat_answers_each_line_of_a_pipe_and_prints_nothing_else(npllm, lm):
    talk = Chat(lm, "Be brief.")
    expected = ["".join(step.text for step in talk.reply(line, max_new_tokens=10)) for line in ("Hello", " And? ")]
    done = npllm("chat", "--system", "Be brief.", "-n", 10, stdin=b"Hello\n\n And? \n/exit\nnever said\n")
    assert done.out == "".join(text + "\n" for text in expected)
    assert done.code == 0
    assert done.err == 2 * "npllm: the reply was cut off after 10 tokens; -n raises the limit\n"


def test_reset_begins_a_new_conversation(npllm):
    first, again = (
        npllm("chat", "-n", 10, stdin=b"Hello\n/reset\nHello").out,
        npllm("chat", "-n", 10, stdin=b"Hello\n").out,
    )
    assert first == 2 * again


def test_every_turn_draws_anew_and_a_seed_gives_the_same_conversation(npllm):
    def say(*flags):
        return npllm("chat", "-n", 20, "--temperature", 1.5, *flags, stdin=b"Hello\n/reset\nHello\n").out

    assert say("--seed", 1) == say("--seed", 1) != say("--seed", 2)
    monologue = say()
    assert monologue != monologue[: len(monologue) // 2] * 2


def test_in_a_pipe_a_full_context_ends_the_chat(npllm):
    done = npllm("chat", stdin=b"x" * 300 + b"\nHello\n")
    assert done.out == ""
    fails(done, 2, "the conversation is too long: .* /reset begins a new one")


def test_at_a_terminal_an_error_leaves_the_conversation_open(npllm):
    done = npllm("chat", "-n", 3, stdin=b"x" * 300 + b"\n\xff\nHello\n", terminal=True)
    assert done.code == 0
    assert "npllm: error: the conversation is too long" in done.err
    assert "npllm: error: stdin: expected UTF-8 text, got the byte 0xff" in done.err
    assert done.out == npllm("chat", "-n", 3, stdin=b"Hello\n").out


def test_the_end_of_the_context_is_told(npllm):
    done = npllm("chat", stdin=b"x" * 220 + b"\n")
    assert done.err == "npllm: the model's context is full; /reset begins a new conversation\n"


def test_in_a_pipe_an_interrupt_ends_the_chat(npllm, monkeypatch):
    def answer(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "answer", answer)
    assert npllm("chat", stdin=b"one\ntwo\n").code == 130


def said(npllm, *turns, **how):
    """What a chat prints for these lines."""
    done = npllm("chat", "-n", 8, stdin="\n".join(turns).encode(), **how)
    assert done.code == 0, done
    return done.out.splitlines()


def test_undo_and_retry_leave_what_a_new_conversation_would_say(npllm):
    expected = said(npllm, "Hello", "And then?")
    assert said(npllm, "Hello", "one", "/undo", "And then?")[::2] == expected
    assert said(npllm, "Hello", "/retry", "And then?") == [expected[0], *expected]
    assert "npllm: removed the turn 'one'" in npllm("chat", "-n", 1, stdin=b"one\n/undo").err


def test_a_retry_draws_another_reply_and_a_seed_gives_the_same_one(npllm):
    def say(retries):
        lines = b"Hello\n" + retries * b"/retry\n"
        return npllm("chat", "-n", 20, "--temperature", 1.5, "--seed", 3, stdin=lines).out

    first, two, three = (say(retries) for retries in range(3))
    assert three.startswith(two)
    assert two.startswith(first)
    assert len({first, two.removeprefix(first), three.removeprefix(two)}) == 3


def test_a_system_message_is_shown_set_and_removed(npllm):
    expected = said(npllm, "/system Be brief.", "Hello")
    assert expected == npllm("chat", "--system", "Be brief.", "-n", 8, stdin=b"Hello").out.splitlines()
    done = npllm("chat", "--system", "two\nlines", stdin=b'/system\n/system ""\n/system')
    assert done.err == (
        "two\nlines\nnpllm: the system message is removed; the conversation goes on\n"
        "npllm: there is no system message\n"
    )


def test_what_is_saved_goes_on_after_it_is_loaded(npllm, tmp_path):
    file = f"{tmp_path}/my talk.json"
    whole = said(npllm, "Hello", f"/save {file}", "And then?", f"/save {file}")
    assert (
        said(npllm, "Hello", f"/save {tmp_path}/first.json", "/reset", f"/load {tmp_path}/first.json", "And then?")
        == whole
    )
    assert len(json.loads(Path(file).read_text())["messages"]) == 4
    done = npllm("chat", stdin=f'/load "{file}"\n'.encode())
    assert done.err == f"npllm: read 2 turns from {file}; the last turn is 'And then?'\n"


def test_save_replaces_no_file_of_another_conversation(npllm, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text("mine")
    fails(npllm("chat", stdin=f"/save {file}\n".encode()), 2, "already exists; choose another name, or")
    assert file.read_text() == "mine"
    file.unlink()
    done = npllm("chat", stdin=f"/save {file}\n/reset\n/save {file}\n".encode())
    assert done.code == 2, "after /reset, it holds another conversation"


def test_a_file_that_is_no_conversation_leaves_the_conversation_as_it_was(npllm, tmp_path):
    (tmp_path / "bad.json").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    lines = f"Hello\n/load {tmp_path}/bad.json\n/load {tmp_path}/none\nAnd then?\n".encode()
    done = npllm("chat", "-n", 8, stdin=lines, terminal=True)
    assert done.out.splitlines() == said(npllm, "Hello", "And then?")
    assert "expected a reply to each turn" in done.err
    assert "No such file" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", r"there is no /rest; did you mean /reset\? /help lists the commands, and //rest sends it as text"),
        ("/xyz", "there is no /xyz; /help lists"),
        ("/", "there is no /; /help lists"),
        ("/exit now", "/exit: expected nothing after it, got 'now'"),
        ("/quit now", "/quit: expected nothing after it, got 'now'"),
        ("/save", "/save: expected the name of a file, as in /save talk.json"),
        ("/save talk.txt", "expected a name that ends in .json, got .txt"),
        ("/save no/talk.json", "expected an existing folder"),
        ("/undo", "there is no turn yet"),
        ("/retry", "there is no turn yet"),
        ('"""never\nends', 'expected """ at the end of a text that begins with it, got the end'),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line(npllm, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    fails(npllm("chat", stdin=line.encode()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_command(npllm):
    done = npllm("chat", stdin=b"/help\n")
    listed = re.findall(r"^  (/\w+)", done.err, flags=re.MULTILINE)
    assert (done.code, done.out, [*listed, "/quit"]) == (0, "", chat_commands.NAMES)
    assert all(f'case "{name}"' in inspect.getsource(chat_commands.obey) for name in listed if name != "/exit")


@pytest.mark.parametrize(
    ("typed", "turn"),
    [
        (b"Hello\r\n", ("", "Hello")),
        (b" /reset\n", ("", " /reset")),
        (b"/reset \r\n", ("/reset", "")),
        (b"/load  my talk.json\n", ("/load", "my talk.json")),
        (b"//etc/passwd\n", ("", "/etc/passwd")),
        (b"// a comment\n", ("", "// a comment")),
        (b'"""\r\none\r\n\r\n  two\r\n"""\r\nmore', ("", "one\n\n  two")),
        (b'"""/reset"""\n', ("", "/reset")),
        (b'"""one\n/reset"""  \n', ("", "one\n/reset")),
        (b'""""""\n', ("", "")),
        (b'"""\n"""\n', ("", "")),
        (b'say """this"""\n', ("", 'say """this"""')),
        (b"", None),
    ],
)
def test_a_turn_is_a_line_a_command_or_a_text_of_several_lines(monkeypatch, typed, turn):
    monkeypatch.setattr(sys, "stdin", Stdin(typed))
    assert turns.read_turn(False, lambda _: None) == turn


def test_ctrl_c_discards_a_text_of_several_lines(monkeypatch, capsys):
    lines = iter(['"""one', KeyboardInterrupt(), "Hello"])

    def read_line(*_):
        line = next(lines)
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr(turns, "read_line", read_line)
    assert [turns.read_turn(True, lambda _: None) for _ in range(2)] == [("", ""), ("", "Hello")]


@unix
@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_the_reply_and_at_the_prompt_it_leaves(start, talkative):
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    process = start(
        "chat",
        "-n",
        "8000",
        folder=talkative,
        prefix=[sys.executable, "-c", terminal],
        stdin=subprocess.PIPE,
        bufsize=0,
    )
    shown = b""

    def wait_for(pattern: bytes) -> None:
        nonlocal shown
        while not re.search(pattern, shown):
            assert select.select([process.stdout], [], [], 60)[0], f"no {pattern!r} in {shown!r}"
            more = process.stdout.read(1000)
            assert more, f"no {pattern!r} in {shown!r}"
            shown += more

    wait_for(rb"> ")
    process.stdin.write(b"Hello\n")
    wait_for(rb"(?s)Hello\r\n.*.{20}")
    process.stdin.write(b"\x03")
    wait_for(rb"(?s)Hello.*\n(\x1b\[\?2004h)?> \Z")
    while process.poll() is None:  # repeatedly: between printing the prompt and reading, readline ignores the signal
        with suppress(BrokenPipeError):
            process.stdin.write(b"\x03")
        with suppress(subprocess.TimeoutExpired):  # not too soon: a second signal would kill Python while it exits
            process.wait(5)
    assert process.returncode == 130
    assert b"Traceback" not in shown


@unix
@pytest.mark.slow
def test_at_a_terminal_lines_are_pasted_and_kept(start, folder, tmp_path):
    if "libedit" in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("libedit does not mark what is pasted")
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    kept, file = tmp_path / "history", tmp_path / "talk.json"
    variables = ["env", f"NPLLM_HISTORY={kept}", "TERM=xterm", "INPUTRC=/dev/null"]
    for keys in (
        [b"\x1b[200~one\ntwo\x1b[201~\r", b'"""a\r', b'/b"""\r', b"/rest\r", f"/save {file}\r".encode(), b"/exit\r"],
        [b"\x1b[A\x1b[A\x1b[A\r", "\u00e9\r".encode(), f"/save {file}2.json\r".encode(), b"\x04"],
    ):
        variables.append("LC_ALL=C")
        prefix = [*variables, sys.executable, "-c", terminal]
        process = start("chat", "-n", "1", folder=folder, prefix=prefix, stdin=subprocess.PIPE, bufsize=0)
        shown = b""
        for key in keys:
            while not re.search(rb"(> |\.\.\. )\Z", shown):
                assert select.select([process.stdout], [], [], 60)[0], shown
                more = process.stdout.read(1000)
                assert more, shown
                shown += more
            process.stdin.write(key)
            shown += b"typed"
        shown += process.communicate(timeout=60)[0]
        assert process.returncode == 0
        assert b"there is no /rest; did you mean /reset?" in shown
    assert [message["content"] for message in json.loads(file.read_text())["messages"]][::2] == ["one\ntwo", "a\n/b"]
    assert json.loads(Path(f"{file}2.json").read_text(encoding="utf-8"))["messages"][0]["content"] == "\u00e9"
    typed = [json.loads(line) for line in kept.read_text().splitlines()]
    assert typed == [
        "one\ntwo",
        '"""a\n/b"""',
        "/rest",
        f"/save {file}",
        "/exit",
        "/rest",
        "\u00e9",
        f"/save {file}2.json",
    ]
    assert kept.stat().st_mode & 0o777 == 0o600
