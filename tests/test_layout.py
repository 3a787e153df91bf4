"""Each module of npllm has a test file of its name, or stands here with the file that tests it."""

import re
from pathlib import Path

import pytest

import npllm

PACKAGE, TESTS = Path(npllm.__file__).parent, Path(__file__).parent
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py", "version.py")
)
ELSEWHERE = {
    "apps/generation": "calls",
    "errors": "cli_main",  # each class by its exit code
    "checkpoint/folder": "checkpoint",
    "checkpoint/hub_api": "hub",
    "checkpoint/hub_cache": "hub",
    "checkpoint/hub_http": "hub",
    "checkpoint/load": "checkpoint",
    "checkpoint/quantized": "convert",
    "checkpoint/write": "convert",
    "checkpoint/gguf_config": "gguf",
    "cli/chat_commands": "cli_chat",
    "cli/turns": "cli_chat",
    "cli/engines": "cli_batch",
    "cli/options": "cli_main",
    "cli/parser": "cli_main",
    "cli/report": "cli_main",
    "compiled/jit": "compiled_team",
    "compiled/records": "compiled_products",
    "compiled/exp": "compiled_layers",
    "compiled/fit": "compiled_step",
    "compiled/cpu": "compiled_step",
    "corpus/names": "corpus_records",
    "harness/adapter": "harness",
    "harness/options": "harness",
    "corpus/vectors": "corpus_journal",
    "corpus/work": "corpus_run",
    "cuda/twins": "cuda_kernels",  # each twin beside its kernel
    "devices/dtypes": "cache_dtype",
    "inspect/contents": "page",
    "lab/answers": "lab",
    "lab/generate": "lab",
    "lab/memory": "lab",
    "lab/runs": "lab",
    "lab/server": "cli_lab",
    "inspect/contributions": "view",
    "inspect/funnel": "sampling",
    "inspect/record": "tap",
    "inspect/structure": "cli_show",
    "storage/blocks": "gguf_blocks",
    # A family's config is tested in test_config.py, its pass in test_families.py and test_golden.py.
    **{module: "families" for module in MODULES if module.startswith("families/")},
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_test_file(module):
    wing, _, name = module.rpartition("/")
    own = [TESTS / f"test_{name}.py", TESTS / f"test_{wing}_{name}.py"]
    if module in ELSEWHERE:
        own.append(TESTS / f"test_{ELSEWHERE[module]}.py")
    assert any(path.is_file() for path in own)


def test_no_exception_is_out_of_date():
    assert {*ELSEWHERE} <= {*MODULES}


def test_the_files_in_contributing_md_exist():
    text = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lists = re.findall(r"`tests/test_(\w*)\{([\w,]+)\}\.py`", text)
    names = [prefix + name for prefix, names in lists for name in names.split(",")]
    assert len(names) > 50
    assert [name for name in names if not (TESTS / f"test_{name}.py").is_file()] == []


def test_the_files_in_security_md_exist():
    text = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:tests|tools|\.ci)/[\w./]*)`", text)
    assert len(names) > 10
    assert [name for name in names if not (TESTS.parent / name).exists()] == []
