"""All that the commands print: results to stdout, everything else to stderr."""

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ..devices.units import format_bytes
from ..errors import UsageError

UNITS = {  # the ends of the statistics' names, and how to write such a number
    "_tokens_per_second": "{:.1f} tokens/s".format,
    "_seconds": "{:.3f} s".format,
    "_bytes": format_bytes,
}


def open_output() -> None:
    """Let stdout show what its encoding cannot as "?": a model's text may hold any character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def writes_all() -> bool:
    """Whether stdout can show every character. Where it cannot, JSON is written in ASCII, which loses nothing."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def write(text: str) -> None:
    """Write to stdout, at once.

    Raises
    ------
    BrokenPipeError : the reader is gone
    UsageError : stdout is closed, or its disk is full
    """
    if sys.stdout is None:
        raise UsageError("stdout is closed: expected a place for the output")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_output()
        raise UsageError(f"stdout: cannot write the output: {error.strerror}") from error


def abandon_output() -> None:
    """Send what stdout still holds nowhere; Python would try to write it once more at exit, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def note(text: str, end: str = "\n") -> None:
    """Write a line to stderr."""
    if sys.stderr is not None:  # print would take stdout instead
        print(text, end=end, file=sys.stderr, flush=True)


def error(message: str) -> None:
    """The line that ends a command which failed, inside an `except`."""
    if os.environ.get("NPLLM_DEBUG") == "1":
        note(traceback.format_exc().rstrip())
    note("npllm: error: " + " ".join(message.splitlines()))


def warning(message: Warning | str, *rest: Any, **more: Any) -> None:
    """A warning as one line: takes the place of `warnings.showwarning`."""
    note("npllm: warning: " + " ".join(str(message).splitlines()))


def speed(prompt_tokens: int, times: Sequence[float]) -> dict[str, Any]:
    """Counts and speeds of a generation, from the moment it began and the moments at which its tokens were there.

    Prefill is all up to the first token, for which the whole prompt is computed; decoding is what comes after it.
    """
    start, *made = times
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(made),
        "time_to_first_token_seconds": made[0] - start if made else None,
        "prefill_tokens_per_second": prompt_tokens / (made[0] - start) if made else None,
        "decode_tokens_per_second": (len(made) - 1) / (made[-1] - made[0]) if len(made) > 1 else None,
    }


def speculation(new_tokens: int, told: Mapping[str, int]) -> dict[str, Any]:
    """What came of the drafted tokens, as apps/speculation.py tells it; nothing where none were drafted."""
    if not told:
        return {}
    drafted, accepted, passes = told["drafted"], told["accepted"], told["passes"]
    return {
        "passes": passes,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "accepted_share": round(accepted / drafted, 3) if drafted else None,
        "tokens_per_pass": round(new_tokens / passes, 2) if passes else None,
    }


def stats(values: dict[str, Any]) -> None:
    """Write the statistics to stderr, a line each."""
    for name, value in values.items():
        label = name
        for unit, written in UNITS.items():
            if name.endswith(unit):
                label, value = name.removesuffix(unit), None if value is None else written(value)
        note(f"{label.replace('_', ' ').replace('kv', 'KV') + ':':21}{'-' if value is None else value}")
