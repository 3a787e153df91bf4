"""The same records through Ray Data: the results of the local engine, also when a worker dies."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
from bridge import tool_path
from checkpoints import write_folder
from test_processes import COMPILED

from npllm.compiled.cpu import path_of
from npllm.corpus.model_hash import model_hash
from npllm.corpus.on_ray import OnRay, Setup, Worker
from npllm.corpus.processes import Model
from npllm.corpus.records import Task
from npllm.corpus.run import Limits, computed
from npllm.devices.threads import set_threads, threads
from npllm.errors import ModelFileError, NotEnoughMemoryError, UnavailableError
from npllm.text.one_line import line_of
from npllm.version import __version__

npllm = importlib.import_module("npllm")
RECORDS = [(number, {"id": number, "ids": [number, 7, 9]}) for number in range(1, 6)]


@pytest.fixture
def setup(tmp_path):
    write_folder(tmp_path / "tiny", model_type="llama")
    lm = npllm.load(tmp_path / "tiny")
    before = threads()
    yield Setup(Model(str(tmp_path / "tiny"), {}, model_hash(lm)), Task(), Limits(), 1, 1, path_of(lm))
    set_threads(before)


@pytest.mark.slow
def test_a_worker_may_die_and_every_record_is_there_once(tmp_path):
    pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    write_folder(tmp_path / "tiny", model_type="llama", max_position_embeddings=1024)
    command = [sys.executable, tool_path("survive"), "-m", tmp_path / "tiny", "--records", "320", "--cases", "ray"]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True)
    assert "every record once, equal to its result alone: 312 of 320" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_s_error_arrives_as_it_was_raised_and_vectors_as_they_are(setup):
    """One Ray for all of it."""
    pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    engine = OnRay(setup, None)
    engine.start()
    try:
        engine.setup = setup._replace(model=setup.model._replace(hash="0" * 64))
        with pytest.raises(ModelFileError, match="tiny") as raised:
            list(engine(RECORDS))
        assert "\n" not in str(raised.value)
        assert "\x1b" not in str(raised.value)
        with pytest.raises(NotEnoughMemoryError, match=r"available 20\.0 MB"):
            Worker(setup._replace(limits=Limits(memory=2 * 10**7))).limits  # noqa: B018
        engine.setup = setup._replace(task=Task("embed", tap="layers.0.residual_after_feedforward", at="all"))
        lm = setup.model.load()
        expected = sorted(computed(lm, RECORDS, engine.setup.task, Limits()), key=lambda one: one.line)
        for ours, local in zip(sorted(engine(RECORDS), key=lambda one: one.line), expected, strict=True):
            assert ours._replace(vectors=None) == local._replace(vectors=None)
            np.testing.assert_array_equal(ours.vectors, local.vectors)
    finally:
        engine.close()


def test_a_worker_compares_the_software(setup):
    assert Worker(setup).lm.config.vocab_size > 0
    for change, wanted in [({"version": "0.0.1"}, "npllm 0.0.1 with .*"), ({"path": "loops"}, "npllm .* with loops")]:
        with pytest.raises(UnavailableError, match=f"expected {wanted} on every machine, got {__version__} with .*; "):
            Worker(setup._replace(**change)).lm  # noqa: B018


@pytest.mark.slow
def test_without_a_cluster_there_is_one_line(tmp_path):
    pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    write_folder(tmp_path / "tiny", model_type="llama")
    (tmp_path / "in.jsonl").write_text('{"ids": [1]}\n')
    command = [sys.executable, "-m", "npllm", "batch", "in.jsonl", "-o", "out.jsonl", "-m", "tiny", "--engine", "ray"]
    done = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], cwd=tmp_path, env=COMPILED, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("npllm: error: --address 127.0.0.1:1: no Ray cluster: ")
    assert len(done.stderr.splitlines()) == 2


def test_without_ray_there_is_one_line(setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnavailableError, match=r"npllm-reference\[ray\]"):
        OnRay(setup, None)


def test_the_line_of_a_long_message_that_says_what_is_wrong():
    assert line_of(ValueError("no memory\nabout it, see\n")) == "no memory"
    died = "The actor died: \x1b[36mray::Worker()\x1b[39m\n  File x\nModuleNotFoundError: No module named 'npllm'"
    assert line_of(ValueError(died)) == "ModuleNotFoundError: No module named 'npllm'"
    assert line_of(ValueError("")) == "ValueError"
