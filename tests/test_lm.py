"""The public calls: they take the model, and ids as an array or in lists."""

import numpy as np
import pytest
from families import random_lm
from models import random_ids

import npllm
from npllm.cache import empty_cache
from npllm.errors import UsageError
from npllm.heads import lm_head
from npllm.model import transform
from npllm.tap import under


def test_each_call_is_the_models_own_function_of_its_weights_and_config():
    lm = random_lm("llama")
    ids = random_ids(lm.config, 5)
    hidden, _ = npllm.transform(ids, lm)
    np.testing.assert_array_equal(hidden, transform(ids, lm.weights, lm.config)[0])
    logits = npllm.lm_head(hidden, lm)
    np.testing.assert_array_equal(logits, lm_head(hidden, lm.weights, lm.config))
    np.testing.assert_array_equal(npllm.forward(ids, lm)[0], logits)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "olmo2", "smollm3"])
def test_a_family_with_a_pass_of_its_own_gets_it(name):
    lm = random_lm(name)
    ids = random_ids(lm.config, 5)
    np.testing.assert_array_equal(npllm.transform(ids, lm)[0], lm.transform(ids, lm.weights, lm.config)[0])
    assert lm.transform is not transform


def test_ids_may_be_a_list_and_lists_of_one_length_are_a_batch():
    lm = random_lm("llama")
    ids = random_ids(lm.config, 2, 4)
    for rows in (ids[0].tolist(), tuple(ids[0].tolist()), ids.tolist()):
        expected, _ = npllm.forward(np.asarray(rows), lm)
        np.testing.assert_array_equal(npllm.forward(rows, lm)[0], expected)


@pytest.mark.parametrize("ids", [[3, 23], [-1], [[1, 2], [3, 99]]])
def test_ids_without_a_row_are_refused_while_they_are_in_a_list(ids):
    with pytest.raises(UsageError, match="expected an id from 0 to 22"):
        npllm.forward(ids, random_lm("llama"))


def test_options_and_the_cache_reach_the_pass():
    lm, seen = random_lm("llama"), []
    ids = random_ids(lm.config, 5).tolist()
    whole, _ = npllm.forward(ids, lm, tap=lambda name, value: (seen.append(name), value)[1])
    assert (seen[0], seen[-1]) == ("embedding", "logits")
    cache = empty_cache(lm.config, 5, like=lm.weights.norm)
    npllm.forward(ids[:3], lm, cache, total_length=5)
    rest, same = npllm.forward(ids[3:], lm, cache, total_length=5, tap=under(lambda name, value: value, "x"))
    assert same is cache
    assert cache["length"] == 5
    np.testing.assert_allclose(rest, whole[3:], rtol=1e-4, atol=1e-4)


def test_every_public_name_is_found_when_it_is_first_used():
    assert {name for name in npllm.__all__ if not hasattr(npllm, name)} == set()
    assert {*npllm.__all__} <= {*dir(npllm)}
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        npllm.generat  # noqa: B018
