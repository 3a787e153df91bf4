"""A Python process that may die: for work on a model's files that could hang, take all memory or crash.

    child = Child("npllm.checkpoint.sandbox", memory=2**29)
    answer = child.ask(request, seconds=2.0)

The process calls `answer(request)` of one module for each request; requests and answers are JSON. It sees the parent's
sys.path without the current folder, and the package without its `__init__`, which keeps its start short. Whatever
happens in it, the parent gets an answer or a ChildError.

Its time and the size of its answers are limited on every platform, its memory on Linux only: macOS and Windows enforce
no RLIMIT_AS.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UnavailableError

if TYPE_CHECKING:
    import subprocess

START_SECONDS = 60.0  # for Python's start and the module's imports, which do not depend on the request

# Run by python -c. The arguments: the folder of npllm, the module, the memory of a request, the folders of sys.path.
BOOT = """\
import sys
package, module, memory, *sys.path = sys.argv[1:]
npllm = sys.modules["npllm"] = type(sys)("npllm")
npllm.__path__ = [package]
from npllm.checkpoint.child import serve
serve(module, int(memory))
"""


class ChildError(Exception):
    """The process gave no answer. The text is the reason, as the end of a sentence: "it takes more than 2 s"."""


class Child:
    """A process that answers requests. It starts at the first one, and again after a failure.

    module : its name; the process imports it and calls its function `answer`
    memory : the most bytes that a request may add to the address space, on Linux
    output : the most bytes of an answer as JSON
    """

    def __init__(self, module: str, memory: int, output: int = 2**25) -> None:
        self.module, self.memory, self.output = module, memory, output
        self.lock = threading.RLock()
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False

    def start(self) -> None:
        """Start the process unless it is running, without waiting for its imports. `ask` does this too, but waits.

        Raises
        ------
        UnavailableError : the system cannot start it
        """
        import subprocess  # here, because the child needs neither, and imports this module
        from pathlib import Path

        with self.lock:
            if self.process is not None and self.process.poll() is None:
                return
            self.close()
            command = [sys.executable, "-I", "-S", "-c", BOOT, str(Path(__file__).parent.parent), self.module]
            try:
                process = subprocess.Popen(
                    [*command, str(self.memory), *safe_path()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows: no console, so no Ctrl-C
                )
            except OSError as error:
                raise UnavailableError(f"a Python process for the model's files does not start: {error}") from error
            self.process, self.ready = process, False
            self.finalizer = weakref.finalize(self, stop, process)

    def ask(self, request: Any, seconds: float) -> Any:
        """The module's answer to a request.

        Raises
        ------
        ChildError : there is none: it takes longer, or more memory, than it may, or the process died
        UnavailableError : the process cannot be started
        """
        with self.lock:
            self.start()
            try:
                self.wait()
                return self.exchange([seconds, request], seconds)
            except BaseException:  # also KeyboardInterrupt: the answer to this request must not be the next one's
                self.close()
                raise

    def wait(self) -> None:
        """Wait until the process has imported the module. Raises UnavailableError if it never does."""
        if not self.ready:
            try:
                self.exchange(None, START_SECONDS)
            except ChildError as error:
                raise UnavailableError(f"a Python process for the model's files does not start: {error}") from error
            self.ready = True

    def exchange(self, request: Any, seconds: float) -> Any:
        """Write a request, unless it is None, and read the answer. Raises ChildError if there is none in time."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                write(process.stdin, request)
            answer = read(process.stdout, self.output)
        except (OSError, EOFError) as error:
            if late.is_set():
                raise ChildError(f"it takes more than {seconds:.2g} s") from error
            raise ChildError(f"its process ended with exit code {process.wait()}") from error
        except (ValueError, RecursionError) as error:
            raise ChildError(f"its process wrote something other than JSON: {error}") from error
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():  # killed after it wrote the answer
            raise ChildError(f"it takes more than {seconds:.2g} s")
        if "failed" in answer:
            raise ChildError(answer["failed"])
        return answer["answer"]

    def close(self) -> None:
        """End the process, if it is running."""
        with self.lock:
            if self.process is not None:
                self.finalizer()
                self.process = None


def safe_path() -> list[str]:
    """sys.path without the current folder, where a model's files could be."""
    from pathlib import Path

    try:
        here = Path.cwd()
    except OSError:  # it has been deleted
        here = None
    return [p for p in sys.path if Path(p).is_absolute() and not (here and Path(p).exists() and here.samefile(p))]


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process, and close its pipes. A fork of its parent only closes them: Popen finds no such child there."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # a request that could not be written
            pipe.close()  # type: ignore[union-attr]


# What the process runs


def serve(module: str, memory: int) -> None:
    """Answer requests until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    with contextlib.suppress(ImportError):  # Windows, which writes no core files
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes where its errors go: nowhere
    answer = importlib.import_module(module).answer
    write(answers, {"answer": None})  # ready
    while True:
        try:
            seconds, request = read(requests)
        except EOFError:
            return
        # The parent kills a process that takes longer. If the parent has died, this does. It even ends a loop in C.
        faulthandler.dump_traceback_later(seconds + 1, exit=True)
        try:
            with limited(memory):
                frame = as_frame({"answer": answer(request)})
        except MemoryError:
            frame = as_frame({"failed": f"it takes more than {memory / 1e6:.0f} MB of memory"})
        except Exception as error:  # noqa: BLE001 - the parent raises it
            frame = as_frame({"failed": f"{type(error).__name__}: {error}"[:1000]})
        faulthandler.cancel_dump_traceback_later()
        answers.write(frame)
        answers.flush()


@contextlib.contextmanager
def limited(memory: int) -> Iterator[None]:
    """Let this process add at most `memory` bytes to its address space, where the system can limit it."""
    try:
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib is slow to import
            pages = int(file.read().split()[0])
    except (ImportError, OSError):  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = {pages * resource.getpagesize() + memory, soft, hard} - {resource.RLIM_INFINITY}
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Both


def as_frame(value: Any) -> bytes:
    """A value as JSON, after its length in eight bytes."""
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "big") + text


def write(pipe: Any, value: Any) -> None:
    """Write a value to the other process."""
    pipe.write(as_frame(value))
    pipe.flush()


def read(pipe: Any, most: int | None = None) -> Any:
    """The next value from the other process.

    Raises
    ------
    EOFError : the other process ended
    ChildError : the value has more than `most` bytes
    ValueError, RecursionError : it is not JSON
    """
    head = pipe.read(8)
    size = int.from_bytes(head, "big")
    if most is not None and size > most:
        raise ChildError(f"its result has more than {most / 1e6:.0f} MB")
    text = pipe.read(size)
    if len(head) < 8 or len(text) < size:
        raise EOFError
    return json.loads(text)
