"""The values of a pass by their names: what each is, in which shape, and which line of the source computes it.

Each family describes its own values (families/family.py).

Source: the chapter's figures, by their numbers.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..config import Config
from ..families import family_of
from ..families.family import Tapped

PACKAGE = Path(__file__).parent.parent


def part(config: Config, name: str) -> Tapped:
    """The description of a value of this model: "layers.7.attention.q", "logits"."""
    return family_of(config).parts[name.split(".", 2)[2] if name.startswith("layers.") else name]


@cache  # the lab asks again for every run
def source(function: Callable[..., Any], line: str = "") -> str:
    """The place where a function is defined, or its first line with this text: "npllm/attention.py:62"."""
    function = whole(function)
    lines, first = inspect.getsourcelines(function)
    offset = next(i for i, text in enumerate(lines) if line in text)
    path = Path(inspect.getfile(inspect.unwrap(function))).relative_to(PACKAGE.parent)
    return f"{path.as_posix()}:{first + offset}"


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is defined in the source, of one with some arguments fixed."""
    return whole(function.func) if isinstance(function, partial) else function
