"""The same records through Ray Data: the results of the local engine, also when a worker dies."""

import subprocess
import sys

import pytest
from bridge import tool_path
from checkpoints import write_folder
from test_processes import COMPILED

pytest.importorskip("ray", reason="pip install -e '.[ray]'")
pytestmark = pytest.mark.slow


def test_a_worker_may_die_and_every_record_is_there_once(tmp_path):
    write_folder(tmp_path / "tiny", model_type="llama", max_position_embeddings=1024)
    command = [sys.executable, tool_path("survive"), "-m", tmp_path / "tiny", "--records", "1000", "--cases", "ray"]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True)
    assert "every record once, equal to its result alone: 975 of 1000" in done.stdout, done.stdout + done.stderr


def test_without_a_cluster_there_is_one_line(tmp_path):
    write_folder(tmp_path / "tiny", model_type="llama")
    (tmp_path / "in.jsonl").write_text('{"ids": [1]}\n')
    command = [sys.executable, "-m", "npllm", "batch", "in.jsonl", "-o", "out.jsonl", "-m", "tiny", "--engine", "ray"]
    done = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], cwd=tmp_path, env=COMPILED, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("npllm: error: --address 127.0.0.1:1: no cluster of Ray: ")
    assert len(done.stderr.splitlines()) == 2
