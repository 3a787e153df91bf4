"""Tests and tools are connected only by tests/bridge.py."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS, TOOLS = sorted((ROOT / "tests").glob("*.py")), sorted((ROOT / "tools").rglob("*.py"))
BRIDGE = "bridge"


def imported(path):
    """The names of all modules that a file imports, including those by import_module("name")."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(".")[0] for name in names if name}


@pytest.mark.parametrize("path", [path for path in TESTS if path.stem != BRIDGE], ids=lambda path: path.stem)
def test_a_test_imports_no_tool(path):
    assert imported(path) & {"tools", *(tool.stem for tool in TOOLS)} == set()


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_imports_no_test(path):
    assert imported(path) & {"tests", *(test.stem for test in TESTS)} <= {BRIDGE}


def test_tools_have_names_of_their_own():
    names = [path.stem for path in (*TESTS, *TOOLS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_says_how_to_run_it(path):
    name = path.relative_to(ROOT).as_posix()
    assert f"\n    python {name}" in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
