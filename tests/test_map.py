"""docs/map.md: every figure, heading and code cell of the chapter has a function, a test and a page that exist."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
FIGURES, HEADINGS, CELLS = (
    [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", part, re.MULTILINE)][2:]
    for part in MAP.split("\n## ")[1:]
)
# The number of each, counted in the chapter itself, which is not in the repository.
FIGURE_NUMBERS = [f"3-{n}" for n in range(1, 34)]
BOOK_HEADINGS, NOTES_HEADINGS, BOOK_CELLS, NOTES_CELLS = 24, 4, 10, 2
ROWS = [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in [*FIGURES, *HEADINGS, *CELLS]]


def every_test() -> set[str]:
    """Every test, as `test_file.py::test_name`."""
    return {
        f"{path.name}::{node.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


TESTS = every_test()


def found(dotted: str) -> object:
    """The object with a dotted name. npllm.generate is both a module and a function; here it is the module."""
    parts = dotted.split(".")
    files = range(len(parts), 0, -1)
    end = next(n for n in files if (path := ROOT.joinpath(*parts[:n])).is_dir() or path.with_suffix(".py").exists())
    return functools.reduce(getattr, parts[end:], importlib.import_module(".".join(parts[:end])))


def test_every_figure_heading_and_cell_is_listed_once():
    assert [row[0] for row in FIGURES] == FIGURE_NUMBERS
    assert [row[0] for row in HEADINGS] == [str(n) for n in range(1, 1 + BOOK_HEADINGS + NOTES_HEADINGS)]
    assert [row[0] for row in CELLS] == [str(n) for n in range(1, 1 + BOOK_CELLS + NOTES_CELLS)]
    for rows in (FIGURES, HEADINGS, CELLS):
        assert len({row[1] for row in rows}) == len(rows)
        assert {len(row) for row in rows} == {5}


@pytest.mark.parametrize(("functions", "tests", "pages"), ROWS)
def test_its_functions_its_tests_and_its_pages_are_there(functions, tests, pages):
    names = re.findall(r"`(npllm\.[\w.]+)`", functions)
    assert names
    assert all(callable(found(name)) for name in names)
    named = re.findall(r"`([\w.:]+)`", tests)
    assert named
    assert set(named) <= TESTS
    linked = re.findall(r"\]\(([\w-]+\.md)\)", pages)
    assert linked
    assert all((ROOT / "docs" / page).exists() for page in linked)


def test_each_page_of_the_chapter_names_its_figures_as_the_map_does():
    """A page names its figures in its first lines, and the map links each figure to that page."""
    for name in {re.search(r"\(([\w-]+)\.md\)", row[4])[1] for row in FIGURES}:
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        said = re.search(r"Figures? ((?:3-\d+(?: to | and |, )?)+)", page[: page.index("*\n\n", 10)])[1]
        numbers = [int(n) for n in re.findall(r"3-(\d+)", said)]
        if " to " in said:
            numbers = list(range(numbers[0], numbers[1] + 1))
        assert numbers == [int(row[0][2:]) for row in FIGURES if f"({name}.md)" in row[4]], f"docs/{name}.md"
