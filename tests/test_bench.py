"""Benchmarks: what was computed and counted. The measured times are not checked."""

import importlib
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_weights, tiny_config

from npllm.apps import bench
from npllm.apps.bench import Run, cache_runs, compare
from npllm.apps.calls import generate
from npllm.cli.bench import duration, text
from npllm.errors import UsageError
from npllm.lm import LM

loop = importlib.import_module("npllm.loop")


@pytest.fixture(scope="module")
def lm():
    config = tiny_config(max_position_embeddings=32)
    return LM(config, random_weights(config), None, {})


@pytest.mark.slow
@given(prompt=st.integers(1, 9), new=st.integers(1, 9), repeat=st.integers(1, 3))
def test_both_sides_make_the_same_tokens_in_turn_and_their_streams_are_counted(lm, prompt, new, repeat):
    ids = list(range(prompt))
    runs = list(cache_runs(lm, ids, new, repeat))
    assert [run.use_cache for run in runs] == [True, False] * repeat
    assert all(run.ids == generate(lm, ids, max_new_tokens=new).ids for run in runs)
    # With the cache, each token is computed once and the last one never. Without it, every step computes all tokens.
    streams = {True: prompt + new - 1, False: sum(prompt + i for i in range(new))}
    assert all(run.streams == streams[run.use_cache] for run in runs)
    assert all(run.seconds > 0 for run in runs)


def test_end_tokens_do_not_end_a_run(lm):
    ends = generate(lm, [3, 1, 4], max_new_tokens=8).ids
    ending = lm._replace(generation_config={"eos_token_id": ends})
    assert len(generate(ending, [3, 1, 4], max_new_tokens=8).ids) == 1
    assert [run.ids for run in cache_runs(ending, [3, 1, 4], 8, 1)] == [ends, ends]


def test_a_first_token_is_made_and_not_counted(lm, monkeypatch):
    made = []

    def looking(lm, ids, **options):
        made.append(options["max_new_tokens"])
        return generate(lm, ids, **options)

    monkeypatch.setattr(bench, "generate", looking)
    runs = list(cache_runs(lm, [3], 5, 2))
    assert made == [1, 5, 5, 5, 5]
    assert len(runs) == 4


def test_what_does_not_fit_into_the_context_is_refused_at_once(lm):
    assert list(cache_runs(lm, [1] * 12, 20, 1))
    with pytest.raises(UsageError, match="expected at most 32 together, the model's context, got 13 and 20"):
        cache_runs(lm, [1] * 13, 20, 1)


def test_the_figures_are_those_of_the_runs():
    runs = [
        Run(True, 1.0, 12, [7, 8, 9, 9]),
        Run(False, 6.0, 42, [7, 8, 9, 9]),
        Run(True, 3.0, 12, [7, 8, 9, 9]),
        Run(False, 6.0, 42, [7, 8, 9, 9]),
    ]
    cached = {
        "seconds": [1.0, 3.0],
        "mean_seconds": 2.0,
        "stdev_seconds": 1.0,  # of these two runs; the sample estimate would be 1.41
        "tokens_per_second": 2.0,
        "streams": 12,
    }
    plain = {
        "seconds": [6.0, 6.0],
        "mean_seconds": 6.0,
        "stdev_seconds": 0.0,
        "tokens_per_second": 4 / 6.0,
        "streams": 42,
    }
    assert compare(runs) == {
        "new_tokens": 4,
        "repeat": 2,
        "with_cache": cached,
        "without_cache": plain,
        "ratio": 3.0,
        "same_ids": 4,
    }
    assert text(compare(runs) | {"prompt_tokens": 9}) == (
        "4 tokens after a prompt of 9:\n"
        "with the KV cache:    2 s ± 1 s per loop (mean ± std. dev. of 2 runs, 1 loop each)\n"
        "                      2.0 tokens/s, 12 streams computed\n"
        "without the KV cache: 6 s ± 0 µs per loop (mean ± std. dev. of 2 runs, 1 loop each)\n"
        "                      0.7 tokens/s, 42 streams computed\n"
        "3.0 times as fast with the cache\n"
    )


def test_a_single_run_is_one_run():
    result = compare([Run(True, 1.0, 12, [7, 8]), Run(False, 6.0, 42, [7, 8])])
    assert (
        text(result | {"prompt_tokens": 9}).count("1 s ± 0 µs per loop (mean ± std. dev. of 1 run, 1 loop each)") == 1
    )


@pytest.mark.parametrize(
    ("ids", "same"), [([[1, 2], [1, 2], [1, 2]], 2), ([[1, 2], [1, 3], [1, 2]], 1), ([[1, 2], [1, 2], [3, 2]], 0)]
)
def test_a_run_that_made_other_tokens_is_noticed(ids, same):
    assert (
        compare([Run(number % 2 == 0, 1.0, 1, made) for number, made in zip(count(), ids, strict=False)])["same_ids"]
        == same
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 µs"),
        (1.234e-6, "1.23 µs"),
        (0.00099, "990 µs"),
        (0.0123456, "12.3 ms"),
        (0.99949, "999 ms"),
        (0.99996, "1 s"),
        (4.5, "4.5 s"),
        (21.81, "21.8 s"),
        (99.9, "99.9 s"),
        (1234.5, "1234 s"),
    ],
)
def test_a_time_is_written_in_three_digits(seconds, expected):
    assert duration(seconds) == expected
