"""tools/gpu_check.sh: without a GPU every step fails with its reason, and the results are still written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "gpu_check.sh"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_step_that_fails_does_not_stop_the_others(tmp_path):
    for hidden in ("cupy", "pytest"):
        (tmp_path / f"{hidden}.py").write_text("raise ImportError('hidden')\n")
    environment = os.environ | {"PYTHON": sys.executable, "CHECKPOINT": "--preset tiny", "PYTHONPATH": str(tmp_path)}
    command = [str(SCRIPT), str(tmp_path / "found.json"), str(tmp_path / "scratch")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (ran.returncode, found["milliseconds_per_token"]) == (1, {})
    steps = found["steps"]
    assert steps.pop("weights")["exit_code"] == 0
    assert "hidden" in steps.pop("tests")["stderr"]
    assert list(steps) == ["selftest", "decode_kernels", "decode_no-kernels", "chapter"]
    for step in steps.values():
        assert step["exit_code"] == 3
        assert "device cuda:0: CuPy is installed, but cannot be imported (hidden)" in step["stderr"].splitlines()[-1]
