"""The checks of token ids: what is refused is named in one line."""

import numpy as np
import pytest
from tokenizer_cases import tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from npllm.errors import UsageError
from npllm.text.token_ids import checked_ids, with_rows


@pytest.mark.parametrize(
    "ids", [[0, 2], (0, 2), np.array([0, 2]), np.array([0, 2], dtype=np.uint8), iter([0, 2]), [False, np.int64(2)]]
)
def test_whole_numbers_in_any_form_are_taken(ids):
    assert checked_ids(ids, 3) == [0, 2]


@pytest.mark.parametrize(
    "ids",
    [
        *([0.0], [None], [[0]], ["0"], [b"0"], "0", 0, None, 1.5, [1, [2, 3]], [1j], [()], {"a": 0}, [float("nan")]),
        *(np.zeros(2), np.zeros((2, 2), dtype=int), np.array(1), np.zeros((300, 2), dtype=int), [np.array([1, 2])]),
    ],
    ids=str,
)
def test_what_is_no_whole_number_is_refused(ids):
    for use in (lambda ids: checked_ids(ids, 3), tokenizer("bytes").decode, tokenizer("bytes").pieces):
        with pytest.raises(UsageError, match="token ids: expected whole numbers, got ") as error:
            use(ids)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("wrong", [-1, 3, 2**32, -(2**64), 10**5000, -(10**5000), 10**30], ids=hex)
def test_ids_outside_of_the_range_are_refused(wrong):
    with pytest.raises(UsageError, match=r"token ids: expected 0 to 2, the vocabulary's range, got .{1,40}$"):
        checked_ids([1, wrong], 3)


def test_an_id_without_a_row_is_refused_by_its_token():
    backend = Backend(BPE({"a": 0, "[PAD]": 7}, []))
    assert with_rows([0, 6], 7, backend) == with_rows([0, 6], None, backend) == [0, 6]
    assert with_rows([], 0, backend) == []
    with pytest.raises(UsageError, match=r"below 7, the rows of the model's embeddings, got '\[PAD\]', 7; leave it"):
        with_rows([0, 7, 3], 7, backend)
