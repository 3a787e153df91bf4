"""Every example in README.md is run and must print what it says: Python sessions, and commands after a `$`.

`...` stands for any text, as in doctest.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from default_model import needs_default_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)\n((?:(?!\$ |```).*\n)*)", README, flags=re.MULTILINE)


def test_the_readme_has_commands_with_output():
    assert len(COMMANDS) >= 5


@needs_default_model
@pytest.mark.parametrize(("command", "expected"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_of_the_readme_prints_what_it_says(command, expected, tmp_path):
    command = command.replace("npllm ", f'"{sys.executable}" -m npllm ', 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    got = done.stdout + "".join(line + "\n" for line in done.stderr.splitlines() if line.startswith("npllm:"))
    assert doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS), f"expected:\n{expected}\ngot:\n{got}"


@needs_default_model
def test_the_python_examples_of_the_readme_hold():
    failed, run = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert run > 0
    assert failed == 0


def test_the_readme_lists_every_module_of_the_ground_floor_in_reading_order():
    listed = re.findall(r"^\| \[`(\w+)\.py`\]", README, flags=re.MULTILINE)
    there = {path.stem for path in (ROOT / "npllm").glob("*.py")} - {"__init__", "__main__", "version"}
    assert len(listed) == len(set(listed))
    assert set(listed) == there
