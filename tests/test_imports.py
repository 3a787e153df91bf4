"""Import structure: no import cycles, and a small import stays small."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import npllm

PACKAGE = Path(npllm.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(name: str) -> set[str]:
    """The npllm modules that a module imports: at the top, inside functions and under TYPE_CHECKING."""
    is_package = FILES[name].name == "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        parents = name.split(".") if is_package else name.split(".")[:-1]
        base = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
        modules = {f"{base}.{alias.name}" for alias in node.names} & FILES.keys()
        found |= modules or {base}
    return found


def test_no_module_imports_itself_in_a_circle():
    graph = {name: imported(name) for name in FILES}
    assert sum(len(modules) for modules in graph.values()) > len(graph)  # imports are found
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def loaded_after(code: str) -> set[str]:
    """The modules loaded after running the code in a fresh process."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("import npllm", {"numpy", "jinja2", "tokenizers", "huggingface_hub", "tqdm", "safetensors"}),
        ("from npllm.rope import apply_rope", {"jinja2", "tokenizers", "huggingface_hub", "tqdm", "safetensors"}),
        ("from npllm.lm import forward", {"jinja2", "tokenizers", "huggingface_hub", "tqdm", "safetensors"}),
        ("from npllm.loop import steps", {"jinja2", "tokenizers", "huggingface_hub", "safetensors"}),
        ("import npllm.cli.main", {"jinja2", "tokenizers", "huggingface_hub", "tqdm", "safetensors"}),
        ("import npllm.checkpoint.load", {"jinja2", "huggingface_hub"}),
    ],
)
def test_a_library_is_imported_where_it_is_needed(code, unneeded):
    assert loaded_after(code) & unneeded == set()
