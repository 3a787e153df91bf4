"""What was typed at the prompt of a chat, kept for the next chats: the arrow keys bring it back.

The file has a line for each turn, a JSON string, because a turn may have several lines. Only its owner can read it. It
is $NPLLM_HISTORY, or chat_history in npllm's cache folder; with NPLLM_HISTORY= (empty) nothing is kept. What comes
through a pipe is never kept.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError
from ..storage.files import write_file
from ..storage.paths import cache_folder, output_file

MOST, LARGEST = 1000, 1_000_000  # turns, and bytes of the file, which then keeps only those turns


def line_editing() -> Callable[[str], None]:
    """Give `input` line editing and the history; return the function that adds a turn to it.

    Raises
    ------
    UsageError : $NPLLM_HISTORY cannot be written
    """
    path = history_file()
    try:
        readline = importlib.import_module("readline")
    except ImportError:  # not available on Windows
        return lambda turn: None
    if "libedit" not in (readline.__doc__ or ""):
        for setting in ("input-meta on", "output-meta on", "convert-meta off"):
            readline.parse_and_bind(f"set {setting}")  # else é is two commands in a locale that is ASCII
    readline.set_auto_history(False)  # a turn of several lines is one entry
    last = ""

    def offer(turn: str) -> None:
        nonlocal last
        last = turn
        try:
            readline.add_history(turn)
        except UnicodeEncodeError:  # a locale without this character, such as C: its bytes, as in UTF-8
            readline.add_history(turn.encode().decode("ascii", "surrogateescape"))

    def remember(turn: str) -> None:
        if turn != last:
            offer(turn)
            add(path, turn)

    for turn in turns(path):
        offer(turn)

    return remember


def history_file() -> Path | None:
    """The history's file, None if nothing is to be kept. Raises UsageError if $NPLLM_HISTORY cannot be written."""
    named = os.environ.get("NPLLM_HISTORY")
    if named:
        return output_file(named, f"NPLLM_HISTORY {named}")
    cache = cache_folder() if named is None else None
    return None if cache is None else cache / "chat_history"


def turns(path: Path | None) -> Iterator[str]:
    """The last turns in a history. A line that is no JSON string is skipped: another program may have cut it."""
    with suppress(OSError, UsageError):
        if path is None or not path.is_file():
            return
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LARGEST))
            lines = file.read().splitlines()[-MOST:]
        if size > LARGEST:
            write_file(path, [line + b"\n" for line in lines])
        for line in lines:
            with suppress(ValueError, RecursionError):
                turn = json.loads(line)
                if isinstance(turn, str) and "\0" not in turn:
                    yield turn.encode(errors="replace").decode()


def add(path: Path | None, turn: str) -> None:
    """Add a turn to the history's file, for its owner alone. Where that fails, it is kept for this chat only."""
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - pathlib sets no mode
                file.write(json.dumps(turn).encode() + b"\n")
