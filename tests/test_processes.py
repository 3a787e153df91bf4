"""Several processes with the model: the same results, nothing lost however they end, within the memory they said."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from bridge import tool_path
from checkpoints import write_folder
from command_line import ROOT, unix

from npllm.corpus.model_hash import model_hash
from npllm.corpus.processes import Model, Processes
from npllm.corpus.records import Task
from npllm.corpus.run import Limits, computed
from npllm.errors import ModelFileError, UnavailableError

COMPILED = os.environ | {"NUMBA_DISABLE_JIT": "0", "PYTHONPATH": str(ROOT)}  # results are compared exactly
npllm = importlib.import_module("npllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, model_type="llama", max_position_embeddings=1024)
    return path


@pytest.fixture
def model(folder):
    lm = npllm.load(folder)
    return Model(str(folder), {"device": "cpu"}, model_hash(lm))


@pytest.mark.slow
@unix
@pytest.mark.parametrize("cases", ["one,two,full,shuffled", "killed"])
def test_every_record_is_there_once_and_equal_to_its_result_alone(folder, cases):
    tool = tool_path("survive")
    command = [sys.executable, tool, "-m", folder, "--records", "300", "--kills", "2", "--cases", cases]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True)
    assert "every record once, equal to its result alone: 293 of 300" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_results_are_those_of_this_process_and_errors_come_through(model):
    lm, task, limits = model.load(), Task(options={"max_new_tokens": 2}), Limits()
    records = [(i, {"id": i, "ids": [i % 200] * (1 + i % 7)}) for i in range(150)] + [(150, {"id": 150, "ids": []})]
    engine = Processes(model, task, limits, 2, 1, len(records))
    assert engine.bytes > 10**8
    made = sorted(engine(records), key=lambda result: result.line)
    assert made == sorted(computed(lm, records, task, limits), key=lambda result: result.line)
    for process in engine.pipes.values():
        process.kill()  # while idle
        process.join()
    with pytest.raises(UnavailableError, match="a worker ended with exit code -9; rerun the command to resume"):
        list(engine(records))
    engine.close()
    with pytest.raises(ModelFileError, match="expected the model that the main process has loaded"):
        Processes(model._replace(hash="other"), task, limits, 1, 1, 9)


@pytest.mark.slow
@unix
@pytest.mark.parametrize("seconds", [0.8, 1.2, 1.6])
def test_ctrl_c_while_the_workers_start_ends_all_of_them_quietly(folder, tmp_path, seconds):
    (tmp_path / "in.jsonl").write_text(json.dumps({"ids": [1] * 100}) + "\n")
    command = ["batch", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-m", folder, "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "npllm", *command],
        env=COMPILED,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of processes, all of which get the signal of a terminal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert "Traceback" not in said, said
    assert process.returncode in (0, 130), said  # 0: it had ended


@pytest.mark.slow
@unix
@pytest.mark.parametrize("task", ["generate", "score"])
def test_memory_stays_within_the_bound_that_is_printed(folder, tmp_path, task):
    draw = np.random.default_rng(0)
    lines = [{"id": i, "ids": draw.integers(0, 280, draw.integers(2, 900)).tolist()} for i in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = "import sys; from npllm.__main__ import main; code = main(sys.argv[1:]);"
    code += "from npllm.devices.memory import peak_bytes; print(code, peak_bytes())"
    command = ["batch", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-m", folder, "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--task", task], env=COMPILED, capture_output=True, text=True
    )
    bound = re.search(r"with at most ([\d.]+) ([MG])B of memory", done.stderr)
    code, peak = map(int, done.stdout.split())
    assert (code, bool(bound)) == (0, True), done
    assert peak <= float(bound[1]) * {"M": 1e6, "G": 1e9}[bound[2]] * 1.005, done  # printed with three digits
