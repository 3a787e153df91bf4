"""The output of `npllm inspect` as text for a terminal: plain, or in colour if rich is installed.

All text from a model or a user passes through `visible`, so that it cannot contain control sequences.
"""

import importlib.util
import io
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices.memory import format_bytes
from ..lm import LM
from .heatmap import ASCII, SHADES, bounds, characters, darkness, window
from .parts import part, source
from .tokens import columns, padded, visible

Span = tuple[str, str]  # a text and its rich style; "" for none
Line = list[Span]
TITLE, FAINT, WARNING = "bold", "dim", "bold red"
LABEL = 16  # columns for a token


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


def report(data: dict[str, Any], lm: LM, width: int, *, colour: bool = False, ascii_only: bool = False) -> list[Line]:
    """A `summary` as lines of at most `width` columns, if the names in them allow that."""
    model, shades = data["model"], ASCII if ascii_only else SHADES
    sizes = (
        f"{len(data['tokens'])} tokens through {model['layers']} blocks ({model['family']}):"
        f" D = {model['hidden_size']}, N = {model['heads']}, K = {model['kv_heads']}, H = {model['head_dim']},"
        f" F = {model['intermediate_size']}, V = {model['vocab_size']:,}"
    )
    here = f"token {data['token']} {label(data['tokens'][data['token']])}"
    continues = data["kv_cache"] is not None  # else it predicts the token at the same position
    sections = [
        [[(sizes, "")], *warnings(data)],
        [[("Tokens", TITLE)], *tokens(data)],
        [[("Shapes along the pass", TITLE)], *shapes(data, lm)],
        [
            [(f"Next token, after {here}" if continues else f"In the place of {here}", TITLE)],
            *next_tokens(data, shades[-1]),
        ],
        [
            [(f"Logit lens: what each block would predict {'after' if continues else 'for'} {here}", TITLE)],
            *lens(data),
        ],
        [
            [
                (
                    f"Attention, layer {data['layer']}, head {data['head']}: each query (row) and its keys (columns)",
                    TITLE,
                )
            ],
            *attention(data, width, shades, colour),
        ],
        [[(f"Norms of vectors, at {here}", TITLE)], *norms(data)],
        *([[[("KV cache", TITLE)], *cache(data)]] if continues else []),
        [[("Cost", TITLE)], *cost(data)],
    ]
    return [line for section in sections for line in [*section, []]][:-1]


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[Line]:
    """A table with faint column headers; `align` has "l" or "r" for each column."""
    widths = [max(columns(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        space = [" " * (width - columns(cell)) for cell, width in zip(cells, widths, strict=True)]
        ordered = zip(cells, space, align, strict=True)
        return "  " + "  ".join(gap + cell if side == "r" else cell + gap for cell, gap, side in ordered)

    return [[(line(head), FAINT)], *([(line(row), "")] for row in rows)]


def warnings(data: dict[str, Any]) -> list[Line]:
    """The values that contain NaN or infinity, in the order of the pass: the first one is where to look."""
    lines: list[Line] = []
    for name, count in data["not_finite"].items():
        size = math.prod(data["shapes"][name])
        lines.append([(f"not finite: {name}: {count:,} of {size:,} elements are NaN or infinite", WARNING)])
    more = len(lines) - 5
    return lines if more <= 0 else [*lines[:5], [(f"and {more} more values after these", WARNING)]]


def tokens(data: dict[str, Any]) -> list[Line]:
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
    return table(["", "id", "token", "bytes", "probability", "rank"], rows, "rrllrr")


def shapes(data: dict[str, Any], lm: LM) -> list[Line]:
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
    return table(["value", "shape", "", "computed by"], rows, "llll")


def next_tokens(data: dict[str, Any], bar: str) -> list[Line]:
    """The likeliest next tokens."""
    rows = [
        [
            str(rank),
            str(token["id"]),
            label(token),
            percent(token["probability"]),
            bar * round(30 * np.nan_to_num(token["probability"])),
        ]
        for rank, token in enumerate(data["next"], start=1)
    ]
    return table(["", "id", "token", "probability", ""], rows, "rrlrl")


def lens(data: dict[str, Any]) -> list[Line]:
    """The likeliest tokens after each block."""
    rows = [
        [
            "embedding" if row["layer"] is None else str(row["layer"]),
            *(f"{padded(label(token), LABEL)} {percent(token['probability']):>9}" for token in row["likeliest"]),
        ]
        for row in data["lens"]
    ]
    count = len(rows[0]) - 1
    return table(["after block", *["likeliest", "second", "third"][:count]], rows, "r" + "l" * count)


def attention(data: dict[str, Any], width: int, shades: str, colour: bool) -> list[Line]:
    """The heat map of one head; and for each row, the token with the largest weight."""
    weights = np.asarray(data["attention"])
    total = len(weights)
    shown = list(window(total, data["token"], max(2, (width - LABEL - 30) // 2)))
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
    steps = "  ".join(f"{shade} from {100 * bound:.3g} %" for shade, bound in zip(shades, bounds(shades), strict=True))
    lines.append([(f"  {steps}", FAINT)] if not colour else heat_legend())
    if len(shown) < total:
        lines.append([(f"  the first token and those up to {shown[-1]}, of {total}; --token selects others", FAINT)])
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


def norms(data: dict[str, Any]) -> list[Line]:
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
    return table(["after block", "attention adds", "feedforward adds", "residual stream"], rows, "rrrr")


def cache(data: dict[str, Any]) -> list[Line]:
    """The memory for the keys and values."""
    held, context = data["kv_cache"], data["model"]["context"]
    return [
        [
            (
                f"  {held['bytes_per_token']:,} bytes per token, {format_bytes(held['bytes'])} for this text,"
                f" {format_bytes(held['bytes_per_token'] * context)} for the whole context of {context:,}",
                "",
            )
        ]
    ]


def cost(data: dict[str, Any]) -> list[Line]:
    """FLOPs and bytes read, for the text in one pass and for one more token with the cache."""

    def cells(part: dict[str, Any]) -> list[str]:
        read = part["weight_bytes"] + part["cache_bytes"]
        return [amount(part["flops"]) if part["flops"] else "-", format_bytes(read) if read else "-"]

    passes = [parts for parts in (data["cost"]["text"], data["cost"]["next_token"]) if parts is not None]
    rows = [
        [parts[0]["part"], *(cell for part in parts for cell in cells(part))] for parts in zip(*passes, strict=True)
    ]
    head = ["part", "FLOPs of the text", "reads", "FLOPs of one more token", "reads"][: 1 + 2 * len(passes)]
    return table(head, rows, "lrrrr"[: len(head)])
