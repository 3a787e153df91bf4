"""The page of measurements and the tools that write it: arithmetic and files. Nothing here depends on timing."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from bridge import tool, tool_path

import npllm
from npllm.arrays import is_packed
from npllm.inspect.trace import trace

page = tool("performance_page")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model from tools/bench/make_checkpoint.py."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    command = [sys.executable, str(tool_path("make_checkpoint")), "--preset", "tiny", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_page_says_what_the_file_says():
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, results) == text, "run: python tools/bench/performance_page.py"


def test_another_number_is_another_page():
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    results["quality"]["rows"]["int8"]["same_top_share"] = 0.12345
    text = page.PAGE.read_text(encoding="utf-8")
    changed = page.filled(text, results)
    assert changed != text
    assert "12.35%" in changed or "12.34%" in changed
    assert page.filled(changed, json.loads(page.RESULTS.read_text(encoding="utf-8"))) == text


def test_int8_keeps_98_percent_of_the_likeliest_tokens():
    rows = json.loads(page.RESULTS.read_text(encoding="utf-8"))["quality"]["rows"]
    assert rows["int8"]["same_top_share"] >= 0.98


def sides(**seconds):
    return {"sides": {name.replace("_", " "): {"seconds": times} for name, times in seconds.items()}}


RESULTS = {
    "parts": {
        "decode": {
            "file_bytes": 1000,
            "sides": {
                "npllm float32": {"seconds": [2.0, 2.0, 2.0], "weight_bytes": 1960},
                "npllm bfloat16": {"seconds": [1.0, 4.0, 2.0], "weight_bytes": 980, "peak_bytes": 1100},
                "npllm int8": {"seconds": [1.0, 1.0, 1.0], "weight_bytes": 588},
                "npllm int4": {"seconds": [4.0, 4.0, 4.0], "bytes_per_weight": 0.65},
                "llama.cpp F32": {"seconds": [1.7, 1.7, 1.9]},
            },
        },
        "plain": sides(npllm_int8=[1.0, 1.0], **{"npllm int8, plain": [4.0, 4.0]}),
        "few": {"sides": {"a model": {"1": {"seconds": [1.0, 2.0, 3.0]}, "9": {"seconds": [4.0, 4.0, 5.0]}}}},
        "busy_core": {"sides": {"a model": {"quiet": {"seconds": [1.0]}, "busy": {"seconds": [2.0]}}}},
        "prompts": sides(together=[1.0, 2.0, 2.0], in_turn=[4.0, 4.0, 8.0]),
        "start": sides(**{"with": [1.5, 2.0, 2.5], "without": [1.0, 1.5, 1.5]}),
        "cache": {"tokens": 100, "cache": {"with": [1.0, 3.0], "without": [8.0, 8.0], "same": [True, True]}},
        "growth": {
            "sides": {
                "a model": {
                    "4000": {"seconds": [3.0, 3.0], "read": {"weights": 10.0, "kv_cache": 10.0}},
                    "64": {"seconds": [1.0, 1.0], "read": {"weights": 10.0, "kv_cache": 0.0}},
                }
            }
        },
        "full": {
            "loads": [
                {"first_token_seconds": 4.0, "resident_bytes": 8_700_000_000},
                {"first_token_seconds": 9.0, "resident_bytes": 8_900_000_000},
                {"first_token_seconds": 5.0, "resident_bytes": 8_800_000_000},
            ],
            "sides": {"npllm bfloat16": {"seconds": [2.0]}, "llama.cpp BF16": {"seconds": [1.0]}},
        },
    }
}


def test_step_cost_times_every_value_of_every_step(tiny, capsys, monkeypatch):
    step_cost = tool("step_cost")
    lm = npllm.load(tiny)
    values = trace(lm, [1, 2, 3])
    taken = step_cost.moments(lm, [1, 2, 3], context=2, steps=4)
    assert list(taken) == list(values)
    assert all(len(seconds) == 4 and min(seconds) >= 0 for seconds in taken.values())
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "-m", str(tiny), "--context", "2", "--steps", "2"])
    step_cost.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    expected = {name.split(".", 2)[2] if name.startswith("layers.") else name for name in values}
    assert {row[0] for row in rows} == expected
    assert sum(int(row[1]) for row in rows) == len(values)


def found(what, against=""):
    (line,) = [g for g in page.goals(RESULTS) if g.what == what and g.against.startswith(against)]
    return line


@pytest.mark.parametrize(
    ("what", "against", "measured", "met"),
    [
        ("float32 decode", "llama.cpp F32", 1.7 / 2, False),
        ("float32 decode", "transformers", None, None),
        ("default model decode, auto", "llama.cpp", None, None),
        ("bfloat16, peak memory", "its file size", 1.1, True),
        ("int8 decode", "npllm bfloat16", 2.0, True),
        ("int8, size of the weights with scales", "npllm bfloat16", 0.6, False),
        ("int4 decode", "npllm int8", 0.25, False),
        ("int4, bytes per weight", "", 0.65, True),
        ("default model, 100 tokens", "without KV cache", 4.0, None),
        ("a model: time per token after 4,000 tokens, relative to 64", "growth of the bytes read, 2.00x", 1.5, False),
        ("32 layers, bfloat16: load to first token", "", 5.0, True),
        ("32 layers, bfloat16: resident memory", "", 8.9, False),
        ("32 layers, bfloat16 decode", "llama.cpp BF16", 0.5, False),
        ("a model: a pass over 9 tokens", "a pass over 1", 2.0, True),
        ("a model: decode while one core is busy", "none busy", 0.5, True),
        ("default model, 8 prompts together", "one after the other", 2.0, False),
        ("npllm generate -n 1, more seconds with numba", "without", 0.5, True),
    ],
)
def test_a_goal_is_met_by_the_ratio_of_the_medians(what, against, measured, met):
    line = found(what, against)
    assert line.measured == (None if measured is None else pytest.approx(measured))
    assert line.met is met


def test_the_rounds_of_a_ratio_are_told_too():
    line = found("int8 decode", "npllm bfloat16")
    assert (line.least, line.most) == (1.0, 4.0)


def test_what_was_not_measured_is_said():
    rows = page.goals_table(page.goals({})).splitlines()[2:]
    assert len(rows) > 15
    assert all("| not measured |" in row for row in rows)


def test_all_goals_are_in_the_table_with_yes_or_no():
    text = page.goals_table(page.goals(RESULTS))
    assert "| int4 decode | npllm int8 | at least 1.15x | 0.25x | 0.25 to 0.25 | **no** |" in text
    assert "| int4, bytes per weight |  | at most 0.65 | 0.65 |  | yes |" in text
    assert "| default model, 100 tokens | without KV cache | none | 4.00x | 2.67 to 8.00 |  |" in text


def test_the_loops_are_compared_with_numpy():
    assert page.loops_table(RESULTS).splitlines()[2:] == ["| decode, int8 | 1,000.0 | 4,000.0 | 4.00x |"]
    assert page.loops_table({}) == "Not measured yet."


def test_the_decoding_table_tells_the_share_of_the_bandwidth():
    row = {"seconds": [0.5, 0.25, 0.25], "read": {"weights": 9e8, "kv_cache": 1e8}}
    row |= {"storages": {"float32": 500_000, "bfloat16": 9_000_000}, "bytes_per_weight": 2.004}
    part = {"bandwidth": [5e9, 8e9, 6e9], "sides": {"npllm bfloat16": row, "llama.cpp BF16": {"seconds": [0.2]}}}
    text = page.decode_table({"parts": {"decode": part}}, "decode")
    ours = "4.0 | 250.0 | 250.0 to 500.0 | 1,000 MB | 4.0 | 50% | bfloat16 9 MB; 2.00 bytes each |"
    assert f"| npllm bfloat16 | {ours}" in text
    assert "| llama.cpp BF16 | 5.0 | 200.0 | 200.0 to 200.0 |  |  |  |  |" in text
    assert "8.0 GB/s, measured by a plain `max`" in text


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_llama_cpp_gets_the_same_weights(tiny, tmp_path, kind):
    make_gguf = tool("make_gguf")
    make_gguf.write_gguf(tiny, tmp_path / "tiny.gguf", kind)
    ours, theirs = (npllm.load(path, dtype="float32", kernels=False) for path in (tiny, tmp_path / "tiny.gguf"))
    assert theirs.config.sliding_window == ours.config.sliding_window
    pairs = zip(
        [*ours.weights.layers, ours.weights._replace(layers=())],
        [*theirs.weights.layers, theirs.weights._replace(layers=())],
        strict=True,
    )
    compared = 0
    for mine, other in ((a, b) for x, y in pairs for a, b in zip(x, y, strict=True) if hasattr(a, "shape")):
        assert not is_packed(other)
        compared += 1
        if kind in ("F32", "BF16") or mine.ndim == 1:
            np.testing.assert_array_equal(other, mine)
        else:  # 8 bits: 127 steps to the largest; 4 bits: 8
            largest = np.abs(mine.reshape(len(mine), -1, 32)).max(axis=-1).repeat(32, axis=-1)
            steps = 127 if kind == "Q8_0" else 8
            assert (np.abs(other - mine) <= 1.01 * largest / steps).all()
    assert compared == 6 * 2 + 3
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"], "nothing half-written"


@pytest.fixture
def side(tmp_path):
    peers = tool("bench_peers")
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "NPLLM_BENCH_LOGS": str(tmp_path),
    }
    side = peers.Side("npllm", "npllm", environment)
    yield side
    side.end()


def test_a_side_does_what_it_is_told(side, tiny):
    lm = npllm.load(tiny, dtype="bfloat16")
    assert side.ask("load", model=str(tiny), dtype="bfloat16") == npllm.apps.speed.sizes(lm)
    ids = [5, 3, 4]
    for _ in range(2):
        answer = side.ask("decode", ids=ids, tokens=4)
        assert answer["ids"] == npllm.generate(lm._replace(tokenizer=None), ids, max_new_tokens=5).ids
        assert answer["seconds"] > 0
    assert answer["read"] == npllm.apps.speed.decode_read(lm, 3, 4)._asdict()
    assert side.ask("prefill", ids=ids)["seconds"] > 0
    assert side.ask("matmul", tokens=3)["flops"] == npllm.apps.speed.product_flops(lm, 3)
    assert set(side.ask("memory")) == {"peak_bytes", "resident_bytes"}
    assert side.ask("one_pass", ids=ids, tokens=9, repeat=2)["seconds"] > 0
    prompts = [ids, [7, 2]]
    expected = [npllm.generate(lm._replace(tokenizer=None), prompt, max_new_tokens=4).ids for prompt in prompts]
    side.ask("load", model=str(tiny), dtype="bfloat16", kernels=False)
    assert side.ask("prompts", prompts=prompts, tokens=4, together=False)["ids"] == expected


def test_what_goes_wrong_in_a_side_is_an_error_here_and_it_goes_on(side, tiny):
    with pytest.raises(RuntimeError, match=r"npllm, load: UnavailableError: .*nowhere"):
        side.ask("load", model="./nowhere", dtype="auto")
    assert side.ask("load", model=str(tiny), dtype="auto")["parameters"] > 0
    side.process.kill()
    side.process.wait()
    with pytest.raises(RuntimeError, match=r"npllm, memory: it ended; see .*npllm\.log"):
        side.ask("memory")


def bench_of(tmp_path, **changes):
    peers = tool("bench_peers")
    args = peers.argparse.Namespace(scratch=tmp_path, quick=True, sides="npllm", threads=1, rounds=None, tokens=None)
    return peers.Bench(peers.argparse.Namespace(**{**vars(args), **changes}))


def test_the_sides_take_turns_and_the_first_round_does_not_count(tmp_path):
    called = []

    def call(name):
        return lambda: called.append(name) or {"number": len(called)}

    answers = bench_of(tmp_path).rounds({"a": call("a"), "b": call("b")}, 2)
    assert called == ["a", "b"] * 3
    assert answers == {"a": [{"number": 3}, {"number": 5}], "b": [{"number": 4}, {"number": 6}]}


def test_settings_of_thread_pools_do_not_reach_the_sides(tmp_path, monkeypatch):
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    left = bench_of(tmp_path, threads=None).environment
    assert [name for name in left if name.startswith(("OPENBLAS_", "OMP_", "MKL_"))] == []
    assert left["PATH"] == os.environ["PATH"]


def test_a_peer_that_is_missing_is_left_out_with_a_line(monkeypatch, capsys):
    peers = tool("bench_peers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.available("llama.cpp") is False
    assert capsys.readouterr().err == "llama.cpp is skipped: pip install xllamacpp gguf\n"
    with pytest.raises(SystemExit, match=r"expected npllm, transformers, llama\.cpp, got jax"):
        peers.available("jax")


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    peers = tool("bench_peers")
    monkeypatch.setattr(peers, "PARTS", {"few": lambda bench: {}["a model"], "start": lambda bench: {"sides": {}}})
    monkeypatch.setattr(peers, "prepare", lambda bench, part: None)
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", str(tmp_path), "--quick", "--sides", "npllm"])
    assert peers.main() == 1
    out, err = capsys.readouterr()
    assert err == "few: failed: KeyError('a model')\nstart: 0 s\nfailed: few\n"
    assert "| a pass over 9 tokens | a pass over 1 | at most 2.2x | not measured |" in out
    assert json.loads((tmp_path / "quick.json").read_text())["parts"] == {"start": {"sides": {}}}


class Asked:
    """A side that measures nothing."""

    loaded = {"storages": {}, "bytes_per_weight": 1.0, "weight_bytes": 1}  # noqa: RUF012, never changed

    def __init__(self, requests):
        self.requests = requests

    def ask(self, do, **request):
        self.requests.append((do, request))
        if do == "memory":
            return {"peak_bytes": 1}
        answer = {"seconds": 1.0 + request.get("tokens", 0), "ids": [1], "read": {"weights": 1}}
        return answer | {"bytes_per_second": 1.0, "flops": 1, "with": 1.0, "without": 2.0, "same": True}


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("decode", "| int4 decode | npllm int8 | at least 1.15x | 1.00x |"),
        ("default_decode", "| default model decode, auto | transformers float32 | at least 6.5x | 1.00x |"),
        ("plain", "| decode, int4 | 3,000.0 | 3,000.0 | 1.00x |"),
        ("prefill", "| float32 prefill | np.matmul with the same FLOPs | at least 0.88x |"),
        ("default_prefill", "| default model prefill, auto | 1,000.0 | 1,000.0 | 1.00x |"),
        ("few", "default model, auto: a pass over 9 tokens | a pass over 1 | at most 2.2x | 5.00x |"),
        (
            "growth",
            "default model, auto: time per token after 32 tokens, relative to 8 | growth of the bytes read, 1.00x",
        ),
        ("busy_core", "default model, auto: decode while one core is busy | none busy | at least 0.4x | 1.00x |"),
        ("prompts", "| default model, 8 prompts together | one after the other | at least 3x | 1.00x |"),
        (
            "cache",
            "prompt lookup on repetitive text | without prompt lookup | at least 2.5x | 2.00x",
        ),
    ],
)
def test_a_part_has_its_row(tmp_path, monkeypatch, part, row):
    peers, requests = tool("bench_peers"), []
    bench = bench_of(tmp_path)
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(bench, "sides", lambda wanted: nullcontext({name: Asked(requests) for name in wanted}))
    monkeypatch.setattr(bench, "reader", lambda: nullcontext(Asked(requests)))
    results = {"parts": {part: peers.PARTS[part](bench)}}
    assert row in page.goals_table(page.goals(results)) + page.loops_table(results)
    if part == "busy_core":
        done = [request.get("on", do) for do, request in requests]
        assert done == [False, "decode", False, True, "decode", False] * 3 * 2


@pytest.mark.slow
def test_a_trial_run_writes_after_each_part_and_can_be_resumed(tmp_path):
    command = [sys.executable, str(tool_path("bench_peers")), str(tmp_path), "--quick", "--threads", "1"]
    command += ["--sides", "npllm"]
    first = subprocess.run([*command, "--parts", "decode"], capture_output=True, text=True, check=True)
    assert "| int4 decode | npllm int8 |" in first.stdout
    written = json.loads((tmp_path / "quick.json").read_text())
    assert list(written["parts"]) == ["decode"]
    assert written["provisional"] is True
    assert set(written["parts"]["decode"]["sides"]) == {f"npllm {d}" for d in ("float32", "bfloat16", "int8", "int4")}
    again = subprocess.run(
        [*command, "--parts", "decode,prefill", "--resume"], capture_output=True, text=True, check=True
    )
    assert re.findall(r"^(\w+): \d+ s$", again.stderr, flags=re.MULTILINE) == ["prefill"]
    both = json.loads((tmp_path / "quick.json").read_text())
    assert list(both["parts"]) == ["decode", "prefill"]
    assert both["parts"]["decode"] == written["parts"]["decode"]
