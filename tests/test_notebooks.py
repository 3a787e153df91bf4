"""docs/notebooks: small, without traces of a machine, and it shows what it says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bridge import tool_path
from default_model import needs_default_model

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
MISSING = [name for name in ("nbclient", "ipykernel", "matplotlib") if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_no_traces_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert len(text.encode()) < 200_000
    assert not re.search(r"/(tmp|home|root|work|usr)/|<iframe|text/html|stderr|site-packages|Traceback", text)
    assert [cell["metadata"] for cell in cells if cell["metadata"] not in ({}, {"tags": ["varies"]})] == []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)], (
        "run it: python tools/docs/notebook.py"
    )
    for cell in code:
        compile(re.sub("^%.*", "", "".join(cell["source"])), path.name, "exec")


@pytest.mark.slow
@needs_default_model
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[docs]')")
def test_the_notebook_runs_and_shows_what_it_says():
    command = [sys.executable, str(tool_path("notebook")), "--check"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}  # compiled loops, a tenth of NumPy's time
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
