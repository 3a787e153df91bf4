"""Ctrl-C before a command runs and after it."""

import os
import random
import re
import signal
import subprocess
import sys
import time

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


@unix
def test_the_handler_is_set_before_anything_that_takes_time_is_imported():
    code = (
        "import sys; before = {*sys.modules}; import npllm.__main__ as npllm\n"
        "print(*sorted({*sys.modules} - before - {*sys.stdlib_module_names}))\n"
        "print(*({'enum', 're', 'signal', 'pathlib'} & {*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, text=True)
    ours, theirs = done.stdout.splitlines()
    assert ours.split() == ["npllm", "npllm.__main__", "npllm.cli", "npllm.cli.signals", "npllm.version"]
    assert theirs == ""


@pytest.mark.slow
@unix
@pytest.mark.parametrize("argv", [["generate", "Hello", "-n", "200", "--no-cache"], ["chat"]], ids=" ".join)
def test_at_any_moment_it_is_quiet_and_130(folder, argv):
    """From npllm's first line on: before it, Python itself ends with a traceback, or by the signal."""
    code = (
        "from npllm.cli.signals import at_once; at_once(); print(); import sys, npllm.__main__ as m; sys.exit(m.main())"
    )
    environment = os.environ | {"NPLLM_MODEL": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    moments = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-uc", code, *argv], env=environment, stdin=-1, stdout=-1, stderr=-1
        )
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(b"Hello\n", timeout=60)
        # It may have ended, or Python is ending, and the signal ends it: for a shell that is 130, too.
        assert process.returncode in (130, 0, -signal.SIGINT), err
        assert re.sub(rb"npllm: the reply was cut off .*\n", b"", err).strip() == b""
