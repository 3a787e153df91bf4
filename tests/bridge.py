"""The only link between tests/ and tools/: tests import tools from here, and tools import the tests' tolerances.

A tool that needs this module puts tests/ on sys.path. test_tools.py checks that there is no other link.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from tolerance import TOP_LOGIT, assert_close, assert_same_ids

__all__ = ["TOP_LOGIT", "assert_close", "assert_same_ids", "tool", "tool_path"]

TOOLS = Path(__file__).parent.parent / "tools"


def tool_path(name: str) -> Path:
    """The path of a tool, for running it in a separate process."""
    [path] = TOOLS.rglob(f"{name}.py")
    return path


def tool(name: str) -> ModuleType:
    """A tool, imported as a module. Its folder is added to sys.path, as when it runs as a script."""
    folder = str(tool_path(name).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
