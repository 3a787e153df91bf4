"""npllm on CuPy: on a GPU, or with the unmodified CuPy wheel on cupy-on-cpu's emulated device.

On the emulated device, the kernels that CuPy generates are compiled for the host. docs/gpu.md says what that proves.
"""

import ast
import inspect
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from bridge import tool
from checkpoints import write_folder, write_gguf
from default_model import needs_default_model
from safetensors.numpy import load_file
from test_golden import CLASSIFIERS, GOLDEN, TINY, expected_of
from tolerance import assert_close, assert_same_ids

import npllm
from npllm.cache import empty_cache
from npllm.cuda.attention import products
from npllm.devices import transfer
from npllm.devices.device import pick, to_host
from npllm.devices.transfer import Staging
from npllm.errors import ModelFileError, NotEnoughMemoryError, UnavailableError
from npllm.inspect.compare import TOLERANCES, compare, first_beyond
from npllm.inspect.trace import trace

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cupy")]
DTYPES = ("float32", "float16")


def plain_lm(path, dtype="float16"):
    """A model on the GPU without our kernels: the plain functions on CuPy."""
    return npllm.load(path, device="cuda", dtype=dtype, kernels=False)


# Values


@pytest.mark.parametrize("chunk", [None, 5, 1])
@pytest.mark.parametrize("name", TINY)
def test_every_value_of_a_pass_is_that_of_transformers(name, chunk):
    lm, expected = (
        plain_lm(GOLDEN / name, "float32"),
        load_file(GOLDEN / name / "expected.safetensors"),
    )
    ids = expected_of(GOLDEN / name)["ids"]
    chunks = None if chunk is None else [min(chunk, len(ids) - start) for start in range(0, len(ids), chunk)]
    got = trace(lm, ids, chunks=chunks)
    assert {*got} == {value for value in expected if not value.endswith(".visible")}
    for value in got:
        visible = expected[value.replace(".scores", ".visible")] == 1 if value.endswith(".scores") else None
        assert_close(value, got[value], expected[value], where=visible)


@pytest.mark.parametrize("name", TINY)
def test_every_value_of_a_pass_in_float16_is_near(name):
    """Assert agreement within `npllm compare`'s tolerance for weights rounded to float16."""
    lm, expected = plain_lm(GOLDEN / name), load_file(GOLDEN / name / "expected.safetensors")
    got = trace(lm, expected_of(GOLDEN / name)["ids"])
    worst = first_beyond(compare(expected, got, TOLERANCES["float16"]))
    assert worst is None, worst


@pytest.mark.filterwarnings("ignore:the text is now longer than the original context")
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_greedy_generation_is_that_of_transformers(name, dtype, use_cache):
    lm, expected = plain_lm(GOLDEN / name, dtype), expected_of(GOLDEN / name)
    made = npllm.generate(lm, expected["ids"], max_new_tokens=16, use_cache=use_cache)
    assert made.ids == expected["greedy_ids"]


@pytest.mark.parametrize("name", ["phi3-window", "llama-mqa-rope-linear-sharded"])
def test_draws_are_those_of_the_cpu(name):
    """The random numbers come from the host; the sampling filters run on the device."""
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 3}
    made = []
    for device in ("cpu", "cuda"):
        lm = npllm.load(GOLDEN / name, device=device, dtype="float32")
        made.append(npllm.generate(lm, expected_of(GOLDEN / name)["ids"], max_new_tokens=12, **options).ids)
    assert made[0] == made[1]


@needs_default_model
def test_the_default_model_continues_as_on_the_cpu():
    lm = npllm.load(device="cuda", kernels=False)
    run = expected_of(GOLDEN / "default-model")["raw"][0]
    ids = npllm.generate(lm, run["ids"], max_new_tokens=8).ids
    assert_same_ids("greedy", ids, run["greedy_ids"][:8], run["gaps"])


@needs_default_model
def test_a_trace_of_the_default_model_is_that_of_the_cpu(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    done = npllm("compare", "--b-device", "cuda", "--json", "--only", "*.residual*,*.scores,norm", "The capital of")
    assert done.code == 0, done
    steps = json.loads(done.out)["steps"]
    assert len(steps) == 30 * 3 + 1
    assert max(step["max_rel_error"] for step in steps) > 0


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_a_model_that_classifies_gives_the_values_of_transformers(name):
    lm, texts = plain_lm(GOLDEN / name, "float32"), expected_of(GOLDEN / name)["texts"]
    expected = load_file(GOLDEN / name / "expected.safetensors")
    seen = {}
    ids = import_module("cupy").asarray(texts[0])
    npllm.transform(ids, lm, tap=npllm.record(seen))
    for value in seen:
        visible = expected[value.replace(".scores", ".visible")] == 1 if value.endswith(".scores") else None
        assert_close(value, to_host(seen[value]), expected[value], where=visible)


# Loading weights


@pytest.mark.parametrize("file", ["folder", "shards", "gguf", "gpt2"])
@pytest.mark.parametrize("stage", [64, 1000, transfer.STAGE])
def test_every_weight_arrives(emulator, monkeypatch, tmp_path, stage, file):
    """Copies run asynchronously: a buffer overwritten before it is read gives wrong values."""
    monkeypatch.setattr(transfer, "STAGE", stage)
    path = GOLDEN / "gpt2"
    if file == "gguf":
        path = tmp_path / "m.gguf"
        write_gguf(path, arch="llama", dtype="Q8_0")
    elif file != "gpt2":
        path = tmp_path / "m"
        write_folder(path, dtype="bfloat16", shards=2 if file == "shards" else 1)
    expected = npllm.load(path, dtype="float32", kernels=False).weights
    for dtype in DTYPES:
        with emulator.lazy():
            got = plain_lm(path, dtype).weights
        for ours, theirs in zip(leaves(got), leaves(expected), strict=True):
            assert ours.dtype == (dtype if ours.ndim == 2 else "float32")
            np.testing.assert_array_equal(to_host(ours), theirs.astype(ours.dtype))


def leaves(weights):
    """All arrays in a model's weights."""
    blocks = [array for block in weights.layers for array in block]
    return [array for array in (*weights[:1], *weights[2:], *blocks) if array is not None]


def test_a_buffer_that_is_written_to_too_early_shows(emulator, monkeypatch):
    """The test above would detect it."""
    monkeypatch.setattr(transfer, "STAGE", 64)
    numbers = np.arange(640, dtype=np.float32)
    for waits in (True, False):
        with emulator.lazy():
            staging = Staging(pick("cuda"))
            if not waits:
                staging.read = [type("Never", (), {"synchronize": lambda _: None, "record": lambda *_: None})()] * 2
            got = to_host(staging.send(iter([numbers]), (640,), "float32"))
        assert np.array_equal(got, numbers) == waits


def test_the_host_holds_two_buffers_and_no_weight(emulator, tmp_path):
    write_folder(tmp_path / "m", tokenizer=False, hidden_size=512, intermediate_size=2048, vocab_size=4096)
    plain_lm(tmp_path / "m")
    events = emulator.trace(plain_lm, tmp_path / "m")
    lm = events.result
    assert sum(event.info["bytes"] for event in events.of("host_malloc")) <= 2 * 4 * transfer.STAGE
    sent = 4 * sum(array.size for array in leaves(lm.weights)[:-1]) - 4 * lm.weights.lm_head.size
    assert sent <= events.bytes("memcpyH2D") <= 1.6 * sent + 1e6


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path):
    write_folder(tmp_path / "m", dtype="bfloat16", tokenizer=False)
    change(tmp_path / "m", "model.layers.1.mlp.down_proj.weight", (3, 4), 1e5)
    with pytest.raises(
        ModelFileError, match=r"layers\.1\.mlp\.down_proj.*: expected finite numbers, got one too large for f"
    ):
        plain_lm(tmp_path / "m")
    assert plain_lm(tmp_path / "m", "float32").weights.layers[1].down_proj[3, 4] > 9e4
    change(tmp_path / "m", "model.layers.1.mlp.down_proj.weight", (3, 4), np.nan)
    with pytest.raises(ModelFileError, match=r"down_proj.*: expected finite numbers, got a NaN or an infinity"):
        plain_lm(tmp_path / "m", "float32")


def test_a_norm_that_float16_cannot_hold_stays_in_float32(tmp_path):
    write_folder(tmp_path / "m", dtype="bfloat16", tokenizer=False)
    change(tmp_path / "m", "model.norm.weight", 5, 1e5)
    assert plain_lm(tmp_path / "m").weights.norm[5] > 9e4


def test_numbers_that_lose_digits_are_counted_and_told_once(tmp_path, capsys):
    write_folder(tmp_path / "m", dtype="float32", tokenizer=False)
    name = "model.layers.0.self_attn.o_proj.weight"
    lm = plain_lm(tmp_path / "m")
    before = capsys.readouterr().err
    for place, value in (((0, 0), 2.0**-14), ((0, 1), -3e-5), ((0, 2), 1e-9), ((0, 3), 0.0)):
        change(tmp_path / "m", name, place, value)
    lm = plain_lm(tmp_path / "m")
    np.testing.assert_allclose(to_host(lm.weights.layers[0].o_proj[0, :4]), [2.0**-14, -3e-5, 0, 0], rtol=0, atol=3e-8)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1

    def counts(line):
        words = line.split()
        return (int(words[1]), int(words[words.index("them") - 2])) if words else (0, 0)

    assert np.subtract(counts(err), counts(before)).tolist() == [2, 1]
    assert "below 6.1e-05, where it has fewer digits" in err


def change(folder, name, place, value):
    """Change one element of a weight in a checkpoint."""
    from safetensors.numpy import save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name] = tensors[name].copy()
    tensors[name][place] = value
    save_file(tensors, file)


@pytest.fixture
def limit(cupy):
    """Limit CuPy's pool to this many bytes more than it holds now."""
    pool = cupy.get_default_memory_pool()

    def further(size):
        pool.free_all_blocks()
        pool.set_limit(pool.total_bytes() + size)

    yield further
    pool.set_limit(0)


def test_memory_that_the_gpu_does_not_have(limit, tmp_path):
    write_folder(tmp_path / "m", tokenizer=False)
    limit(2**25)
    with pytest.raises(NotEnoughMemoryError, match=r"weights on cuda:0 \+ 67.1 MB buffers = .*, available .*; take a"):
        plain_lm(tmp_path / "m")


def test_a_kv_cache_that_the_gpu_has_no_room_for(limit, tmp_path):
    write_folder(tmp_path / "m", tokenizer=False)
    lm = plain_lm(tmp_path / "m")
    limit(0)
    with pytest.raises(NotEnoughMemoryError, match=r"KV cache = .* available"):
        npllm.generate(lm, [1] * 100, max_new_tokens=150)


# The switch


def test_the_switch(cupy, npllm, folder):
    done = npllm("generate", "--device", "auto", "-n", "2", "and")
    assert done.code == 0
    assert done.err.startswith("device: cuda:0, because CuPy found a GPU that works (")
    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(UnavailableError, match=rf"device cuda:{count}: expected an index below {count}"):
        pick(f"cuda:{count}")
    assert import_module("npllm").load(folder, device="cuda:0").weights.norm.device.id == 0


# CuPy has every function the source uses

GROUND_FLOOR = sorted(Path(npllm.__file__).parent.glob("*.py"))


def calls():
    """Every `xp.name(...)` and `xp.name` in the plain functions, as (module, name, keywords)."""
    found = set()
    for path in GROUND_FLOOR:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called[node.func] = tuple(sorted(word.arg for word in node.keywords if word.arg))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("xp", "array_namespace(x)"):
                found.add((path.stem, node.attr, called.get(node, ())))
    return sorted(found)


def test_cupy_has_every_function_and_keyword_that_the_ground_floor_uses():
    xp = import_module("array_api_compat.cupy")
    assert len(calls()) > 40
    lacking = []
    for module, name, keywords in calls():
        function = getattr(xp, name, None)
        if function is None:
            lacking.append(f"{module}: xp.{name}")
        elif not isinstance(function, type) and not hasattr(function, "nin"):  # neither a dtype nor a ufunc
            parameters = inspect.signature(function).parameters
            open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
            lacking += [
                f"{module}: xp.{name}({word}=)" for word in keywords if word not in parameters and not open_ended
            ]
    assert lacking == []


def test_a_16_bit_cache_gives_nearly_the_same(cupy):
    lm = plain_lm(GOLDEN / "phi3-window", "float32")
    ids = cupy.asarray(expected_of(GOLDEN / "phi3-window")["ids"])
    cache = empty_cache(lm.config, len(ids), like=lm.weights.norm, dtype=np.float16)
    exact, _ = npllm.forward(ids, lm)
    for part in (ids[:-1], ids[-1:]):
        logits, _ = npllm.forward(part, lm, cache)
    assert float(abs(logits[-1] - exact[-1]).max()) < 1e-2 * float(abs(exact).max())


# Commands and tools


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", [[], ["--no-kernels"]], ids=["kernels", "no kernels"])
def test_selftest(npllm, monkeypatch, dtype, kernels):
    monkeypatch.setattr("npllm.apps.selftest.bandwidth_buffer", lambda like: like)
    done = npllm("selftest", "--device", "cuda", "--dtype", dtype, *kernels)
    assert done.code == 0, done
    assert done.out.endswith("\nPASSED\n")
    assert "device:  cuda:0: " in done.out
    assert "cupy:    " in done.out


def test_selftest_of_a_device_that_computes_something_else(npllm, monkeypatch):
    monkeypatch.setattr("npllm.apps.selftest.bandwidth_buffer", lambda like: like)
    monkeypatch.setattr("npllm.cuda.attention.products", lambda *a, **o: 1.01 * products(*a, **o))
    done = npllm("selftest", "--device", "cuda", "--dtype", "float32", "--no-kernels")
    assert done.code == 1, done
    assert ".attention.scores is the first step beyond the tolerance" in done.out


def test_the_chapters_measurement(monkeypatch, capsys, folder):
    """tools/bench/bench_gpu.py without transformers, which cannot run on the emulated device."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", "--model", str(folder), "--tokens", "4", "--repeat", "1"])
    assert tool("bench_gpu").main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-2:]] == ["npllm", "npllm, CuPy's own kernels"]
    assert all(line.count(" ms") == 2 for line in lines[-2:])
