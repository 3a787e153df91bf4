"""npllm chat: at a terminal, and from a pipe."""

import re
import select
import subprocess
import sys
from contextlib import suppress

import pytest
from checkpoints import write_folder
from command_line import fails, unix

from npllm import load
from npllm.apps.chat import Chat
from npllm.cli import chat


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
