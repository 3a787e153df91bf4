"""The only link between tests/ and tools/: tests get tools from here, and tools get the tests' tolerances.

A tool that needs it puts tests/ on sys.path. test_tools.py checks that there is no other link.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from tolerance import TOP_LOGIT, assert_close, assert_same_ids

__all__ = ["TOP_LOGIT", "assert_close", "assert_same_ids", "tool", "tool_path"]

TOOLS = Path(__file__).parent.parent / "tools"


def tool_path(name: str) -> Path:
    """The file of a tool, to run it in a process of its own."""
    [path] = TOOLS.rglob(f"{name}.py")
    return path


def tool(name: str) -> ModuleType:
    """A tool as a module. Its folder goes on sys.path, as when the tool runs as a script."""
    folder = str(tool_path(name).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
