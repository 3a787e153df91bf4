"""The two sides of a comparison: a trace file, or a model and how to run it.

Both sides process the same ids, and their values are aligned by position: chunks are concatenated, so row t of a value
is token t on both sides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..lm import LM
from ..text.one_line import escaped
from ..version import __version__
from .record import matches
from .trace import parse_ids, read_trace, trace


class Run(NamedTuple):
    """A model, and how to run it."""

    model: str | None = None  # a folder, a .gguf file or a Hub name; None: the default model
    device: str = "cpu"
    dtype: str = "auto"
    use_cache: bool = True  # all but the last token, then one step with the KV cache, as in `generate`
    chunk: int | None = None  # this many tokens at a time, with the KV cache


class Side(NamedTuple):
    """One side of a comparison."""

    values: dict[str, np.ndarray]
    metadata: dict[str, str]

    @property
    def ids(self) -> list[int] | None:
        """The token ids; None if a trace file does not have them."""
        return parse_ids(self.metadata["ids"], "ids") if "ids" in self.metadata else None

    @property
    def rounded_to(self) -> str:
        """The dtype that the weights were rounded to; "auto" does not round on the CPU."""
        dtype, place = self.metadata.get("dtype", "auto"), self.metadata.get("device", "cpu")
        return ("float32" if place == "cpu" else "float16") if dtype == "auto" else dtype


def trace_metadata(ids: Sequence[int], model: str | None, dtype: str, device: str) -> dict[str, str]:
    """The metadata of a trace file."""
    return {
        "ids": ",".join(map(str, ids)),
        "model": "the default model" if model is None else escaped(model),  # a folder's name need not be UTF-8
        "dtype": dtype,
        "device": device,
        "made_by": f"npllm {__version__}",
    }


def chunks(run: Run, tokens: int) -> list[int] | None:
    """The number of tokens in each pass of a run; None for one pass without the cache.

    >>> chunks(Run(), 5), chunks(Run(chunk=2), 5), chunks(Run(use_cache=False), 5)
    ([4, 1], [2, 2, 1], None)
    """
    if run.chunk is not None:
        whole, rest = divmod(tokens, run.chunk)
        return [run.chunk] * whole + [rest] * (rest > 0)
    if not run.use_cache:
        return None
    return [tokens - 1, 1] if tokens > 1 else [tokens]


def from_run(lm: LM, run: Run, ids: Sequence[int], only: str = "*") -> Side:
    """The values that a model computes in this run."""
    values = trace(lm, ids, only, chunks=chunks(run, len(ids)))
    return Side(values, trace_metadata(ids, run.model, run.dtype, run.device))


def from_file(path: Path, only: str = "*") -> Side:
    """The values of a trace file; errors as in `read_trace`."""
    return Side(*read_trace(path, only))


def check_same_text(a: Side, b: Side) -> None:
    """Raise UsageError for traces of different texts."""
    lengths = [next(iter(side.values.values())).shape[-2] for side in (a, b)]
    if lengths[0] != lengths[1]:
        raise UsageError(
            f"A and B: expected traces of the same text, got {lengths[0]} tokens in A and {lengths[1]} in B"
        )
    if a.ids is not None and b.ids is not None and a.ids != b.ids:
        first = next(i for i, (one, other) in enumerate(zip(a.ids, b.ids, strict=True)) if one != other)
        raise UsageError(
            f"A and B: expected the same ids, got {a.ids[first]} in A and {b.ids[first]} in B at token {first}"
        )


def only_in(side: Side, other: Side, only: str) -> list[str]:
    """The compared names that only one side has; masks are not a step of a pass, and are left out."""
    return [
        name
        for name in side.values
        if name not in other.values and matches(name, only) and not name.endswith(".visible")
    ]
