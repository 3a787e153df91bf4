"""npllm models: the families that npllm computes."""

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any

from ..checkpoint.hub import DEFAULT_FILE
from ..families import ALL
from ..families.family import Family
from . import report

DESCRIPTION = """\
List the families of models that npllm computes: the model_types in config.json,
what is special about each, the classification heads besides the LM head, the
architecture in .gguf files, and what the results were compared with.

-m default names the default model, SmolLM2-135M-Instruct (llama).
"""
EXAMPLES = """\
examples:
  npllm models
  npllm models | grep -i qwen
  npllm models --json
"""
HEADINGS = {
    "family": "family",
    "model_types": "model_type",
    "what": "what it is",
    "classifiers": "classification heads",
    "gguf": ".gguf",
    "checked": "compared with",
}
GAP, LEAST = 2, 36  # columns between two columns of the table; the narrowest in which "what it is" can be read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON array, with an object for each family")
    forms.add_argument("--markdown", action="store_true", help="print the table of the README")


def run(args: argparse.Namespace) -> int:
    """Print the families and return the exit code."""
    families = [described(family) for family in ALL]
    if args.json:
        report.write(json.dumps(families, ensure_ascii=not report.writes_all()) + "\n")
    elif args.markdown:
        report.write_lines(markdown(families))
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        report.write_lines(table(families, shutil.get_terminal_size().columns if terminal else None))
        if terminal:  # a pipe gets a line for each family
            report.write_lines(["", f"-m default: {DEFAULT_FILE.partition('.')[0]} (llama)"])
    return 0


def described(family: Family) -> dict[str, Any]:
    """What is said of a family. Its description is the first line of its file, after the colon."""
    first, *_ = (sys.modules[family.read_config.__module__].__doc__ or ":").splitlines()
    return {
        "family": family.title,
        "model_types": [*family.model_types],
        "what": first.partition(": ")[2].rstrip("."),
        "classifiers": [*family.classifiers],
        "gguf": family.gguf.architecture if family.gguf else None,
        "checked": [*family.checked, *([family.gguf.checked] if family.gguf and family.gguf.checked else [])],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """The texts of a family's row."""
    return [", ".join(value) if isinstance(value, list) else value or "" for value in row.values()]


def markdown(families: list[dict[str, Any]]) -> list[str]:
    """The table of the README."""
    code = [
        row | {"model_types": [f"`{name}`" for name in row["model_types"]], "gguf": row["gguf"] and f"`{row['gguf']}`"}
        for row in families
    ]
    rows = [[*HEADINGS.values()], ["---"] * len(HEADINGS), *map(cells, code)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def table(families: list[dict[str, Any]], width: int | None) -> list[str]:
    """A row for each family; where that is too wide, a paragraph. Without a width (a pipe) each row is one line."""
    rows = [[*HEADINGS.values()], *map(cells, families)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    wide = [*HEADINGS].index("what")
    if width is not None:
        widths[wide] = min(widths[wide], width - sum(widths) + widths[wide] - GAP * (len(widths) - 1))
        if widths[wide] < LEAST:
            return "\n\n".join(paragraph(row, width) for row in rows[1:]).split("\n")
    lines = []
    for row in rows:
        texts = [textwrap.wrap(text, widths[wide]) if column == wide else [text] for column, text in enumerate(row)]
        for i in range(max(len(text) for text in texts)):
            parts = [text[i] if i < len(text) else "" for text in texts]
            padded = [part.ljust(size) for part, size in zip(parts, widths, strict=True)]
            lines.append((" " * GAP).join(padded).rstrip())
    return lines


def paragraph(row: list[str], width: int) -> str:
    """A family in a narrow terminal: its name, and below it each of the other texts with its heading."""
    texts = [f"{heading}: {text}" for heading, text in zip(HEADINGS.values(), row, strict=True) if text]
    lines = [
        textwrap.wrap(text, max(width, 20), initial_indent="  ", subsequent_indent="    ", break_long_words=False)
        for text in texts[1:]
    ]
    return "\n".join([row[0], *(line for wrapped in lines for line in wrapped)])
