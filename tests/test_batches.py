"""Several texts at once: each is the one that its prompt gives alone, whatever runs beside it."""

import gc
import importlib
import inspect
import weakref
from functools import partial
from itertools import islice

import numpy as np
import pytest
from checkpoints import write_folder
from default_model import needs_default_model
from families import QUICK, WRITERS, random_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close

import npllm
from npllm.apps import batches
from npllm.apps.batches import Request, generate_all
from npllm.apps.constraints import ruled
from npllm.apps.speculation import prompt_lookup
from npllm.cache import kv_cache_bytes
from npllm.devices.memory import attention_bytes
from npllm.errors import ModelFileError, NotEnoughMemoryError, UsageError
from npllm.flash import TILE

loop = importlib.import_module("npllm.loop")
LM = random_lm("llama")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5], [8, 9, 7, 9], [3, 1], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4]]
LENGTHS = [5, 9, 1, 12, 3, 7]
SEEDS = [*range(6)]
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 6.0]}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(folder)
    return npllm.load(folder, kernels=False)


def alone(lm, prompts, **options):
    """What each prompt gives alone; an option that is a list has a value for each."""
    each = [{k: v[i] if isinstance(v, list) else v for k, v in options.items()} for i in range(len(prompts))]
    return [npllm.generate(lm, prompt, **its) for prompt, its in zip(prompts, each, strict=True)]


@pytest.fixture
def passes(monkeypatch):
    """The prompts of the texts in each pass that is not a prefill."""
    seen, compute = [], batches.Batch.compute

    def noting(batch):
        seen.append([text.index for text in batch.live])
        compute(batch)

    monkeypatch.setattr(batches.Batch, "compute", noting)
    return seen


# Each text is the one that its prompt gives alone


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WRITERS]
)
def test_each_text_is_the_one_of_its_prompt_alone(name):
    lm, each = random_lm(name), zip(PROMPTS, [3, 8, 1, 6], [0.0, 1.0, 0.0, 2.0], strict=False)
    requests = [Request(ids, {"max_new_tokens": n, "temperature": t, "seed": 5}) for ids, n, t in each]
    made, logits = with_logits(requests, lambda noting: generate_all(lm, noting, batch_size=3))
    expected, theirs = with_logits(requests, lambda noting: [*map(partial(by_itself, lm), noting)])
    assert made == expected
    for ours, of_prompt in zip(logits, theirs, strict=True):
        assert_close("logits", np.stack(ours), np.stack(of_prompt))


def with_logits(requests, run):
    """The continuations of some requests, and the logits of each of their tokens."""
    seen = [[] for _ in requests]
    rules = [lambda logits, seen=one: seen.append(logits.reshape(-1)) or logits for one in seen]
    made = run([one._replace(rule=rule) for one, rule in zip(requests, rules, strict=True)])
    return made, seen


def by_itself(lm, request):
    return npllm.generate(ruled(lm, request.rule), request.ids, **request.options)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    prompts=st.lists(st.lists(st.integers(0, 22), min_size=1, max_size=9), min_size=1, max_size=7),
    rows=st.integers(1, 4),
    data=st.data(),
)
def test_in_every_order_of_joining_and_leaving(prompts, rows, data):
    lengths = [data.draw(st.integers(1, 9)) for _ in prompts]
    made = npllm.generate(LM, prompts, max_new_tokens=lengths, batch_size=rows, temperature=1.0, seed=4)
    assert made == alone(LM, prompts, max_new_tokens=lengths, temperature=1.0, seed=4)


def test_texts_join_and_leave_by_rows(passes):
    npllm.generate(LM, PROMPTS, max_new_tokens=[3, 2, 5, 2, 1, 2], batch_size=3)
    # Text 1 ends, and 3 joins; 0 and 3 end together; 4 ends with its prefill, and 5 joins.
    assert [sorted(texts) for texts in passes] == [[0, 1, 2], [0, 2, 3], [2, 5], [2]]


def test_no_more_run_at_once_than_asked_for(passes):
    for count, rows, most in ((6, 4, 4), (2, 1, 1), (3, 99, 3), (18, None, batches.MOST)):
        passes.clear()
        npllm.generate(LM, [[3]] * count, max_new_tokens=19 if rows is None else 5, batch_size=rows)
        assert max(map(len, passes)) == most


def test_masks_by_order_in_the_cache_leave_each_text_alone(passes):
    npllm.generate(random_lm("phi3small"), PROMPTS, max_new_tokens=3)
    assert {len(texts) for texts in passes} == {1}


@pytest.mark.filterwarnings("ignore:the text is now longer")
def test_a_text_that_may_need_the_long_factors_runs_alone(passes):
    lm = random_lm("phi3", rope_scaling=LONGROPE, original_max_position_embeddings=12)
    options = {"max_new_tokens": LENGTHS, "temperature": 1.0, "seed": SEEDS}
    assert npllm.generate(lm, PROMPTS, **options) == alone(lm, PROMPTS, **options)
    assert [3] in passes, "4 + 12 tokens"
    assert not any(3 in texts or 5 in texts for texts in passes if len(texts) > 1)
    assert max(map(len, passes)) > 1


def test_each_prompt_has_its_own_stop(talker):
    prompts = ["Hello", "and then 12?", "Why"]
    free = alone(talker, prompts, max_new_tokens=12)
    stops = [[free[0].text[3:5]], None, [free[2].text[2:4], "zz"]]
    made = npllm.generate(talker, prompts, max_new_tokens=12, stop=stops)
    assert made == [npllm.generate(talker, p, max_new_tokens=12, stop=s) for p, s in zip(prompts, stops, strict=True)]
    assert made[0].text != free[0].text
    both = [free[0].text[3:5], free[2].text[2:4]]
    expected = [npllm.generate(talker, prompt, max_new_tokens=12, stop=both) for prompt in prompts]
    assert npllm.generate(talker, prompts, max_new_tokens=12, stop=both) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": [1.0, 1.5, 1.0, 2.0, 1.0, 1.2]},
        {"temperature": [0.0, 1.0, 2.0] * 2, "top_k": 5, "seed": 3},
        {"cache_dtype": "bfloat16"},
        {"use_cache": False},
        {"tokens": prompt_lookup(3)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_options_of_the_loop_hold(options):
    made = npllm.generate(LM, PROMPTS, max_new_tokens=6, **options)
    assert made == alone(LM, PROMPTS, max_new_tokens=6, **options)


def test_prompts_in_any_list():
    expected = alone(LM, PROMPTS, max_new_tokens=2)
    assert npllm.generate(LM, tuple(map(tuple, PROMPTS)), max_new_tokens=2) == expected
    assert npllm.generate(LM, PROMPTS[:1], max_new_tokens=2) == expected[:1]
    assert npllm.generate(LM, PROMPTS[0], max_new_tokens=2, batch_size=3) == expected[0]


def test_the_default_length_is_that_of_the_loop():
    one, other = (
        inspect.signature(call).parameters["max_new_tokens"].default for call in (npllm.steps, npllm.generate)
    )
    assert one == other


@pytest.mark.filterwarnings("ignore:only . new tokens")
def test_a_text_ends_with_the_context():
    prompts = [[5] * 60, [3]]
    made = npllm.generate(LM, prompts, max_new_tokens=9)
    assert [len(one.ids) for one in made] == [4, 9]
    assert made == alone(LM, prompts, max_new_tokens=9)


@needs_default_model
@pytest.mark.slow
def test_the_default_model():
    lm = npllm.load()
    prompts, options = ["The capital of France is", "2 + 2 =", "def main("], {"max_new_tokens": [5, 2, 4]}
    assert npllm.generate(lm, prompts, batch_size=2, **options) == alone(lm, prompts, **options)


# What is refused, before anything is computed


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["Hello", ""], {}, "prompt 1: the prompt is empty"),
        ([[1], [999]], {}, "prompt 1: token 0: expected an id from 0 to"),
        ([[1], [2] * 300], {}, "prompt 1: the prompt is too long: 300 tokens"),
        (["a", "b"], {"max_new_tokens": [1, 0]}, "prompt 1: max_new_tokens: expected at least 1, got 0"),
        (["a", "b"], {"seed": [1, -1]}, "prompt 1: seed: expected a whole number, 0 or more, or None, got -1"),
        (["a", "b"], {"stop": [["a"], [""]]}, "prompt 1: stop: expected strings that are not empty"),
        (["a", "b"], {"seed": [1, 2, 3]}, "^seed: expected one value, or one for each of the 2 prompts, got 3$"),
        (["a", "b"], {"cache": {}}, "^cache: expected none with a list of prompts"),
        (["a", "b"], {"cache_dtype": "int8"}, "^cache_dtype: expected float32"),
        ([[1], [999]], {"use_cache": False}, "prompt 1: token 0: expected an id from 0 to"),
        ([[1], [2]], {"tokens": prompt_lookup(2), "use_cache": [True, False]}, "prompt 1: use_cache: expected True"),
        (["a", "b"], {"batch_size": 0}, "^batch_size: expected 1 or more, got 0$"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_index(talker, prompts, options, message):
    with pytest.raises(UsageError, match=message):
        npllm.generate(talker._replace(transform=None), prompts, **options)


def test_a_tokenizer_is_needed_for_a_stop():
    with pytest.raises(UsageError, match="prompt 0: stop: expected a model with a tokenizer"):
        npllm.generate(LM, PROMPTS, stop=["a"])


def test_logits_that_are_not_finite_are_named_by_the_index():
    table = LM.weights.embed_tokens.copy()
    table[7] = np.nan
    lm = LM._replace(weights=LM.weights._replace(embed_tokens=table))
    with pytest.raises(ModelFileError, match="prompt 1: the logits after token 1: expected finite numbers"):
        npllm.generate(lm, [[1, 2], [7]], max_new_tokens=1)


# Memory


def test_as_many_run_at_once_as_memory_has_room_for(monkeypatch, passes):
    capacity = 6 + 7
    texts = [[5] * 6] * 8
    cache = kv_cache_bytes(LM.config, capacity)
    work = [attention_bytes(LM.config, capacity, capacity, TILE, rows) for rows in range(9)]
    for rows, room in ((8, 8 * cache + work[8]), (4, 8 * cache + work[8] - 1), (1, 2 * cache + work[2] - 1)):
        monkeypatch.setattr(batches, "free_bytes", lambda _, room=room: room)
        passes.clear()
        npllm.generate(LM, texts, max_new_tokens=7)
        assert max(map(len, passes)) == rows
    with pytest.raises(NotEnoughMemoryError, match="KV cache"):
        npllm.generate(LM, texts, max_new_tokens=7, batch_size=2)
    monkeypatch.setattr(batches, "free_bytes", lambda _: cache)
    with pytest.raises(NotEnoughMemoryError, match="KV cache"):
        npllm.generate(LM, texts, max_new_tokens=7)


# Progress and interrupts


def test_a_progress_bar_counts_the_prompts(capfd, monkeypatch):
    npllm.generate(LM, PROMPTS, max_new_tokens=2)
    assert capfd.readouterr().err == ""
    counted = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n: counted.append(n))
    npllm.generate(LM, PROMPTS, max_new_tokens=2, progress=True)
    assert sum(counted) == 6
    assert "0/6" in capfd.readouterr().err


@pytest.mark.parametrize("all_steps", [True, False])
def test_the_cache_is_released_at_once(monkeypatch, all_steps):
    storages, empty_cache = [], batches.empty_cache

    def kept(*arguments, **options):
        cache = empty_cache(*arguments, **options)
        storages.append(weakref.ref(cache["keys"][0]))
        return cache

    monkeypatch.setattr(batches, "empty_cache", kept)
    lm = random_lm("llama")
    requests = [Request([1] * length, {"max_new_tokens": 3}) for length in (4, 2, 3, 1)]
    gc.disable()
    try:
        made = batches.steps_of_all(lm, requests, 3)
        for _ in made if all_steps else islice(made, 4):
            pass
        del made, _
        assert [reference() is None for reference in storages] == [True]
    finally:
        gc.enable()


def test_after_ctrl_c_the_model_works_as_before():
    calls = iter(range(10))

    def interrupted(*arguments, **options):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return LM.transform(*arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        npllm.generate(LM._replace(transform=interrupted), PROMPTS, max_new_tokens=9)
    assert npllm.generate(LM, PROMPTS, max_new_tokens=3) == alone(LM, PROMPTS, max_new_tokens=3)
