"""Packing: several short documents in each row of a training batch, so that little of it is padding.

The model must treat each document as if it were alone. That takes a mask that hides the other documents, and positions
that restart at 0 in each. The positions alone are never enough. The mask alone is enough only with rotary positions:
they encode distances, which do not change within a document.

Source: "Positional Embeddings (RoPE)" (Figure 3-31); Krell et al. 2021, "Efficient sequence packing without
cross-contamination".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..arrays import Int
from ..errors import UsageError
from ..text.arguments import shown, token_ids, whole_number


class Packing(NamedTuple):
    """Documents in B rows of T positions, padded at the end of each row."""

    ids: Int[np.ndarray, "B T"]  # padding: 0, which is also an ordinary token id
    positions: Int[np.ndarray, "B T"]  # restart at 0 in each document
    documents: Int[np.ndarray, "B T"]  # the index of the document that a token belongs to; padding: -1
    utilisation: float  # the fraction of positions that hold a token


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The documents of each row: a document goes into the first row that has space for it, or else into a new one.

    Sorting the documents beforehand, longest first, wastes less space. Raises UsageError for a document that is empty
    or longer than a row.

    >>> first_fit([5, 4, 3, 2], capacity=8)
    [[0, 2], [1, 3]]
    """
    capacity, lengths = whole_number("capacity", capacity), token_ids(lengths, "lengths", "a list of whole numbers")
    rows: list[list[int]] = []
    for number, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise UsageError(f"document {number}: expected 1 to {capacity} tokens, got {length}; split it or drop it")
        for row in rows:
            if sum(lengths[other] for other in row) + length <= capacity:
                row.append(number)
                break
        else:
            rows.append([number])
    return rows


def pack(documents: Sequence[Sequence[int]], capacity: int) -> Packing:
    """The documents packed by `first_fit`: a batch for `transform` or `forward`.

    Pass `positions=packing.positions` and, with `places = np.arange(capacity)`, the mask `visible=causal(places,
    places) & same_document(packing.documents, packing.documents)`; for a model with a window, its `sliding_window` mask
    instead of `causal`.

    >>> packing = pack([[11, 12, 13], [21, 22], [31, 32]], capacity=5)
    >>> packing.ids.tolist(), packing.positions.tolist()
    ([[11, 12, 13, 21, 22], [31, 32, 0, 0, 0]], [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]])
    >>> packing.documents.tolist(), packing.utilisation
    ([[0, 0, 0, 1, 1], [2, 2, -1, -1, -1]], 0.7)
    """
    if isinstance(documents, str) or not hasattr(documents, "__len__"):
        raise UsageError(f"documents: expected a list of lists of token ids, got {shown(documents)}")
    documents = [token_ids(document, f"document {number}") for number, document in enumerate(documents)]
    rows, capacity = first_fit([len(document) for document in documents], capacity), int(capacity)
    ids, positions, numbers = (np.full((len(rows), capacity), fill) for fill in (0, 0, -1))
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            end = start + len(documents[number])
            ids[row, start:end], positions[row, start:end] = documents[number], range(end - start)
            numbers[row, start:end], start = number, end
    return Packing(ids, positions, numbers, float(np.sum(numbers >= 0)) / max(1, numbers.size))
