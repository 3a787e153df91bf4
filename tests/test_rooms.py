"""Each folder of npllm lists its modules in its docstring: one per line, in reading order, as `name  contents`."""

import ast
import re
from pathlib import Path

import pytest

import npllm

PACKAGE = Path(npllm.__file__).parent
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_docstring_of_a_folder_lists_its_modules(folder):
    docstring = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")))
    listed = re.findall(r"^(\w+)  +\S", docstring, flags=re.MULTILINE)
    assert len(listed) == len(set(listed)), "a module is listed twice"
    assert set(listed) == {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
