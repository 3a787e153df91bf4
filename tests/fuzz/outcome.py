"""One run of a parser: nothing if all is well, or the finding."""

import contextlib
import io
import traceback
import unicodedata
import warnings
from pathlib import Path

from npllm.cli import report
from npllm.errors import NpllmError

from .targets import Target, target

LONGEST = 500  # characters of a message
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # as unicodedata.category and .bidirectional call them
BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
MEMORY, PER_BYTE = 200_000_000, 4  # bytes a run may take, and how many more for each byte of its input


def outcome(name: str, data: bytes, folder: Path) -> tuple[str, str]:
    """How one input ends: ("", the refusal or "") if all is well, else the kind of the finding and its description."""
    reset_peak()
    before = resident("VmRSS")
    kind, text = run(target(name), data, folder)
    text = text.replace(str(folder), "")
    taken = resident("VmHWM") - before
    if not kind and taken > MEMORY + PER_BYTE * len(data):
        return "memory", f"{taken >> 20} MiB for {len(data)} bytes"
    return kind, text


def run(target: Target, data: bytes, folder: Path) -> tuple[str, str]:
    """The outcome without its memory."""
    said = ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            target.run(data, folder)
        except target.refusals as error:
            said = str(error)
            warned += [error]
        except NpllmError as error:
            return "class", f"{type(error).__name__}: {error}"[:1000]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a library is no Exception
            where = [f"{Path(f.filename).name}:{f.name}" for f in traceback.extract_tb(error.__traceback__)]
            return "crash", f"{type(error).__name__}: {str(error)[:300]} in {' > '.join(where[-2:])}"
    for one in warned:
        if fault := message_fault(str(getattr(one, "message", one))):
            return "message", f"{fault}: {str(getattr(one, 'message', one))[-300:]!r}"
    return "", said


def message_fault(message: str) -> str:
    """What is wrong with a message as the command line writes it; "" if nothing is."""
    with contextlib.redirect_stderr(io.StringIO()) as written:
        report.error(message)
    line = written.getvalue().removesuffix("\n")
    if len(line.splitlines()) > 1:
        return "more than one line"
    if len(line) > LONGEST + len("npllm: error: "):
        return "more than 500 characters"
    if any(unicodedata.category(c) in CONTROLS or unicodedata.bidirectional(c) in BIDIRECTIONAL for c in line):
        return "a control character"
    return ""


def reset_peak() -> None:
    """Begin to measure the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """This process's memory in bytes: VmRSS now, VmHWM at most since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
