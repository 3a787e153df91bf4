"""The page of `npllm inspect --html`: one self-contained file that makes no requests.

It shows one `Look`, embedded as JSON with arrays in base64 (`contents`). The page's script renders it; the content
security policy allows that script and style, by their hashes, and nothing else.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..lm import LM
from ..storage.files import write_file
from .contents import SECTIONS, contents, labels, needed_labels
from .look import Look

LARGEST = 24_000_000  # bytes of attention weights: browsers handle pages of about 40 MB
LAB = ("requests", "run", "cells", "text", "edits", "heads", "attribution", "patching")  # lab_*.js
IN_LAB = ("funnel", "tokens", "attention", "lens", "norms", "flow", "cache", "cost", "source")  # sections, in order
VIEWS = ("tokens", "shapes", "attention", "lens", "norms", "funnel", "cache", "cost", "source")  # scripts that draw


def check_direction(lm: LM) -> None:
    """Refuse a model whose tokens see later ones, for which there is no page."""
    if lm.config.bidirectional:
        raise UsageError(f"a page needs a model whose tokens see only earlier ones, got {lm.config.family}")


def check_page(lm: LM, ids: Sequence[int]) -> None:
    """Refuse a text that is too long for a page, before computing anything."""
    maps = lm.config.num_hidden_layers * lm.config.num_attention_heads
    most = math.isqrt(2 * LARGEST // maps)
    if len(ids) > most:
        raise UsageError(
            f"--html: expected at most {most} tokens, because the page holds {maps} attention maps of tokens x tokens,"
            f" got {len(ids)}; the text output takes any length"
        )


def page(
    seen: Look,
    prompt_length: int,
    name: str,
    only: Sequence[str] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> str:
    """The page as HTML.

    Parameters
    ----------
    prompt_length : the number of prompt tokens; the model generated the rest
    name : the name of the model
    only : sections, by their names in `SECTIONS`. The page then has nothing else, no header either, and is small enough
        for a frame in another page; by default it is whole
    heads : the (layer, head) pairs whose attention maps are in the page; by default all. A single map is shown large

    Raises
    ------
    UsageError : there is no such section, layer or head, or no attention was recorded there; tokens see later ones
    """
    check_direction(seen.lm)
    check_sections(seen, only, heads)
    data = contents(seen, prompt_length, name, SECTIONS if only is None else only, heads)
    whole = range(seen.lm.config.vocab_size)
    data["vocabulary"] = labels(seen.lm, whole) if only is None else needed_labels(seen, data)
    template = read("page.html")
    if only is not None:
        template = part_of(template, only)
    style, script = read("page.css"), joined("common", "head", *VIEWS, "start")
    parts = {
        "style": style,
        "script": script,
        "style_hash": content_hash(style),
        "script_hash": content_hash(script),
        "data": embedded(data),
    }
    return filled(template, parts)


def lab_page() -> tuple[str, str]:
    """The page of `npllm lab` as HTML, and its content security policy: it may ask its own server only."""
    template = read("page.html")
    style = read("page.css") + read("lab.css")
    script = joined("common", "head", *VIEWS, *(f"lab_{part}" for part in LAB), "lab")
    policy = (
        f"default-src 'none'; style-src '{content_hash(style)}'; script-src '{content_hash(script)}';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    sections = {name: text for text, name in re.findall(r'(<section id="(\w+)".*?</section>\n)', template, re.DOTALL)}
    parts = {
        "style": style,
        "script": script,
        "policy": policy,
        "sections": "\n".join(sections[name] for name in IN_LAB),
        "dialog": re.search(r"<dialog.*?</dialog>\n", template, re.DOTALL)[0],  # type: ignore[index]  # there is one
    }
    return filled(read("lab.html"), parts), policy


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with its {{variables}} replaced, in one pass: what is put in may contain {{style}}."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def joined(*names: str) -> str:
    """Some of the page's scripts, as one."""
    return "\n\n".join(read(f"{name}.js") for name in names)


def check_sections(seen: Look, only: Sequence[str] | None, heads: Sequence[tuple[int, int]] | None) -> None:
    """Refuse names of sections and heads that do not exist."""
    unknown = [name for name in only or () if name not in SECTIONS]
    if unknown or isinstance(only, str):
        got = only if isinstance(only, str) else unknown[0]
        raise UsageError(f"only: expected a list of {', '.join(map(repr, SECTIONS))}, got {got!r}")
    for layer, head in heads or ():
        there = range(seen.lm.config.num_attention_heads)
        if head not in there or f"layers.{layer}.attention.weights" not in seen.values:
            layers = seen.lm.config.num_hidden_layers
            raise UsageError(
                f"heads: expected layers that were looked at (0 to {layers - 1}) and heads 0 to {there.stop - 1},"
                f" got ({layer}, {head})"
            )


def part_of(template: str, only: Sequence[str]) -> str:
    """The template with these sections only, and without header and footer."""
    gone = r"<a class=\"skip\".*?</a>\n|<(header|footer) class=\"page\">.*?</\1>\n"
    template = re.sub(gone, "", template, flags=re.DOTALL)
    if "attention" not in only:
        template = re.sub(r"<dialog.*?</dialog>\n", "", template, flags=re.DOTALL)
    keep = re.compile(r'<section id="(\w+)".*?</section>\n*', re.DOTALL)
    return keep.sub(lambda found: found[0] if found[1] in only else "", template)


def write_page(path: str | Path, text: str) -> None:
    """Write the page to a file, atomically; an existing file is replaced. See `write_file`."""
    write_file(path, [text.encode()])


def read(name: str) -> str:
    """One of the page's files, from the folder `page` beside this module."""
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """The SHA-256 by which a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON that is safe in an HTML script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
