"""A labelled array as HTML for a notebook: a heat map, small ones side by side, or bars. No script, nothing to load.

All text is escaped, and each label is isolated, so that one in Hebrew or Arabic does not turn its line around.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from .heatmap import window
from .terminal import percent

MOST = 32  # rows or columns of a heat map; of more, the first and the last ones
NUMBERED = 16  # columns with room for numbers
RANKED = 15  # bars
TOKENS = ("token", "query", "key", "next token")  # the axes with tokens as labels
HEAT = ((0xF3, 0xF0, 0xEA), (0xB9, 0xD3, 0xE4), (0x47, 0x87, 0xB3), (0x0B, 0x2F, 0x52))  # as in page/page.css
WARM = ((0xF3, 0xF0, 0xEA), (0xF0, 0xC9, 0xA8), (0xC9, 0x73, 0x2F), (0x6B, 0x29, 0x04))  # below zero
FONT = "font:12px/1.4 system-ui,sans-serif"
STYLE = f"border-collapse:separate;border-spacing:1px;width:auto;white-space:nowrap;text-align:right;{FONT}"
TABLE = f"<table cellpadding=2 style='{STYLE}'>"


def as_html(x: Any) -> str:
    """The `Labelled` array as an HTML fragment."""
    what = f": {' × '.join(x.names)}" if x.ndim > 1 else ""
    scale = "in %; darker is more" if x.share else "blue above zero, orange below"
    body = {1: bars, 2: heat_map, 3: small_maps}.get(x.ndim, lambda _: f"<pre>{escape(repr(x))}</pre>")(x)
    note = f" <small>({scale})</small>" if x.ndim in (2, 3) else ""
    title = f"<figcaption>{escape(x.title)}{what}{note}</figcaption>"
    return f"<figure style='margin:0;overflow-x:auto'>{title}{body}</figure>"


def heat(x: Any) -> np.ndarray:
    """The darkness of each element, from -1 to 1."""
    values = x.array.astype(np.float64)
    if x.share:
        return np.nan_to_num(np.sqrt(np.clip(values, 0.0, 1.0)))  # a share of 1 % is a tenth as dark as one of 100 %
    most = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return np.nan_to_num(values / most if most else values, posinf=1.0, neginf=-1.0)


def colour(dark: float) -> str:
    """The colours of a cell and of its text."""
    channels = zip(*(HEAT if dark >= 0 else WARM), strict=True)
    red, green, blue = (round(float(np.interp(abs(dark), (0, 1 / 3, 2 / 3, 1), stops))) for stops in channels)
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#fff' if abs(dark) > 0.5 else '#1d1c1a'}"


def isolated(text: str) -> str:
    """A text, whose direction of writing ends with it."""
    return f"<bdi>{escape(text)}</bdi>"


def tick(x: Any, axis: int, index: int) -> str:
    """The label of an index; of a token with its spaces visible."""
    label = x.labels[axis][index]
    return isolated(label.replace(" ", "␣") if x.names[axis] in TOKENS else label)


def number(x: Any, value: float) -> str:
    """An element as text, in percent if it is a share: empty for a share of 0, such as that of a token not seen."""
    if np.isnan(value):
        return "-"
    if x.share:
        return percent(value).removesuffix(" %") if value else ""
    return f"{value:.2f}".replace("-0.00", "0.00") if abs(value) < 10_000 else f"{value:.3g}"


def chosen(count: int) -> list[int]:
    """The rows or columns to show."""
    return list(window(count, count - 1, MOST))


def heat_map(x: Any) -> str:
    """A table with a coloured cell for each element; numbers in it, or words, if there is room."""
    rows, keys, dark = chosen(x.shape[0]), chosen(x.shape[1]), heat(x)
    room, group = (True, 1) if len(keys) <= NUMBERED else (False, 5)
    heads = [tick(x, 1, j) for j in keys[::group]]
    head = "".join(f"<th colspan={group} style='text-align:left'>{label}</th>" for label in heads)
    lines = [f"<tr><td></td>{head}</tr>"]
    for i in rows:
        cells = []
        for j in keys:
            value = number(x, float(x.array[i, j]))
            shown = value if x.words is None else isolated(x.words[i, j].replace(" ", "␣"))
            where = f"{x.names[0]} {x.labels[0][i]}, {x.names[1]} {x.labels[1][j]}: {value}"
            cells.append(f"<td style='{colour(dark[i, j])}' title=\"{escape(where)}\">{shown if room else ''}</td>")
        lines.append(f"<tr><th>{tick(x, 0, i)}</th>{''.join(cells)}</tr>")
    return f"{TABLE}{''.join(lines)}</table>{left_out(x, rows, keys)}"


def left_out(x: Any, *shown: Sequence[int]) -> str:
    """A note on rows and columns that are not shown."""
    gone = [
        f"{len(indices)} of {count} shown ({name})"
        for name, count, indices in zip(x.names, x.shape, shown, strict=True)
        if len(indices) < count
    ]
    return f"<small>{'; '.join(gone)}: the first and the last ones</small>" if gone else ""


def small_maps(x: Any) -> str:
    """A small heat map without text for each index of the first axis, side by side."""
    maps = []
    for label, part in zip(x.labels[0], x, strict=True):
        rows, keys, dark = chosen(part.shape[0]), chosen(part.shape[1]), heat(part)
        side = max(3, min(14, 120 // max(len(keys), 1)))
        body = "".join(
            "<tr>" + "".join(f"<td style='padding:0;{colour(dark[i, j]).split(';')[0]}'></td>" for j in keys) + "</tr>"
            for i in rows
        )
        size = f"width:{side * len(keys)}px;height:{min(side * len(rows), 240)}px"
        maps.append(
            f"<div>{x.names[0]} {isolated(label)}<table style='border-collapse:collapse;table-layout:fixed;{size}'>"
            f"{body}</table></div>"
        )
    return f"<div style='display:flex;flex-wrap:wrap;gap:12px;{FONT}'>{''.join(maps)}</div>"


def bars(x: Any) -> str:
    """A line with a bar for each element; of a ranking, the largest first."""
    values, dark = x.array.astype(np.float64), heat(x)
    size = np.abs(values) if x.share else np.abs(dark)
    order = np.argsort(-np.nan_to_num(size), kind="stable")[:RANKED].tolist() if x.ranked else chosen(len(values))
    lines = []
    for i in order:
        wide = round(100 * float(np.nan_to_num(size[i])))
        word = "" if x.words is None else isolated(x.words[i].replace(" ", "␣"))
        text = number(x, float(values[i])) + (" %" if x.share and values[i] > 0 else "")
        lines.append(
            f"<tr><th>{tick(x, 0, i)}</th><td>{word}</td><td>{text}</td><td style='width:240px;text-align:left'>"
            f"<div style='height:9px;width:{wide}%;{colour(0.6 if dark[i] >= 0 else -0.6)}'></div></td></tr>"
        )
    left = len(values) - len(order)
    note = f"<small>and {left} smaller ones</small>" if x.ranked and left else left_out(x, order)
    return f"{TABLE}{''.join(lines)}</table>{note}"
