"""The checks of token ids on the way from and to text."""

import operator
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    import tokenizers


def checked_ids(ids: Any, count: int) -> list[int]:
    """The ids, in any iterable, as a list. Raises UsageError unless all are whole numbers from 0 to count - 1."""
    try:
        checked = [operator.index(i) for i in ids]
    except TypeError as error:
        raise UsageError(f"token ids: expected whole numbers, got {' '.join(repr(ids).split()):.80}") from error
    for i in checked:
        if not 0 <= i < count:
            got = i if i.bit_length() < 100 else f"one of {i.bit_length()} bits"
            raise UsageError(f"token ids: expected 0 to {count - 1}, the vocabulary's range, got {got}")
    return checked


def with_rows(ids: list[int], rows: int | None, backend: "tokenizers.Tokenizer") -> list[int]:
    """The ids of a text. Raises UsageError if one has no row in the model's embeddings: it may have been added later.

    rows : None if the model is not known
    """
    largest = max(ids, default=-1)
    if rows is not None and largest >= rows:
        token = (backend.id_to_token(largest) or "")[:40]
        raise UsageError(
            f"text: expected tokens with ids below {rows}, the rows of the model's embeddings, got {token!r},"
            f" {largest}; leave it out of the text"
        )
    return ids
