"""A Sphinx extension: links from the pages to the source, which the site contains, one page for each file named.

A path such as `npllm/rope.py`, a name such as `npllm.rope.apply_rope`, a name that a session of the page imports from
npllm, and the caption of each included piece of code become links.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".js": "javascript", ".css": "css", ".html": "html"}
PATH = re.compile(rf"(?:npllm|tools|tests|docs)/[\w/]+(?:{'|'.join(map(re.escape, LANGUAGES))})")
IMPORT = re.compile(r"^>>> from (npllm[\w.]*) import ([\w, ]+)", flags=re.MULTILINE)
named: dict[str, dict[str, str]] = {}  # the files with links to them, and the pages with these: their titles


def link_to_source(app: Sphinx, page: nodes.document, name: str) -> None:
    """Make links of the literals and of the included code of a page."""
    imported = {
        one.strip(): f"{module}.{one.strip()}"
        for module, names in IMPORT.findall("\n".join(code.astext() for code in page.findall(nodes.literal_block)))
        for one in names.split(",")
    }
    title = next(iter(page.findall(nodes.title)), nodes.title()).astext()

    def link(text: str, path: str, line: int) -> nodes.reference:
        named.setdefault(path, {})[name] = title
        address = app.builder.get_relative_uri(name, f"source/{path}")
        return nodes.reference("", text, refuri=f"{address}#L-{line}" if line > 1 else address, internal=True)

    for literal in list(page.findall(nodes.literal)):
        text = literal.astext().replace("<wbr>", "")  # see layout.py
        found = None if isinstance(literal.parent, nodes.reference) else place(text, imported)
        if found:
            reference = link("", *found)
            literal.replace_self(reference)
            reference.append(literal)
    for code in list(page.findall(nodes.literal_block)):
        if "source" in code and Path(code["source"]).suffix in LANGUAGES:
            file = Path(code["source"]).resolve()
            path = file.relative_to(ROOT).as_posix()
            line = 1 + file.read_text(encoding="utf-8").partition(code.astext().rstrip())[0].count("\n")
            around = code.parent
            if not isinstance(around, nodes.container):
                around = nodes.container("", literal_block=True, classes=["literal-block-wrapper"])
                page.set_id(around)
                code.replace_self(around)
                around += [nodes.caption(), code]
            around[0].clear()
            around[0].append(link(f"{path}, line {line}", path, line))


def place(text: str, imported: dict[str, str]) -> tuple[str, int] | None:
    """The file and the line of what a literal names, if it is in this repository."""
    if PATH.fullmatch(text):
        return (text, 1) if (ROOT / text).is_file() else None
    name = text.partition("(")[0]
    name = imported.get(name, name)
    if not re.fullmatch(r"npllm(\.\w+)+", name):
        return None
    found: Any = importlib.import_module("npllm")
    for part in name.split(".")[1:]:
        if inspect.ismodule(found) and not hasattr(found, part):
            try:
                found = importlib.import_module(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                return None
        else:
            found = getattr(found, part, None)
    try:
        file = inspect.getsourcefile(inspect.unwrap(found))
        line = 1 if inspect.ismodule(found) else inspect.getsourcelines(found)[1]
    except (TypeError, OSError):  # a constant, or a C function
        return None
    return (Path(file).relative_to(ROOT).as_posix(), line) if file and Path(file).is_relative_to(ROOT) else None


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page of each file that has a link to it."""
    for path, pages in sorted(named.items()):
        text, language = (ROOT / path).read_text(encoding="utf-8"), LANGUAGES[Path(path).suffix]
        code = app.builder.highlighter.highlight_block(text, language, linespans="L", force=True)
        address = app.builder.get_relative_uri
        back = ", ".join(
            f'<a href="{address(f"source/{path}", name)}">{escape(title)}</a>' for name, title in pages.items()
        )
        body = f"<h1>{escape(path)}</h1>\n<p>Named in: {back}</p>\n<div class='source'>{code}</div>"
        yield f"source/{path}", {"title": path, "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", link_to_source)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
