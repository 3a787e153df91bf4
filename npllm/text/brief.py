"""Records on one short line, for their `__repr__`: an array as its dtype and shape, a long list as its length.

The weights of a small model would print as 600,000 characters, and those of a GPU would be copied for it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LONGEST = 240  # characters of a text
FEW = 8  # a longer list is cut


def brief(record: Any, separator: str = ", ") -> str:
    """A NamedTuple or a dataclass as a line, without the fields that have their default value.

    >>> from npllm.shapes import Weights
    >>> Weights(embed_tokens=[1.0] * 100, layers=(), norm=None, lm_head=None, score_bias=[1.0, 2.0])
    Weights(embed_tokens=100 x 1.0, layers=(), norm=None, lm_head=None, score_bias=[1.0, 2.0])
    """
    shown = [f"{name}={brief_value(value)}" for name, value, default in fields_of(record) if not same(value, default)]
    return f"{type(record).__name__}({separator.join(shown)})"


def fields_of(record: Any) -> Iterator[tuple[str, Any, Any]]:
    """The names, values and defaults of a record's fields."""
    if isinstance(record, tuple):
        defaults: dict[str, Any] = getattr(record, "_field_defaults", {})
        names = getattr(record, "_fields", ())
    else:
        defaults = {field.name: field.default for field in dataclasses.fields(record)}
        names = defaults
    for name in names:
        yield name, getattr(record, name), defaults.get(name, dataclasses.MISSING)


def same(value: Any, default: Any) -> bool:
    """Whether a value is the default. Arrays, which compare element by element, never are."""
    return value is default or (isinstance(value, str | int | float | tuple) and bool(value == default))


def brief_value(value: Any) -> str:
    """A field's value: see `brief`.

    >>> import numpy as np
    >>> brief_value(np.zeros((2, 3))), brief_value(list(range(100))), brief_value(("full_attention",) * 30)
    ('float64[2, 3]', '[0, 1, 2, 3, 4, ... 100 in all]', "30 x 'full_attention'")
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # an array or a packed weight
        return f"{str(value.dtype).rpartition('.')[2]}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]!r}... {len(value):,} characters in all"
    if isinstance(value, Mapping) and len(value) > FEW:
        return f"{{{next(iter(value))!r}: ..., {len(value)} in all}}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and not hasattr(value, "_fields"):
        return brief_list(value)
    text = repr(value)
    return text if len(text) <= LONGEST else f"{type(value).__name__}(...)"


def brief_list(values: Sequence[Any]) -> str:
    """A list or a tuple: in full if it is short, else what it repeats, or its first elements."""
    if not values or (len(values) <= FEW and not hasattr(values[0], "_fields")):
        ends = "[]" if isinstance(values, list) else "()"
        inside = ", ".join(map(brief_value, values))
        return f"{ends[0]}{inside}{',' if len(values) == 1 and ends == '()' else ''}{ends[1]}"
    if hasattr(values[0], "_fields"):
        return f"{len(values)} x {type(values[0]).__name__}"
    if all(isinstance(one, str | int | float) and one == values[0] for one in values):
        return f"{len(values)} x {values[0]!r}"
    return f"[{', '.join(map(brief_value, values[:5]))}, ... {len(values)} in all]"
