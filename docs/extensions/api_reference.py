"""A Sphinx extension: the page docs/api.md, filled from the signatures and docstrings of the public names.

A signature is shown as it is written in the source, a parameter per line. The sections of a docstring ("Parameters",
a line of hyphens) become lists, its examples code.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import npllm

# Public names whose documentation others refer to.
MORE = (
    "npllm.apps.pipeline.TextGeneration.__call__",
    "npllm.loop.steps",
    "npllm.model.transform",
    "npllm.apps.speculation.prompt_lookup",
    "npllm.apps.speculation.draft_model",
    "npllm.apps.chat.Chat",
    "npllm.cache.empty_cache",
    "npllm.inspect.patch.zero_head",
    "npllm.inspect.patch.zero_neuron",
    "npllm.inspect.view.View",
)
SECTIONS = ("Parameters", "Returns", "Raises")


def names() -> list[str]:
    """The names on the page, with their modules."""
    return [f"npllm.{name}" for name in npllm.__all__ if name != "__version__"] + list(MORE)


def found(name: str) -> Any:
    """The object of that name."""
    value: Any = npllm
    for part in name.split(".")[1:]:
        value = getattr(value, part, None) or importlib.import_module(f"{value.__name__}.{part}")
    return value


def reference() -> str:
    """The page's text, in Markdown."""
    return "\n".join(line for name in names() for line in entry(name, found(name), "##"))


def entry(name: str, value: Any, heading: str) -> Iterator[str]:
    """A heading, the signature or the fields, and the docstring; of a class also its methods."""
    yield f"{heading} `{name}`\n"
    if inspect.isclass(value):
        yield from code(fields(value), "python")
    else:
        yield from code(signature(value), "python")
    yield from documented(value)
    if inspect.isclass(value):
        for method, one in vars(value).items():
            if inspect.isfunction(inspect.unwrap(one) if callable(one) else None) and not method.startswith("_"):
                yield from entry(f"{name}.{method}", one, f"{heading}#")


def signature(function: Any) -> str:
    """The signature as the source has it: a parameter per line, unless all fit."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(tree, ast.FunctionDef)
    arguments, result = tree.args, f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    short = f"{tree.name}({ast.unparse(arguments)}){result}"
    if len(short) <= 80:
        return short
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    lines = [*map(parameter, positional, defaults)]
    lines += ["*"] * bool(arguments.kwonlyargs)
    lines += map(parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        lines.append(f"**{parameter(arguments.kwarg, None)}")
    return f"{tree.name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){result}"


def parameter(one: ast.arg, default: ast.expr | None) -> str:
    """A parameter with its annotation and its default."""
    return ast.unparse(one) + (f" = {ast.unparse(default)}" if default else "")


def fields(value: type) -> str:
    """The fields of a NamedTuple, with the comments that explain them; of another class its constructor."""
    source = textwrap.dedent(inspect.getsource(value)).splitlines()
    kept = [line.rstrip() for line in source if re.match(r"    \w+: ", line)]
    if not hasattr(value, "_fields"):
        return signature(value.__init__).replace("__init__", value.__name__).replace("self, ", "")
    return "\n".join([f"class {value.__name__}(NamedTuple):", *kept])


def documented(value: Any) -> Iterator[str]:
    """A docstring in Markdown."""
    paragraphs, text = [], inspect.getdoc(value) or ""
    for block in re.split(r"\n{2,}", text):
        title, _, rest = block.partition("\n")
        if title in SECTIONS and set(rest.partition("\n")[0]) == {"-"}:
            paragraphs += [f"**{title}**", *items(rest.partition("\n")[2])]
        elif block.startswith(">>> "):
            paragraphs.append("\n".join(code(block, "pycon")))
        elif block.startswith("    ") or ("\n    " in block and " : " in block):
            paragraphs += items(block)
        else:
            paragraphs.append(escaped(block))
    yield "\n\n".join(paragraphs) + "\n"


def items(block: str) -> list[str]:
    """The "name : text" lines of a section as a list; anything else as it is."""
    lines: list[str] = []
    for line in block.splitlines():
        if line.startswith("    ") and lines:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    pairs = [re.fullmatch(r"([\w, .*]+) : (.*)", line) for line in lines]
    if not any(pairs):
        return [escaped(block)]
    found = zip(pairs, lines, strict=True)
    return ["\n".join(f"- `{pair[1]}`: {escaped(pair[2])}" if pair else f"- {escaped(line)}" for pair, line in found)]


def escaped(text: str) -> str:
    """Text in which Markdown finds nothing but code between backquotes."""
    pieces = re.split(r"(`[^`\n]*`)", text)
    return "".join(piece if i % 2 else re.sub(r"([\\*_\[\]<>#|$~])", r"\\\1", piece) for i, piece in enumerate(pieces))


def code(text: str, language: str) -> list[str]:
    """A block of code."""
    return [f"```{language}", text, "```\n"]


def fill(app: Any, page: str, source: list[str]) -> None:
    """Put the reference at the end of its page."""
    if page == "api":
        source[0] += "\n" + reference()


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
