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
    (tmp_path / "cupy.py").write_text("raise ImportError('hidden')\n")
    (tmp_path / "pytest.py").write_text("raise ImportError('hidden')\n")
    environment = os.environ | {"PYTHON": sys.executable, "CHECKPOINT": "--preset tiny", "PYTHONPATH": str(tmp_path)}
    command = [str(SCRIPT), str(tmp_path / "found.json"), str(tmp_path / "scratch")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert ran.returncode == 1
    assert list(found) == ["selftest", "decode", "decode_no_kernels", "chapter"], "no tests without pytest"
    for step in found.values():
        assert step["exit_code"] == 3
        assert "device cuda:0: CuPy is installed, but cannot be imported (hidden)" in step["stderr"][-1]
    assert (tmp_path / "scratch" / "model" / "config.json").exists()
