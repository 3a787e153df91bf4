"""A signal that ends the process first unwinds the stack, and then ends it as it would have."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from command_line import ROOT, unix

from npllm.storage.ending import SIGNALS, orderly_end

pytestmark = unix

# Child processes print what happened; ours must not die.
BODY = """
import os, signal, sys, threading, time
from npllm.storage.ending import orderly_end
number = getattr(signal, sys.argv[1])
def run():
    with orderly_end():
        with orderly_end():  # one in another, as a file in a folder
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), number)  # a second one does not interrupt the cleaning up
                print("cleaned up", flush=True)
    print("went on", flush=True)
"""


def child(body, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", BODY + body, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
def test_the_stack_is_unwound_and_the_process_dies_of_the_signal(name):
    assert child("run()", name) == (-getattr(signal, name), "cleaned up\n")


@pytest.mark.slow
def test_a_programs_own_handler_stays():
    body = "signal.signal(number, lambda *_: print('theirs', flush=True))\ntime.sleep = lambda _: None\nrun()"
    assert child(body, "SIGTERM") == (0, "theirs\ntheirs\ncleaned up\nwent on\n")


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    body = "signal.signal(number, signal.SIG_IGN)\ntime.sleep = lambda _: None\nrun()"
    assert child(body, "SIGHUP") == (0, "cleaned up\nwent on\n")


@pytest.mark.slow
def test_a_signal_whose_exception_is_lost_ends_the_process_anyway():
    body = """
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), number)
sys.unraisablehook = lambda _: None
with orderly_end():
    Swallows()
    print("went on", flush=True)
print("too far", flush=True)
"""
    assert child(body, "SIGTERM") == (-signal.SIGTERM, "went on\n")


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_the_handlers_are_those_of_before_at_the_end():
    before = handlers()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with orderly_end():
        assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler  # raises KeyboardInterrupt
    assert handlers() == before
    with pytest.raises(KeyError), orderly_end():
        raise KeyError
    assert handlers() == before


def test_another_thread_than_the_main_one_changes_nothing():
    before, seen = handlers(), []

    def run():
        with orderly_end():
            seen.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_ends_the_process_by_its_default_action(monkeypatch):
    raised = []
    monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
    with orderly_end():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not interrupted")
    assert raised == [(signal.SIGTERM, signal.SIG_DFL)]
