"""How much memory records take, and how many run at once within a budget."""

import pytest
from families import random_lm

import npllm
from npllm.cache import kv_cache_bytes
from npllm.corpus.memory import OVERHEAD, budget, least_bytes, most_bytes, needed, texts_within
from npllm.corpus.records import Task
from npllm.errors import NotEnoughMemoryError

LM = random_lm("llama")
TASKS = (Task(), Task("score"), Task("embed", tap="norm"))


def total(task, texts, longest):
    return sum(needed(LM, task, texts, longest).values())


@pytest.mark.parametrize("task", TASKS)
def test_as_many_run_at_once_as_fit(task):
    one = total(task, 1, 64)
    assert texts_within(LM, task, 64, None) == (32 if task.name == "generate" else 1)
    assert texts_within(LM, task, 64, one - 1) == 0
    assert texts_within(LM, task, 64, one) == 1
    if task.name == "generate":
        assert texts_within(LM, task, 64, total(task, 2, 64)) == 2
        assert needed(LM, task, 2, 64)["KV cache"] == 2 * kv_cache_bytes(LM.config, 64)


@pytest.mark.parametrize("task", TASKS)
def test_the_bound_is_that_of_the_longest_texts_that_may_run_at_once(task):
    context = LM.config.max_position_embeddings
    assert most_bytes(LM, task, None) == total(task, 32 if task.name == "generate" else 1, context)
    assert most_bytes(LM, task, None, 1) == total(task, 1, context)
    assert most_bytes(LM, task, 5) == 5
    assert least_bytes(LM, task) == total(task, 1, 2) < most_bytes(LM, task, None)


def test_a_record_that_needs_more_memory_than_there_is_fails_alone():
    some = [{"id": 1, "ids": [1], "max_new_tokens": 1}, {"id": 2, "ids": [1] * 40}]
    made = {one["id"]: one for one in npllm.batch(LM, some, memory=total(Task(), 1, 8))}
    assert "ids" in made[1]
    assert "KV cache" in made[2]["error"]


def test_the_budget_is_shared_after_the_models():
    assert budget(None, 2, 5) is None
    assert budget(10 * OVERHEAD, 2, OVERHEAD) == 4 * OVERHEAD
    assert budget(10 * OVERHEAD, 2, OVERHEAD, 4 * OVERHEAD) == 4 * OVERHEAD
    with pytest.raises(NotEnoughMemoryError, match="--memory"):
        budget(3 * OVERHEAD, 2, OVERHEAD)
    with pytest.raises(NotEnoughMemoryError, match="--memory"):
        budget(10 * OVERHEAD, 2, OVERHEAD, 4 * OVERHEAD + 1)
