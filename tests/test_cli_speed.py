"""The flags for speed and memory, as users see them."""

import json
import re

import pytest
from checkpoints import write_folder
from command_line import fails

from npllm import generate, load
from npllm.apps.speculation import prompt_lookup
from npllm.cache import kv_cache_bytes

PROMPT = "one two one two one two"


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def asked(npllm, *flags):
    done = npllm("generate", PROMPT, "-n", 30, "--json", *flags)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_prompt_lookup_tells_what_came_of_it(npllm, lm):
    shown = {}
    expected = generate(lm, PROMPT, max_new_tokens=30, tokens=prompt_lookup(6, shown))
    result = asked(npllm, "--prompt-lookup", 6)
    assert result["ids"] == expected.ids == generate(lm, PROMPT, max_new_tokens=30).ids
    stats = result["stats"]
    assert shown == {
        "passes": stats["passes"],
        "drafted": stats["drafted_tokens"],
        "accepted": stats["accepted_tokens"],
    }
    assert stats["drafted_tokens"] > 0
    assert stats["accepted_share"] == round(shown["accepted"] / shown["drafted"], 3)
    assert stats["tokens_per_pass"] == round(30 / shown["passes"], 2)
    assert "passes" not in asked(npllm)["stats"]


def test_a_draft_model_that_is_the_model_is_always_right(npllm, folder):
    for flags, passes in (((), 7), (("--draft-tokens", 2), 11)):
        result = asked(npllm, "--draft-model", folder, *flags)
        assert result["ids"] == asked(npllm)["ids"]
        assert result["stats"]["accepted_share"] == 1.0
        assert result["stats"]["passes"] == passes


def test_stats_show_the_accepted_share(npllm):
    done = npllm("generate", PROMPT, "-n", 30, "--stats", "--prompt-lookup", 6)
    for line in (r"passes: +\d+", r"drafted tokens: +\d+", r"accepted tokens: +\d+", r"accepted share: +[\d.]+"):
        assert re.search(f"^{line}$", done.err, re.MULTILINE), line
    nothing = npllm("generate", "H", "-n", 1, "--stats", "--prompt-lookup", 6)
    assert re.search(r"^accepted share: +-$", nothing.err, re.MULTILINE)


def test_sampling_with_lookup_draws_the_same_text(npllm):
    flags = ("--temperature", 1.3, "--top-k", 50, "--seed", 3)
    assert asked(npllm, "--prompt-lookup", 6, *flags)["ids"] == asked(npllm, *flags)["ids"]


@pytest.mark.parametrize("flags", [("--prompt-lookup", 6), ("--draft-model", "FOLDER")], ids=["lookup", "draft model"])
def test_chats_are_the_same(npllm, folder, flags):
    flags = [folder if flag == "FOLDER" else flag for flag in flags]
    assert npllm("generate", PROMPT, "--chat", "-n", 20, *flags) == npllm("generate", PROMPT, "--chat", "-n", 20)
    turns = b"one two one two\nand one two\n"
    assert npllm("chat", "-n", 20, *flags, stdin=turns) == npllm("chat", "-n", 20, stdin=turns)


def test_the_cache_takes_half_the_memory(npllm, lm):
    result = asked(npllm, "--cache-dtype", "bfloat16")
    assert result["ids"] == generate(lm, PROMPT, max_new_tokens=30, cache_dtype="bfloat16").ids
    tokens = len(result["prompt_ids"]) + 30
    assert result["stats"]["kv_cache_bytes"] == kv_cache_bytes(lm.config, tokens, 2)
    assert npllm("chat", "-n", 5, "--cache-dtype", "float16", stdin=b"Hello\n").code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt-lookup", 0), "--prompt-lookup: expected a number of tokens from 1 to 64, got 0$"),
        (("--draft-model", "x", "--draft-tokens", 65), "--draft-tokens: expected a number of tokens from 1 to 64"),
        (("--draft-tokens", 3), "--draft-tokens: expected together with --draft-model"),
        (("--prompt-lookup", 3, "--draft-model", "x"), "--prompt-lookup: expected without --draft-model"),
        (("--cache-dtype", "int8"), "--cache-dtype: expected float32 or float16 or bfloat16, got 'int8'"),
    ],
)
def test_flags_that_mean_nothing_are_refused(npllm, flags, message):
    fails(npllm("generate", "Hello", *flags), 2, message)
    fails(npllm("chat", *flags, stdin=b"Hello\n"), 2, message)


def test_without_the_cache_nothing_can_be_drafted(npllm):
    for flags in (("--prompt-lookup", 3), ("--draft-model", "x")):
        fails(npllm("generate", "Hello", "--no-cache", *flags), 2, "--no-cache: expected without --prompt-lookup")


@pytest.mark.slow
def test_a_draft_model_with_another_vocabulary_is_one_line(npllm, tmp_path):
    write_folder(tmp_path / "other", vocab_size=300)  # only its padding is another
    assert npllm("generate", "Hello", "--draft-model", tmp_path / "other").code == 0
    file = tmp_path / "other" / "tokenizer.json"
    keys = json.loads(file.read_text())
    vocabulary = keys["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(keys))
    fails(npllm("generate", "Hello", "--draft-model", tmp_path / "other"), 2, "--draft-model: expected .* has the id")
