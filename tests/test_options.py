"""What may be asked of the loop."""

import math

import pytest
from models import tiny_config

from npllm.errors import UsageError
from npllm.options import capacity_for, check_ids, check_options, check_prompt

CONFIG = tiny_config()  # a context of 64 tokens, a vocabulary of 11


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("max_new_tokens", [0, -1, 1.5, "3"], [1, 10**6]),
        ("temperature", [-0.1, math.nan, math.inf, "warm"], [0, 0.7, 3]),
        ("top_k", [-1, 2.5], [0, 50]),
        ("top_p", [0, 1.1, math.nan], [1e-6, 0.5, 1]),
        ("min_p", [-0.1, 1.1, math.nan], [0, 1]),
        ("repetition_penalty", [0, math.inf, math.nan], [1e-6, 1, 1e6]),
        ("stop", [[""], ["a", ""], [5]], [[], ["a"]]),
        ("seed", [-1, 0.5, "1"], [None, 0, 7]),
        ("cache_dtype", ["int8", "float64", None], ["float32", "float16", "bfloat16"]),
    ],
)
def test_an_option_out_of_range_is_named(name, wrong, right):
    for value in wrong:
        with pytest.raises(UsageError, match=f"^{name}: expected "):
            check_options(**{name: value})
    for value in right:
        check_options(**{name: value})


def test_a_prompt_that_is_too_long_names_its_length_and_the_room_there_is():
    check_prompt([1] * 63, CONFIG)
    check_prompt([1] * 64, CONFIG, new=0)
    message = "^the text is too long: 64 tokens, but the model's context of 64 has room for 63; split it$"
    with pytest.raises(UsageError, match=message):
        check_prompt([1] * 64, CONFIG, what="text", remedy="split it")


def test_an_empty_prompt_and_ids_without_a_row_are_refused():
    with pytest.raises(UsageError, match=r"^the prompt is empty"):
        check_prompt([], CONFIG)
    for ids in ([3, 11], [3, -1]):
        with pytest.raises(UsageError, match=r"^token 1: expected an id from 0 to 10"):
            check_ids(ids, CONFIG.vocab_size)


def test_the_context_limits_the_capacity_with_a_warning():
    assert capacity_for(CONFIG, 10, 54) == 64
    with pytest.warns(UserWarning, match="only 54 new tokens instead of 55"):
        assert capacity_for(CONFIG, 10, 55) == 64
