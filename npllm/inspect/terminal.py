"""The output of `npllm inspect` as text for a terminal: plain, or in colour if rich is installed.

All text from a model or a user passes through `visible`, so that it cannot contain control sequences.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..devices.memory import format_bytes
from ..lm import LM
from .heatmap import ASCII, SHADES, bounds, characters, darkness, window
from .parts import part, source
from .summary import DEFAULT
from .tables import FAINT, LABEL, NO_BREAK, TITLE, WARNING, Line, amount, label, percent, table, wrapped
from .tokens import padded
from .where import attribution_lines, head_lines, patching_lines


def report(
    data: dict[str, Any],
    lm: LM,
    width: int,
    sections: Sequence[str] = DEFAULT,
    *,
    colour: bool = False,
    ascii_only: bool = False,
) -> list[Line]:
    """A `summary` with these sections as lines of at most `width` columns, if the names in them allow that."""
    model, shades = data["model"], ASCII if ascii_only else SHADES
    sizes = (
        f"{len(data['tokens'])} tokens through {model['layers']} blocks ({model['family']}):"
        f" D = {model['hidden_size']}, N = {model['heads']}, K = {model['kv_heads']}, H = {model['head_dim']},"
        f" F = {model['intermediate_size']}, V = {model['vocab_size']:,}"
    )
    without = wrapped(f"edited: {', '.join(data['without'])}", width, WARNING, indent=0) if "without" in data else []
    here = f"token {data['token']} {label(data['tokens'][data['token']])}"
    continues = not lm.config.bidirectional  # else it predicts the token at the same position
    after = "after" if continues else "for"
    named: dict[str, tuple[str, Callable[[], list[Line]]]] = {
        "tokens": ("Tokens", lambda: tokens(data, width)),
        "shapes": ("Shapes along the pass", lambda: shapes(data, lm, width)),
        "next": (
            f"Next token, after {here}" if continues else f"In the place of {here}",
            lambda: next_tokens(data, shades[-1], width),
        ),
        "lens": (f"Logit lens: what each block would predict {after} {here}", lambda: lens(data, width)),
        "norms": (f"Norms of vectors, at {here}", lambda: norms(data, width)),
        "cache": ("KV cache", lambda: cache(data, width)),
        "cost": ("Cost", lambda: cost(data, width)),
        "heads": ("Heads: what each looks at", lambda: head_lines(data["heads"], width, shades)),
        "attribution": (
            f"Attribution: what each part adds to the logit {after} {here}",
            lambda: attribution_lines(data["attribution"], width, shades),
        ),
        "patching": (
            "Patching: where the answer is, layer by layer and token by token",
            lambda: patching_lines(data["patching"], width, shades),
        ),
    }
    found = [[*wrapped(sizes, width, indent=0), *without, *warnings(data)]]
    for section in sections:
        if section == "attention":
            found += attention_maps(data, width, shades, colour)
        elif section != "cache" or continues:
            title, lines_of = named[section]
            found.append([*wrapped(title, width, TITLE, indent=0), *lines_of()])
    return [line for section in found for line in [*section, []]][:-1]


def warnings(data: dict[str, Any]) -> list[Line]:
    """The values that contain NaN or infinity, in the order of the pass: the first one is where to look."""
    lines: list[Line] = []
    for name, count in data["not_finite"].items():
        size = math.prod(data["shapes"][name])
        lines.append([(f"not finite: {name}: {count:,} of {size:,} elements are NaN or infinite", WARNING)])
    more = len(lines) - 5
    return lines if more <= 0 else [*lines[:5], [(f"and {more} more values after these", WARNING)]]


def tokens(data: dict[str, Any], width: int) -> list[Line]:
    """The tokens: id, bytes, and the probability that the model gave each."""
    rows = [
        [
            str(position),
            str(token["id"]),
            label(token),
            "-" if token["bytes"] is None else bytes.fromhex(token["bytes"]).hex(" "),
            percent(token["probability"]),
            "-" if token["rank"] is None else f"{token['rank']:,}",
        ]
        for position, token in enumerate(data["tokens"])
    ]
    return table(["", "id", "token", "bytes", "probability", "rank"], rows, "rrllrr", width)


def shapes(data: dict[str, Any], lm: LM, width: int) -> list[Line]:
    """The values of the pass in order, with those of one block for all blocks."""
    rows = []
    first = next(name for name in data["shapes"] if name.startswith("layers."))
    for name, shape in data["shapes"].items():
        if name.startswith("layers.") and not name.startswith("layers.0."):
            continue
        if name == first:
            rows.append([f"{data['model']['layers']} blocks, each:", "", "", ""])
        what = part(lm.config, name)
        short = name.replace("layers.0.", "  ")
        rows.append([short, str(shape), what.shape, source(what.function, what.line)])
    return table(["value", "shape", "", "computed by"], rows, "llll", width)


def next_tokens(data: dict[str, Any], bar: str, width: int) -> list[Line]:
    """The likeliest next tokens; with edits, what the model says without them, too."""
    edited, room = "without" in data, min(30, max(0, width - 50))
    rows = [
        [
            str(rank),
            str(token["id"]),
            label(token),
            percent(token["probability"]),
            *([percent(token["unedited"])] if edited else []),
            bar * round(room * np.nan_to_num(token["probability"])),
        ]
        for rank, token in enumerate(data["next"], start=1)
    ]
    more = ["unedited"] if edited else []
    return table(["", "id", "token", "probability", *more, ""], rows, "rrlr" + "r" * edited + "l", width)


def lens(data: dict[str, Any], width: int) -> list[Line]:
    """The likeliest tokens after each block: three, or as many as fit."""
    fit = max(1, (width - 13) // (LABEL + 12))
    rows = [
        [
            "embedding" if row["layer"] is None else str(row["layer"]),
            *(
                cell
                for token in row["likeliest"][:fit]
                for cell in (padded(label(token), LABEL), percent(token["probability"]))
            ),
        ]
        for row in data["lens"]
    ]
    count = len(rows[0]) // 2
    head = [cell for name in ("likeliest", "second", "third")[:count] for cell in (name, "")]
    return table(["after block", *head], rows, "r" + "lr" * count, width)


def attention_maps(data: dict[str, Any], width: int, shades: str, colour: bool) -> list[list[Line]]:
    """The map of each head that was asked for, with its title."""
    maps = data.get("maps", [data])
    title = "Attention, layer {layer}, head {head}: each query (row) and its keys (columns)"
    return [
        [
            *wrapped(title.format(**one), width, TITLE, indent=0),
            *attention(data, one["attention"], width, shades, colour),
        ]
        for one in maps
    ]


def attention(data: dict[str, Any], attended: list[list[float]], width: int, shades: str, colour: bool) -> list[Line]:
    """The heat map of one head; and for each row, the token with the largest weight."""
    weights = np.asarray(attended)
    total = len(weights)
    shown = list(window(total, data["token"], max(2, (width - 2 * LABEL - 24) // 2)))
    cells = weights[np.ix_(shown, shown)]
    lines: list[Line] = [[(" " * (LABEL + 8) + "".join(f"{i % 100:<2}" for i in shown), FAINT)]]
    drawn = zip(shown, cells, darkness(cells), characters(cells, shades), strict=True)
    for position, row, dark, text in drawn:
        spans: Line = [(f"{position:6}  {padded(label(data['tokens'][position]), LABEL)}", "")]
        for weight, shade, character in zip(row, dark, text, strict=True):
            heat = colour and weight > 0
            spans.append(("  ", f"on {heat_colour(shade)}") if heat else (2 * character, ""))
        all_of_row = weights[position]
        most = int(np.argmax(np.nan_to_num(all_of_row, nan=-1.0)))
        where = padded(label(data["tokens"][most]), LABEL).rstrip()
        spans.append((f"  {percent(float(all_of_row[most])):>6} on {most} {where}", FAINT))
        lines.append(spans)
    steps = "  ".join(
        f"{shade}{NO_BREAK}from{NO_BREAK}{100 * bound:.3g}{NO_BREAK}%"
        for shade, bound in zip(shades, bounds(shades), strict=True)
    )
    lines += [heat_legend()] if colour else wrapped(steps, width, FAINT)
    if len(shown) < total:
        note = f"the first token and those up to {shown[-1]}, of {total}; --token selects others"
        lines += wrapped(note, width, FAINT)
    return lines


def heat_colour(dark: float) -> str:
    """Dark blue for 0.001, through green, to light yellow for 1; lightness increases, so it works in grey too."""
    red, green, blue = (0x26, 0x20, 0xF7), (0x2A, 0x88, 0xE4), (0x5C, 0x8C, 0x6E)
    return "#" + "".join(f"{round(np.interp(dark, (0.0, 0.5, 1.0), stops)):02x}" for stops in (red, green, blue))


def heat_legend() -> Line:
    """The legend of the colours."""
    weights = np.array([0.001, 0.01, 0.1, 1.0])
    line: Line = [("  ", "")]
    for weight, dark in zip(weights.tolist(), darkness(weights).tolist(), strict=True):
        line += [("  ", f"on {heat_colour(dark)}"), (f" {100 * weight:g} %   ", FAINT)]
    return line


def norms(data: dict[str, Any], width: int) -> list[Line]:
    """The norms of the attention and feedforward outputs, and of the residual stream after them."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f}"

    rows = [
        [
            "embedding" if row["layer"] is None else str(row["layer"]),
            number(row["attention"]),
            number(row["feedforward"]),
            number(row["residual"]),
        ]
        for row in data["norms"]
    ]
    return table(["after block", "attention adds", "feedforward adds", "residual stream"], rows, "rrrr", width)


def cache(data: dict[str, Any], width: int) -> list[Line]:
    """The memory for the keys and values."""
    held, context = data["kv_cache"], data["model"]["context"]
    text = (
        f"{held['bytes_per_token']:,} bytes per token, {format_bytes(held['bytes'])} for this text,"
        f" {format_bytes(held['bytes_per_token'] * context)} for the whole context of {context:,}"
    )
    return wrapped(text, width)


def cost(data: dict[str, Any], width: int) -> list[Line]:
    """FLOPs and bytes read, for the text in one pass and for one more token with the cache."""

    def cells(part: dict[str, Any]) -> list[str]:
        read = part["weight_bytes"] + part["cache_bytes"]
        return [amount(part["flops"]) if part["flops"] else "-", format_bytes(read) if read else "-"]

    passes = [parts for parts in (data["cost"]["text"], data["cost"]["next_token"]) if parts is not None]
    rows = [
        [parts[0]["part"], *(cell for part in parts for cell in cells(part))] for parts in zip(*passes, strict=True)
    ]
    head = ["part", "text: FLOPs", "reads", "next token: FLOPs", "reads"][: 1 + 2 * len(passes)]
    return table(head, rows, "lrrrr"[: len(head)], width)
