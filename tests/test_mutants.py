"""The mutants fit the source and the tests; tools/checks/mutate.py runs them."""

from pathlib import Path

import pytest
from bridge import tool

mutate = tool("mutate")
NPLLM = Path(__file__).parent.parent / "npllm"
COVERED = ("checkpoint", "text", "storage", "families")  # every module of these has mutants
EXEMPT = ("families.family",)  # types only, with no line that could compute a wrong value
MODULES = [
    ".".join(path.relative_to(NPLLM).with_suffix("").parts)
    for folder in COVERED
    for path in sorted((NPLLM / folder).glob("*.py"))
    if path.stem != "__init__"
]


def test_every_mutant_fits_the_source_and_the_tests():
    found = {f"{mutant.file}: {mutant.bug}": mutate.problems(mutant) for mutant in mutate.read_mutants()}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_no_two_mutants_have_the_same_name():
    names = [(mutant.file, mutant.bug) for mutant in mutate.read_mutants()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", [module for module in MODULES if module not in EXEMPT])
def test_a_module_that_reads_or_stores_models_has_mutants(module):
    assert (mutate.MUTANTS / f"{module}.toml").is_file()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"old": "return y if bias is None"}, None),
        ({"old": "return z"}, "occurs 0 times: 'return z'"),
        ({"old": "bias"}, "occurs"),
        ({"new": "return y if bias is None"}, "old and new are the same"),
        ({"tests": ()}, "names no tests"),
        ({"tests": ("test_linear.py::test_nothing",)}, "there is no test test_linear.py::test_nothing"),
        ({"tests": ("test_nothing.py::test_it_is_the_loop",)}, "there is no test test_nothing.py::test_it_is_the_loop"),
        ({"file": "nothing.py"}, "there is no such file"),
    ],
)
def test_an_outdated_mutant_is_named(entry, problem, capsys):
    tests = ("test_linear.py::test_it_is_the_loop[numpy]",)
    mutant = mutate.Mutant("linear.py", "a bug", "return y if bias is None", "return z", tests)._replace(**entry)
    assert mutate.check([mutant]) == (0 if problem is None else 1)
    assert (problem or "every mutant fits") in capsys.readouterr().out
