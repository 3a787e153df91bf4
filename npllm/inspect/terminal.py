"""What `npllm inspect` tells, as text for a terminal: plain, or with colour where rich is installed.

All text that a model or a user wrote goes through `visible`, so that nothing in it can command the terminal.
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

Span = tuple[str, str]  # a text and its style, in rich's words; "" for none
Line = list[Span]
TITLE, FAINT, WARNING = "bold", "dim", "bold red"
LABEL = 16  # columns for a token


def wants_colour() -> bool:
    """Whether stdout is a terminal, nobody said NO_COLOR, and rich is installed."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and not os.environ.get("NO_COLOR") and importlib.util.find_spec("rich") is not None


def plain(lines: Sequence[Line]) -> str:
    """The lines without their styles."""
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def coloured(lines: Sequence[Line]) -> str:
    """The lines with the codes that a terminal takes as their styles: as many colours as it has."""
    from rich.console import Console  # the extra [inspect]
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, legacy_windows=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
    return out.getvalue()


def report(told: dict[str, Any], lm: LM, width: int, *, colour: bool = False, ascii_only: bool = False) -> list[Line]:
    """All of a `summary` as lines of at most `width` columns, where the names in them allow that."""
    model, shades = told["model"], ASCII if ascii_only else SHADES
    sizes = (
        f"{len(told['tokens'])} tokens through {model['layers']} blocks ({model['family']}):"
        f" D = {model['hidden_size']}, N = {model['heads']}, K = {model['kv_heads']}, H = {model['head_dim']},"
        f" F = {model['intermediate_size']}, V = {model['vocab_size']:,}"
    )
    here = f"token {told['token']} {label(told['tokens'][told['token']])}"
    sections = [
        [[(sizes, "")], *warnings(told)],
        [[("Tokens", TITLE)], *tokens(told)],
        [[("Shapes along the pass", TITLE)], *shapes(told, lm)],
        [[(f"Next token, after {here}", TITLE)], *next_tokens(told, shades[-1])],
        [[(f"Logit lens: what each block would say next, after {here}", TITLE)], *lens(told)],
        [
            [(f"Attention, layer {told['layer']}, head {told['head']}: who (row) looks at whom (column)", TITLE)],
            *attention(told, width, shades, colour),
        ],
        [[(f"Lengths of vectors, at {here}", TITLE)], *norms(told)],
        [[("KV cache", TITLE)], *cache(told)],
        [[("Cost", TITLE)], *cost(told)],
    ]
    return [line for section in sections for line in [*section, []]][:-1]


def label(token: dict[str, Any]) -> str:
    """A token in quotes, or the bytes of half a character, or the id alone where there is no tokenizer."""
    if token["bytes"] is None:
        return f"#{token['id']}"
    return f"'{visible(bytes.fromhex(token['bytes']))}'"


def percent(share: float | None) -> str:
    """A probability with three digits."""
    if share is None:
        return "-"
    if not math.isfinite(share):
        return "NaN"
    return "<0.0001 %" if 0 < share < 1e-6 else f"{100 * share:#.3g}".rstrip(".") + " %" if share else "0 %"


def amount(count: int) -> str:
    """A large number for people: 1.35 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[Line]:
    """Rows below faint heads; `align` has "l" or "r" for each column."""
    widths = [max(columns(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        space = [" " * (width - columns(cell)) for cell, width in zip(cells, widths, strict=True)]
        ordered = zip(cells, space, align, strict=True)
        return "  " + "  ".join(gap + cell if side == "r" else cell + gap for cell, gap, side in ordered)

    return [[(line(head), FAINT)], *([(line(row), "")] for row in rows)]


def warnings(told: dict[str, Any]) -> list[Line]:
    """Which values hold NaN or infinity, the first of them in the order of the pass being the one to look at."""
    lines: list[Line] = []
    for name, count in told["not_finite"].items():
        size = math.prod(told["shapes"][name])
        lines.append([(f"not finite: {name}: {count:,} of {size:,} numbers are NaN or infinite", WARNING)])
    more = len(lines) - 5
    return lines if more <= 0 else [*lines[:5], [(f"and {more} more values after these", WARNING)]]


def tokens(told: dict[str, Any]) -> list[Line]:
    """Each token: its id, bytes, and the probability that the model gave it."""
    rows = [
        [
            str(position),
            str(token["id"]),
            label(token),
            "-" if token["bytes"] is None else bytes.fromhex(token["bytes"]).hex(" "),
            percent(token["probability"]),
            "-" if token["rank"] is None else f"{token['rank']:,}",
        ]
        for position, token in enumerate(told["tokens"])
    ]
    return table(["", "id", "token", "bytes", "probability", "rank"], rows, "rrllrr")


def shapes(told: dict[str, Any], lm: LM) -> list[Line]:
    """The values of the pass in order; those of one block, which stand for all."""
    rows = []
    for name, shape in told["shapes"].items():
        if name.startswith("layers.") and not name.startswith("layers.0."):
            continue
        if name == "layers.0.input_layernorm":
            rows.append([f"{told['model']['layers']} blocks, each:", "", "", ""])
        what = part(lm.config, name)
        short = name.replace("layers.0.", "  ")
        rows.append([short, str(shape), what.letters, source(what.function, what.line)])
    return table(["value", "shape", "", "computed by"], rows, "llll")


def next_tokens(told: dict[str, Any], bar: str) -> list[Line]:
    """The likeliest next tokens."""
    rows = [
        [
            str(rank),
            str(token["id"]),
            label(token),
            percent(token["probability"]),
            bar * round(30 * np.nan_to_num(token["probability"])),
        ]
        for rank, token in enumerate(told["next"], start=1)
    ]
    return table(["", "id", "token", "probability", ""], rows, "rrlrl")


def lens(told: dict[str, Any]) -> list[Line]:
    """The likeliest tokens after each block."""
    rows = [
        [
            "embedding" if row["layer"] is None else str(row["layer"]),
            *(f"{padded(label(token), LABEL)} {percent(token['probability']):>9}" for token in row["likeliest"]),
        ]
        for row in told["lens"]
    ]
    count = len(rows[0]) - 1
    return table(["after block", *["likeliest", "second", "third"][:count]], rows, "r" + "l" * count)


def attention(told: dict[str, Any], width: int, shades: str, colour: bool) -> list[Line]:
    """The heat map of one head; and of each row, the token that it looks at most."""
    weights = np.asarray(told["attention"])
    there = len(weights)
    shown = list(window(there, told["token"], max(2, (width - LABEL - 30) // 2)))
    cells = weights[np.ix_(shown, shown)]
    lines: list[Line] = [[(" " * (LABEL + 8) + "".join(f"{i % 100:<2}" for i in shown), FAINT)]]
    drawn = zip(shown, cells, darkness(cells), characters(cells, shades), strict=True)
    for position, row, dark, text in drawn:
        spans: Line = [(f"{position:6}  {padded(label(told['tokens'][position]), LABEL)}", "")]
        for weight, shade, character in zip(row, dark, text, strict=True):
            heat = colour and weight > 0
            spans.append(("  ", f"on {heat_colour(shade)}") if heat else (2 * character, ""))
        all_of_row = weights[position]
        most = int(np.argmax(np.nan_to_num(all_of_row, nan=-1.0)))
        where = padded(label(told["tokens"][most]), LABEL).rstrip()
        spans.append((f"  {percent(float(all_of_row[most])):>6} on {most} {where}", FAINT))
        lines.append(spans)
    steps = "  ".join(f"{shade} from {100 * bound:.3g} %" for shade, bound in zip(shades, bounds(shades), strict=True))
    lines.append([(f"  {steps}", FAINT)] if not colour else heat_legend())
    if len(shown) < there:
        lines.append([(f"  the first token and those up to {shown[-1]}, of {there}; --token moves them", FAINT)])
    return lines


def heat_colour(dark: float) -> str:
    """From a dark blue for a thousandth, over green, to a light yellow for 1: the lighter, the more, also in grey."""
    red, green, blue = (0x26, 0x20, 0xF7), (0x2A, 0x88, 0xE4), (0x5C, 0x8C, 0x6E)
    return "#" + "".join(f"{round(np.interp(dark, (0.0, 0.5, 1.0), stops)):02x}" for stops in (red, green, blue))


def heat_legend() -> Line:
    """What the colours mean."""
    weights = np.array([0.001, 0.01, 0.1, 1.0])
    line: Line = [("  ", "")]
    for weight, dark in zip(weights.tolist(), darkness(weights).tolist(), strict=True):
        line += [("  ", f"on {heat_colour(dark)}"), (f" {100 * weight:g} %   ", FAINT)]
    return line


def norms(told: dict[str, Any]) -> list[Line]:
    """The lengths of what attention and feed-forward network add, and of the residual stream after that."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f}"

    rows = [
        [
            "embedding" if row["layer"] is None else str(row["layer"]),
            number(row["attention"]),
            number(row["feedforward"]),
            number(row["residual"]),
        ]
        for row in told["norms"]
    ]
    return table(["after block", "attention adds", "feed-forward adds", "residual stream"], rows, "rrrr")


def cache(told: dict[str, Any]) -> list[Line]:
    """The memory of the keys and values."""
    held, context = told["kv_cache"], told["model"]["context"]
    return [
        [
            (
                f"  {held['bytes_per_token']:,} bytes per token, {format_bytes(held['bytes'])} for this text,"
                f" {format_bytes(held['bytes_per_token'] * context)} for the whole context of {context:,}",
                "",
            )
        ]
    ]


def cost(told: dict[str, Any]) -> list[Line]:
    """Arithmetic and bytes read, for the text at once and for one more token with the cache."""

    def cells(part: dict[str, Any]) -> list[str]:
        read = part["weight_bytes"] + part["cache_bytes"]
        return [amount(part["flops"]) if part["flops"] else "-", format_bytes(read) if read else "-"]

    both = zip(told["cost"]["text"], told["cost"]["next_token"], strict=True)
    rows = [[text["part"], *cells(text), *cells(one)] for text, one in both]
    return table(["part", "FLOPs of the text", "reads", "FLOPs of one more token", "reads"], rows, "lrrrr")
