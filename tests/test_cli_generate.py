"""npllm generate: the text on stdout, statistics on stderr, and every flag."""

import json
import re

import pytest
from command_line import fails

from npllm import generate, load
from npllm.cache import kv_cache_bytes
from npllm.loop import Step


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_generate_prints_the_text_and_a_newline(npllm, lm):
    done = npllm("generate", "Hello", "-n", 20)
    assert done == (0, generate(lm, "Hello", max_new_tokens=20).text + "\n", "")


def test_a_text_that_ends_in_a_newline_gets_no_second_one(npllm, monkeypatch):
    made = [Step(1, "a", None, 0.0, []), Step(2, "\n", "stop", 0.0, [])]
    monkeypatch.setattr("npllm.cli.generate.steps", lambda *_, **__: iter(made))
    assert npllm("generate", "Hello").out == "a\n"


def test_text_is_written_as_it_is_made(npllm, monkeypatch, capsys):
    def steps(*_, **__):
        yield Step(1, "one ", None, 0.0, [])
        assert capsys.readouterr().out == "one "
        yield Step(2, "two", "stop", 0.0, [])

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello").out == "two\n"


def test_json_is_one_object(npllm, lm):
    done = npllm("generate", "Hello", "-n", 5, "--json")
    expected = generate(lm, "Hello", max_new_tokens=5)
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert (done.code, done.err) == (0, "")
    stats = result.pop("stats")
    assert result == {name: getattr(expected, name) for name in ("text", "prompt_ids", "ids", "finish_reason")}
    assert stats["prompt_tokens"] == 5
    assert stats["new_tokens"] == 5
    assert stats["kv_cache_bytes"] == kv_cache_bytes(lm.config, 10)
    assert stats["finish_reason"] == "length"
    assert stats["seed"] is None
    for measured in ("load_time_seconds", "time_to_first_token_seconds", "prefill_tokens_per_second"):
        assert stats[measured] > 0
    assert stats["decode_tokens_per_second"] > 0
    assert stats["peak_memory_bytes"] is None or stats["peak_memory_bytes"] > 10**7


def test_stats_go_to_stderr(npllm):
    done = npllm("generate", "Hello", "-n", 5, "--stats")
    assert done.err.splitlines()[0].split() == ["prompt", "tokens:", "5"]
    assert re.search(r"^decode: +[\d.]+ tokens/s$", done.err, re.MULTILINE)
    assert re.search(r"^finish reason: +length$", done.err, re.MULTILINE)
    assert npllm("generate", "Hello", "-n", 5).out == done.out


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        (b"Hello", "Hello"),
        (b"Hello\n", "Hello"),
        (b"Hello\n\n", "Hello\n"),
        (b"Hello\r\n", "Hello"),
        (b"\xc3\xa9", "é"),
    ],
)
@pytest.mark.parametrize("argument", [(), ("-",)], ids=["nothing", "-"])
def test_the_prompt_comes_from_stdin_less_one_newline(npllm, lm, typed, prompt, argument):
    done = npllm("generate", *argument, "--json", "-n", 1, stdin=typed)
    assert json.loads(done.out)["prompt_ids"] == lm.tokenizer.encode(prompt)


def test_a_prompt_given_as_an_argument_leaves_stdin_alone(npllm, lm):
    done = npllm("generate", "Hello", "--json", "-n", 1, stdin=b"\xff")
    assert json.loads(done.out)["prompt_ids"] == lm.tokenizer.encode("Hello")


def test_the_same_seed_draws_the_same_text_and_any_seed_is_told(npllm):
    drawn = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json").out)
    seed = drawn["stats"]["seed"]
    assert isinstance(seed, int)
    again = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json", "--seed", seed).out)
    other = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json", "--seed", seed + 1).out)
    assert drawn["ids"] == again["ids"] != other["ids"]


def test_every_sampling_flag_reaches_the_loop(npllm, lm):
    flags = [
        "--temperature",
        1.2,
        "--top-k",
        40,
        "--top-p",
        0.9,
        "--min-p",
        0.01,
        "--repetition-penalty",
        1.3,
        "--seed",
        7,
    ]
    options = {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 7}
    expected = generate(lm, "Hello", max_new_tokens=20, **options)
    assert json.loads(npllm("generate", "Hello", "-n", 20, "--json", *flags).out)["ids"] == expected.ids
    assert json.loads(npllm("generate", "Hello", "-n", 20, "--json", "--no-cache", *flags).out)["ids"] == expected.ids


def test_stop_strings_end_the_text_and_may_be_several(npllm, lm):
    text = generate(lm, "Hello", max_new_tokens=60).text
    stop = text[5:7]
    done = npllm("generate", "Hello", "-n", 60, "--stop", "never in there", "--stop", stop)
    assert done.out == text[: text.index(stop)] + "\n"


def test_chat_is_one_turn_of_a_conversation(npllm, lm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked = json.loads(npllm("generate", "Hello", "--chat", "--system", "Be brief.", "-n", 3, "--json").out)
    assert asked["prompt_ids"] == lm.tokenizer.chat_ids(messages)
    asked = json.loads(npllm("generate", "Hello", "--chat", "-n", 3, "--json").out)
    assert asked["prompt_ids"] == lm.tokenizer.chat_ids(messages[1:])


def test_a_warning_is_one_line(npllm):
    done = npllm("generate", "Hello", "-n", 1000, "--stop", "H")
    assert done.code == 0
    assert re.fullmatch(r"npllm: warning: only 251 new tokens instead of 1000[^\n]+\n", done.err)


def test_an_interrupt_keeps_the_text_so_far(npllm, monkeypatch):
    def steps(*_, **__):
        yield Step(1, "one ", None, 0.0, [])
        yield Step(2, "two", None, 0.0, [])
        raise KeyboardInterrupt

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello") == (130, "one two\n", "")
    done = npllm("generate", "Hello", "--json", "--stats")
    result = json.loads(done.out)
    assert (result["text"], result["ids"], result["finish_reason"]) == ("one two", [1, 2], "interrupted")
    assert done.code == 130
    assert "interrupted" in done.err


def test_an_interrupt_before_there_is_any_text(npllm, monkeypatch):
    def steps(*_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello") == (130, "", "")
    assert json.loads(npllm("generate", "Hello", "--json").out)["stats"]["time_to_first_token_seconds"] is None


def test_an_error_in_the_middle_leaves_what_was_written_as_lines(npllm, monkeypatch):
    def steps(*_, **__):
        yield Step(1, "one", None, 0.0, [])
        raise MemoryError

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    done = npllm("generate", "Hello")
    assert done.out == "one\n"
    fails(done, 5, "not enough memory: an allocation failed")
