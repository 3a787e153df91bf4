"""The house rules: what a module may import, and that docstrings exist and their examples run."""

import ast
import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from default_model import default_lm, needs_default_model

import npllm

PACKAGE = Path(npllm.__file__).parent
READING_ORDER = re.findall(r"^    (\w+)  ", npllm.__doc__, flags=re.MULTILINE)
MATH = READING_ORDER[READING_ORDER.index("embedding") : READING_ORDER.index("model") + 1]
FREE = {"arrays", "shapes", "tap", "errors"}  # allowed everywhere
WINGS = {
    "shapes": {"text"},
    "errors": {"text"},
    "config": {"text"},
    "tokenizer": {"text"},
    "options": {"text"},
    "lm": {"text"},
    "loop": {"devices", "text"},
}  # no other module of the ground floor has exceptions
LIBRARIES = {"array_api_compat"}  # what the math may use besides the standard library


def parsed(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The npllm modules that a ground-floor module imports, and the top-level names of its other imports."""
    own, other = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    assert "npllm" not in other, "a module of the package imports its neighbours as `from .name import ...`"
    return own, other


def test_the_docstring_of_the_package_lists_the_ground_floor():
    there = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "version"}
    assert len(READING_ORDER) == len(set(READING_ORDER))
    assert set(READING_ORDER) == there


@pytest.mark.parametrize("name", READING_ORDER)
def test_a_module_imports_only_modules_above_it(name):
    above = set(READING_ORDER[: READING_ORDER.index(name)])
    assert imports(parsed(name))[0] <= above | FREE | WINGS.get(name, set())


@pytest.mark.parametrize("name", MATH)
def test_the_math_knows_no_array_library(name):
    tree = parsed(name)
    assert imports(tree)[1] <= LIBRARIES | sys.stdlib_module_names
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"np", "numpy", "cp", "cupy", "torch"}


@pytest.mark.parametrize("name", READING_ORDER)
def test_every_public_function_and_class_says_what_it_is(name):
    tree = parsed(name)
    assert ast.get_docstring(tree)
    public = [
        node
        for parent in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef)))
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def examples() -> list:
    """The docstrings with examples in all modules; those that load a model need the default model."""
    found = []
    for info in pkgutil.walk_packages([str(PACKAGE)], "npllm."):
        if not info.name.endswith("__main__"):
            for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(info.name)):
                if test.examples:
                    loads = any("load(" in example.source for example in test.examples)
                    marks = [needs_default_model, pytest.mark.slow] if loads else []
                    found.append(pytest.param(test, id=test.name, marks=marks))
    return found


@pytest.mark.parametrize("test", examples())
def test_the_examples_of_a_docstring_hold(test, monkeypatch):
    monkeypatch.setattr(npllm, "load", default_lm)
    printed = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append, clear_globs=False)
    assert not printed, "".join(printed)


def test_every_example_is_found():
    in_docstrings = sum(
        len(doctest.DocTestParser().get_examples(ast.get_docstring(node) or ""))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    assert sum(len(parameter.values[0].examples) for parameter in examples()) == in_docstrings
