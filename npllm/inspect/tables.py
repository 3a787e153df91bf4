"""Lines and tables for a terminal, plain or in colour, no wider than it is.

All text from a model or a user passes through `visible`, so that it cannot contain control sequences.
"""

import importlib.util
import io
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from .tokens import columns, padded, visible

Span = tuple[str, str]  # a text and its rich style; "" for none
Line = list[Span]
TITLE, FAINT, WARNING = "bold", "dim", "bold red"
LABEL = 16  # columns for a token
NO_BREAK = "\xa0"  # in `wrapped`: a space at which no line ends
NARROW = 8  # columns for a text that is shortened


def wants_colour() -> bool:
    """Whether stdout is a terminal, NO_COLOR is not set, and rich is installed."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and not os.environ.get("NO_COLOR") and importlib.util.find_spec("rich") is not None


def plain(lines: Sequence[Line]) -> str:
    """The lines without their styles."""
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def coloured(lines: Sequence[Line]) -> str:
    """The lines with escape codes for their styles, in as many colours as the terminal has."""
    from rich.console import Console  # the extra [inspect]
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, legacy_windows=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
    return out.getvalue()


def label(token: dict[str, Any]) -> str:
    """A token in quotes, with incomplete characters as escaped bytes; or only its id, if there is no tokenizer."""
    if token["bytes"] is None:
        return f"#{token['id']}"
    return f"'{visible(bytes.fromhex(token['bytes']))}'"


def percent(share: float | None) -> str:
    """A probability as a percentage with three significant digits."""
    if share is None:
        return "-"
    if not math.isfinite(share):
        return "NaN"
    return "<0.0001 %" if 0 < share < 1e-6 else f"{100 * share:#.3g}".rstrip(".") + " %" if share else "0 %"


def amount(count: int) -> str:
    """A large number with a unit prefix: 1.35 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int) -> list[Line]:
    """A table of at most `width` columns with faint headers; `align` has "l" or "r" for each column of the table.

    If it is too wide, the widest texts are shortened, to NARROW at least; then the last columns are left out. Numbers
    are never shortened.
    """
    whole = [max(columns(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    kept = range(len(whole), 0, -1)
    possible = (fitted(whole[:count], align, width - 2 * count) for count in kept)
    widths = next((widths for widths in possible if sum(widths) + 2 * len(widths) <= width), whole[:1])

    def line(cells: Sequence[str]) -> str:
        shown = [
            " " * (room - columns(cell)) + cell if side == "r" else padded(cell, room)
            for cell, room, side in zip(cells, widths, align, strict=False)
        ]
        return "  " + "  ".join(shown)

    return [[(line(head), FAINT)], *([(line(row), "")] for row in rows)]


def fitted(widths: Sequence[int], align: str, room: int) -> list[int]:
    """The widths of the columns with the widest texts shortened until they fit the room, or cannot be shortened.

    >>> fitted([3, 20, 12], "rll", 25), fitted([3, 20, 12], "rll", 5)
    ([3, 11, 11], [3, 8, 8])
    """
    widths = list(widths)
    while sum(widths) > room:
        texts = [i for i, side in enumerate(align[: len(widths)]) if side == "l" and widths[i] > NARROW]
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
    return widths


def wrapped(text: str, width: int, style: str = "", indent: int = 2) -> list[Line]:
    """A text on lines of at most `width` columns."""
    space = " " * indent
    lines = textwrap.wrap(text, max(width, 20), initial_indent=space, subsequent_indent=space)
    return [[(line.replace(NO_BREAK, " "), style)] for line in lines]
