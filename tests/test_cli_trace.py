"""npllm trace: writes every value to a file."""

import numpy as np
import pytest
from checkpoints import write_folder
from command_line import Done, fails, unix
from safetensors import safe_open
from safetensors.numpy import load_file

from npllm import forward, load, record
from npllm.cli import options


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_trace_writes_every_value_under_its_name(npllm, lm, tmp_path):
    done = npllm("trace", "Hello", "-o", tmp_path / "hello.safetensors")
    seen = {}
    forward(np.array(lm.tokenizer.encode("Hello")), lm, tap=record(seen))
    values = load_file(tmp_path / "hello.safetensors")
    assert values.keys() == seen.keys()
    for name, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, seen[name])
    assert values["logits"].shape == (5, 288)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"npllm: wrote {len(seen)} values for 5 tokens to {tmp_path / 'hello.safetensors'}\n"


def test_a_trace_tells_of_which_ids_it_is(npllm, lm, tmp_path):
    npllm("trace", "Hello", "-o", tmp_path / "x")
    with safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata()["ids"] == ",".join(map(str, lm.tokenizer.encode("Hello")))


def test_trace_keeps_only_what_matches_and_always_the_logits(npllm, tmp_path):
    npllm("trace", "Hello", "-o", tmp_path / "x", "--only", "*.weights,layers.1.*.q")
    expected = {"layers.0.attention.weights", "layers.1.attention.weights", "layers.1.attention.q", "logits"}
    assert load_file(tmp_path / "x").keys() == expected


def test_trace_by_ids_needs_no_tokenizer(npllm, tmp_path, lm):
    write_folder(tmp_path / "bare", tokenizer=False)
    ids = ",".join(map(str, lm.tokenizer.encode("Hello")))
    assert npllm("trace", "--ids", ids, "--model", tmp_path / "bare", "-o", tmp_path / "a").code == 0
    assert npllm("trace", "Hello", "-o", tmp_path / "b").code == 0
    a, b = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    fails(npllm("trace", "Hello", "--model", tmp_path / "bare", "-o", tmp_path / "c"), 4, "tokenizer.json")
    fails(npllm("generate", "Hello", "--model", tmp_path / "bare"), 4, "tokenizer.json")
    fails(npllm("chat", "--model", tmp_path / "bare"), 4, "tokenizer.json")
    fails(npllm("tokenize", "Hello", "--model", tmp_path / "bare"), 4, "tokenizer.json")


def test_trace_that_would_not_fit_is_refused(npllm, lm, monkeypatch, tmp_path):
    monkeypatch.setattr(options, "load", lambda *_, **__: lm)
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 200_000)
    fails(npllm("trace", "Hello" * 10, "-o", tmp_path / "x"), 5, "traced values")
    assert list(tmp_path.iterdir()) == []


def test_trace_follows_a_link_and_replaces_the_file(npllm, tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert npllm("trace", "Hello", "-o", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert "logits" in load_file(tmp_path / "real")


@unix
def test_a_full_disk_leaves_the_old_file_and_nothing_else(start, folder, tmp_path):
    (tmp_path / "x").write_text("old")
    # No file longer than 10 kB; nor may Python keep bytecode, for it would keep what has been cut short.
    limited = ["bash", "-c", 'ulimit -f 10; PYTHONDONTWRITEBYTECODE=1 exec "$@"', "-"]
    process = start("trace", "Hello", "-o", str(tmp_path / "x"), folder=folder, prefix=limited)
    _, err = process.communicate(timeout=60)
    fails(Done(process.returncode, "", err.decode()), 2, "cannot be written: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
