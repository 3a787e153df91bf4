"""npllm bench cache: the same tokens with and without the KV cache."""

import json
import re

import pytest
from checkpoints import write_folder
from command_line import fails

from npllm import load
from npllm.apps.bench import Run


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_bench_cache_counts_what_each_side_computed(npllm, lm):
    done = npllm("bench", "cache", "--prompt", "Hello", "-n", 4, "--repeat", 2, "--json")
    result = json.loads(done.out)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert {name: result[name] for name in ("prompt_tokens", "new_tokens", "repeat", "same_ids")} == {
        "prompt_tokens": 5,
        "new_tokens": 4,
        "repeat": 2,
        "same_ids": 4,
    }
    assert (result["with_cache"]["streams"], result["without_cache"]["streams"]) == (5 + 3, 5 + 6 + 7 + 8)
    for side in ("with_cache", "without_cache"):
        assert len(result[side]["seconds"]) == 2
        assert result[side]["tokens_per_second"] > 0
    assert result["ratio"] > 0


def test_bench_cache_prints_what_timeit_does(npllm):
    done = npllm("bench", "cache", "-n", 3)
    assert (done.code, done.err) == (0, "")
    assert re.match(r"3 tokens after a prompt of 91:\nwith the KV cache: ", done.out)
    loops = r"[\d.]+ (s|ms|µs) ± [\d.]+ (s|ms|µs) per loop \(mean ± std\. dev\. of 3 runs, 1 loop each\)"
    assert len(re.findall(loops, done.out)) == 2
    assert "93 streams computed" in done.out
    assert "276 streams computed" in done.out


def test_bench_cache_says_so_if_the_tokens_differ(npllm, monkeypatch):
    runs = [Run(True, 1.0, 8, [1, 2, 3]), Run(False, 2.0, 18, [1, 2, 4])]
    monkeypatch.setattr("npllm.cli.bench.cache_runs", lambda *_: iter(runs))
    done = npllm("bench", "cache")
    assert done.code == 1
    assert done.err == "npllm: with and without the cache, the tokens differ from new token 3 on\n"
    assert "2.0 times as fast" in done.out


def test_an_interrupted_bench_prints_no_figures(npllm, monkeypatch):
    def runs(*_):
        yield Run(True, 1.0, 8, [1, 2, 3])
        raise KeyboardInterrupt

    monkeypatch.setattr("npllm.cli.bench.cache_runs", runs)
    assert npllm("bench", "cache") == (130, "", "\n")


def test_bench_cache_needs_a_tokenizer(npllm, tmp_path):
    write_folder(tmp_path / "bare", tokenizer=False)
    fails(npllm("bench", "cache", "--model", tmp_path / "bare"), 4, "tokenizer.json")
