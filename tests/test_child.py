"""A process that may die: whatever happens in it, its parent gets an answer or one exception with a plain reason."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from npllm.checkpoint import child as module
from npllm.checkpoint.child import Child, ChildError
from npllm.errors import UnavailableError

LIMITED = sys.platform == "linux"
LONG = 30.0  # more than any request here needs
NOT_ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals, and no fork")


@pytest.fixture(scope="module")
def child():
    child = Child("child_case", memory=2**28, output=1000)
    yield child
    child.close()


def gone(pid):
    """Whether the process ends within 30 s."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        if sys.platform == "linux" and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_it_answers_several_requests(child):
    for value in (None, 1.5, "\ud800 é", [{"a": [True]}]):
        assert child.ask(["echo", value], seconds=LONG) == value
    assert child.ask(["pid"], LONG) == child.ask(["pid"], LONG) != os.getpid()


@pytest.mark.parametrize(
    ("request_", "seconds", "reason"),
    [
        (["power"], 0.1, r"it takes more than 0.1 s"),
        (["sleep", 100], 0.1, r"it takes more than 0.1 s"),
        (["text", 2000], LONG, r"its result has more than 0 MB"),
        (["raise"], LONG, r"RuntimeError: no\nway"),
        (["exit", 3], LONG, r"its process ended with exit code 3"),
        (["abort"], LONG, r"its process ended with exit code -?\d+"),
        pytest.param(
            *(["memory", 2**29], LONG, "it takes more than 268 MB of memory"),
            marks=pytest.mark.skipif(not LIMITED, reason="RLIMIT_AS works on Linux only"),
        ),
    ],
)
def test_its_failures_are_one_exception_and_the_next_request_is_answered(child, request_, seconds, reason):
    with pytest.raises(ChildError, match=f"^{reason}$"):
        child.ask(request_, seconds)
    assert child.ask(["echo", 1], LONG) == 1


def test_what_it_prints_is_no_answer(child, capfd):
    assert child.ask(["print"], LONG) == "said"
    assert capfd.readouterr() == ("", "")


def test_it_imports_little_and_nothing_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), *sys.path])
    child = Child("child_case", memory=2**28)
    loaded, path = child.ask(["modules"], LONG), child.ask(["path"], LONG)
    child.close()
    assert not {"numpy", "jinja2", "site", "subprocess", "npllm.lm"} & {*loaded}
    assert str(tmp_path) not in path
    assert all(Path(folder).is_absolute() for folder in path)


def test_a_module_that_cannot_be_imported_and_a_python_that_cannot_be_started(monkeypatch):
    with pytest.raises(UnavailableError, match="files does not start: its process ended with exit code 1"):
        Child("no_such_module", memory=2**28).ask(None, LONG)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UnavailableError, match="a Python process for the model's files does not start: "):
        Child("child_case", memory=2**28).ask(None, LONG)


def test_an_interrupted_request_leaves_no_answer_behind(child, monkeypatch):
    child.ask(["echo", 0], LONG)

    def interrupted(pipe, most):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            child.ask(["echo", 1], LONG)
    assert child.ask(["echo", 2], LONG) == 2


def test_two_threads_get_their_own_answers(child):
    wrong = []

    def ask(value):
        wrong.extend(value for _ in range(50) if child.ask(["echo", value], LONG) != value)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@NOT_ON_WINDOWS
def test_it_ends_when_it_is_closed():
    child = Child("child_case", memory=2**28)
    pid = child.ask(["pid"], LONG)
    child.close()
    child.close()
    assert gone(pid)


PARENT = """
import sys, threading
from npllm.checkpoint.child import Child
child = Child("child_case", memory=2**28)
print(child.ask(["pid"], 30.0), flush=True)
if sys.argv[1] == "busy":
    threading.Thread(target=child.ask, args=(["power"], 1.0), daemon=True).start()
    print("busy", flush=True)
sys.stdin.read()
"""


@NOT_ON_WINDOWS
@pytest.mark.parametrize("way", ["end", "kill", pytest.param("busy", marks=pytest.mark.slow)])
def test_it_ends_with_its_parent(way):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    pid = int(parent.stdout.readline())
    if way == "busy":
        assert parent.stdout.readline() == "busy\n"
        time.sleep(0.2)
    if way == "end":
        parent.stdin.close()
        assert parent.wait(30) == 0
    else:
        parent.kill()
        parent.wait(30)
        parent.stdin.close()
    parent.stdout.close()
    assert gone(pid)


@NOT_ON_WINDOWS
def test_it_ignores_interrupts_and_starts_again_after_a_death_between_requests(child):
    pid = child.ask(["pid"], LONG)
    os.kill(pid, signal.SIGINT)
    assert child.ask(["pid"], LONG) == pid
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert child.ask(["pid"], LONG) != pid


@NOT_ON_WINDOWS
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork")  # from jax, if another test has imported it
def test_a_fork_of_its_parent_gets_a_process_of_its_own(child):
    before = child.ask(["pid"], LONG)
    forked = os.fork()
    if forked == 0:
        own = child.ask(["pid"], LONG)
        child.close()
        os._exit(0 if own != before else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert child.ask(["pid"], LONG) == before
