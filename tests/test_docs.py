"""Runs every example in README.md and docs/ and checks its output: Python sessions, and commands after a `$`.

`...` stands for any text, as in doctest.
"""

import ast
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bridge import tool_path
from default_model import default_lm, needs_default_model

import npllm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
CHAPTER = re.search(r":caption: The chapter\n:maxdepth: 1\n\n((?:[a-z-]+\n)+)", PAGES["index"])[1].split()
COMMANDS = [
    pytest.param(command, expected, id=f"{name}: {command}", marks=[] if name == "README" else pytest.mark.slow)
    for name, text in {"README": README, **PAGES}.items()
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ |```).*\n)*)", text, flags=re.MULTILINE)
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_the_readme_has_commands_with_output():
    assert len(COMMANDS) >= 5


@needs_default_model
@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_a_command_prints_what_it_says(command, expected, tmp_path):
    command = command.replace("npllm ", f'"{sys.executable}" -m npllm ', 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    got = done.stdout + "".join(line + "\n" for line in done.stderr.splitlines() if line.startswith("npllm:"))
    assert doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS), f"expected:\n{expected}\ngot:\n{got}"


@needs_default_model
def test_the_python_examples_of_the_readme_hold(monkeypatch):
    monkeypatch.setattr(npllm, "load", default_lm)
    failed, run = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=FLAGS)
    assert run > 0
    assert failed == 0


def test_the_readme_lists_every_module_of_the_ground_floor_in_reading_order():
    listed = re.findall(r"^\| \[`(\w+)\.py`\]", README, flags=re.MULTILINE)
    there = {path.stem for path in (ROOT / "npllm").glob("*.py")} - {"__init__", "__main__", "version"}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


@pytest.fixture(scope="module")
def lm() -> npllm.LM:
    """The default model, loaded once for all pages; npllm.load() returns it on each of them."""
    return default_lm()


def sessions(page: str) -> str:
    """The page's Python sessions, with everything else blanked out so that line numbers in messages match the page."""
    kept, inside = [], False
    for line in page.splitlines():
        inside = line == "```pycon" or (inside and line != "```")
        kept.append(line if inside and line != "```pycon" else "")
    return "\n".join(kept)


def test_every_page_of_the_chapter_has_a_session():
    assert len(CHAPTER) > 15
    assert [name for name in CHAPTER if ">>> " not in sessions(PAGES[name])] == []


def test_every_session_is_found():
    assert {name: text.count("\n>>> ") for name, text in PAGES.items()} == {
        name: sessions(text).count("\n>>> ") for name, text in PAGES.items()
    }


# More than a second each.
SLOW_PAGES = ("library", "loop", "feedforward", "cache", "corpus", "looking", "notebook", "performance")
WITH_SESSIONS = [name for name, text in PAGES.items() if ">>> " in sessions(text)]


@needs_default_model
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_PAGES else []) for name in WITH_SESSIONS]
)
def test_the_sessions_of_a_page_hold(name, lm, monkeypatch):
    monkeypatch.setattr(npllm, "load", lambda: lm)
    monkeypatch.chdir(ROOT)  # a page may load a model of tests/golden
    known = {"np": np, "npllm": npllm, "lm": lm}  # the three lines every session starts with, see docs/index.md
    session = doctest.DocTestParser().get_doctest(sessions(PAGES[name]), known, name, f"docs/{name}.md", 0)
    printed = []
    doctest.DocTestRunner(optionflags=FLAGS).run(session, out=printed.append)
    assert not printed, "".join(printed)


def test_the_modules_that_a_page_names_exist():
    named = {path for text in (README, *PAGES.values()) for path in re.findall(r"`(npllm/[\w/]+\.py)`", text)}
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_figure_that_is_drawn_is_shown_and_the_other_way_round():
    tree = ast.parse(tool_path("figures").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    drawn = [node.name for node in functions if isinstance(node.returns, ast.Name) and node.returns.id == "Figure"]
    shown = re.findall(r"^```\{figure\} figures/(\w+)\.svg$", "\n".join(PAGES.values()), flags=re.MULTILINE)
    assert sorted(shown) == sorted(drawn)


def test_the_pictures_of_the_readme_are_there_and_small_and_have_a_text():
    pictures = re.findall(r"^!\[(.*)\]\((.*)\)$", README, flags=re.MULTILINE)
    assert len(pictures) == 2
    for text, path in pictures:
        assert len(text) > 80
        assert (ROOT / path).stat().st_size < 150_000


def test_every_figure_has_a_text_for_those_who_cannot_see_it():
    for name, text in PAGES.items():
        for figure in re.findall(r"^```\{figure\}.*?^```$", text, flags=re.MULTILINE | re.DOTALL):
            alt = re.search(r"^alt: >-\n((?:  .+\n)+)", figure, flags=re.MULTILINE)
            assert alt, f"docs/{name}.md: expected an alt text, got {figure.splitlines()[0]}"
            assert len(alt[1]) > 80
