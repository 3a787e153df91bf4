"""The tokens that end a text."""

import pytest

from npllm.errors import ModelFileError
from npllm.text.end_ids import end_ids, read_token_ids


def test_the_end_tokens_of_all_three_places_are_united():
    assert end_ids((2, 3), {"eos_token_id": 4}, {1}) == {1, 2, 3, 4}
    assert end_ids((2, 3), {"eos_token_id": [3, 4]}) == {2, 3, 4}
    assert end_ids((), {}) == frozenset()


def test_the_ids_under_a_key_are_one_or_a_list_or_none():
    assert [read_token_ids({"eos": value}, "eos", "x") for value in (7, [7, 8], None)] == [(7,), (7, 8), ()]
    assert [read_token_ids({"eos": value}, "eos", "x") for value in (-1, [7, 2**32 - 1])] == [(), (7,)]
    assert read_token_ids({}, "eos", "x") == ()


@pytest.mark.parametrize("value", ["2", 2.0, True, -2, [2, "3"], [None]])
def test_what_is_not_a_token_id_is_refused(value):
    with pytest.raises(ModelFileError, match=r"config\.json: eos_token_id: expected a token id or a list of them"):
        read_token_ids({"eos_token_id": value}, "eos_token_id", "config.json")
