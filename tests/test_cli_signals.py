"""Ctrl-C before a command runs and after it."""

import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from command_line import unix

from npllm.cli import signals


@pytest.fixture
def handler():
    """SIGINT's handler, set back after the test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_ends_the_process_and_then_raises_again(handler):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.at_once()
    assert signal.getsignal(signal.SIGINT) is signals.leave
    signals.as_exception()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ours", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "another"])
def test_another_handler_stays(handler, ours):
    signal.signal(signal.SIGINT, ours)
    signals.at_once()
    signals.as_exception()
    assert signal.getsignal(signal.SIGINT) is ours


@unix
def test_while_modules_are_imported_it_is_quiet():
    code = (
        "import os, signal, sys\nfrom npllm.__main__ import main\n"
        "class Finder:\n    def find_spec(self, name, *_):\n"
        "        if name == 'npllm.cli.tokenize': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\nsys.exit(main(['tokenize', 'a']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.slow
@unix
@pytest.mark.parametrize("milliseconds", range(0, 601, 40))
def test_at_any_time_it_is_quiet_and_130(start, folder, milliseconds):
    """Python itself starts with a traceback and ends by the signal."""
    process = start("generate", "Hello", "-n", "200", "--no-cache", folder=folder)
    with suppress(subprocess.TimeoutExpired):  # on a fast machine it may have ended
        process.wait(milliseconds / 1000 or 1e-3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert b"npllm" not in err or b"init_import_site" in err
    if not err.strip():
        assert process.returncode in (130, -signal.SIGINT, 0)
