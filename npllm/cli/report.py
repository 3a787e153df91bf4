"""All output of the commands: results to stdout, everything else to stderr."""

import io
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..devices.units import format_bytes
from ..errors import UsageError
from ..text.one_line import escaped
from ..text.stderr import abandon, note

UNITS = {  # the suffixes of the statistics' names, and the format of their values
    "_tokens_per_second": "{:.1f} tokens/s".format,
    "_seconds": "{:.3f} s".format,
    "_bytes": format_bytes,
}


def open_output() -> None:
    """Make stdout write "?" for characters that its encoding lacks: a model's text may hold any character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def writes_all() -> bool:
    """Whether stdout can encode every character. If not, JSON is written in ASCII, without loss."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def write(text: str, styled: bool = False) -> None:
    """Write to stdout, and flush it.

    At a terminal, control characters are escaped: the text of a model could move the cursor or fill the clipboard. Each
    is escaped by itself, so it does not matter how a sequence is split over several calls. Files and pipes get all.

    styled : the text has control sequences of our own, and nothing else to escape

    Raises
    ------
    BrokenPipeError : the reader has closed the pipe
    UsageError : stdout is closed, or its disk is full
    """
    if sys.stdout is None:
        raise UsageError("stdout is closed: expected it to be open for the output")
    if sys.stdout.isatty() and not styled:
        text = escaped(text, keep="\n\t")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise UsageError(f"stdout: cannot write the output: {error.strerror}") from error


def write_lines(lines: Iterable[str]) -> None:
    """Write lines that hold names from files: control characters are escaped, so that a name cannot begin a line."""
    write("".join(f"{escaped(line)}\n" for line in lines))


def close_output() -> None:
    """Flush what libraries have written to stdout and stderr. What cannot be written is discarded, silently.

    Otherwise Python would try at exit, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            abandon(stream)


def error(message: str) -> None:
    """Write the final line of a failed command. Call it inside an `except`."""
    if os.environ.get("NPLLM_DEBUG") == "1":
        for line in traceback.format_exc().splitlines():
            note(line)
    note(f"npllm: error: {message}")


def warning(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Write a warning as one line; replaces `warnings.showwarning`."""
    note(f"npllm: warning: {message}")


def speed(prompt_tokens: int, times: Sequence[float]) -> dict[str, Any]:
    """Counts and speeds of a generation, from its start time and the times at which its tokens arrived.

    Prefill lasts until the first token, which needs the whole prompt; the rest is decoding.
    """
    start, *made = times
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(made),
        "time_to_first_token_seconds": made[0] - start if made else None,
        "prefill_tokens_per_second": prompt_tokens / (made[0] - start) if made else None,
        "decode_tokens_per_second": (len(made) - 1) / (made[-1] - made[0]) if len(made) > 1 else None,
    }


def speculation(new_tokens: int, counts: Mapping[str, int]) -> dict[str, Any]:
    """The statistics of drafted tokens, from the counts of apps/speculation.py; empty if nothing was drafted."""
    if not counts:
        return {}
    drafted, accepted, passes = counts["drafted"], counts["accepted"], counts["passes"]
    return {
        "passes": passes,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "accepted_share": round(accepted / drafted, 3) if drafted else None,
        "tokens_per_pass": round(new_tokens / passes, 2) if passes else None,
    }


def stats(values: dict[str, Any]) -> None:
    """Write the statistics to stderr, one per line."""
    for name, value in values.items():
        label = name
        for unit, formatted in UNITS.items():
            if name.endswith(unit):
                label, value = name.removesuffix(unit), None if value is None else formatted(value)
        note(f"{label.replace('_', ' ').replace('kv', 'KV') + ':':21}{'-' if value is None else value}")
