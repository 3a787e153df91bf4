"""Arrays that know what their axes and indices are, and show themselves as a table, or a heat map in a notebook.

`Labelled` is an ndarray, not a class around one: plt.imshow(x), x.max(), x @ y and every other function of arrays do
what they always do. Only a selection of its elements keeps its labels: x[3], x[:, 2:5], x["induction"]. Anything else,
even x.T, has none: labels that no longer fit would be wrong without being noticed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Float
from ..errors import UsageError
from .heat_html import RANKED, TOKENS, as_html, number
from .heatmap import window
from .terminal import percent
from .tokens import columns, padded

WIDTH, LINES = 100, 40  # columns and lines of a table
LABEL, BAR = 18, 30  # columns of a label and of a bar


class Labelled(np.ndarray[Any, np.dtype[Any]]):
    """A read-only array with a title, names of the axes, and a label for each index.

    >>> tokens = ["The", " cat"]
    >>> x = labelled(np.array([[1.0, 0.0], [0.9, 0.1]]), "weights", {"query": tokens, "key": tokens}, share=True)
    >>> x
    weights: query x key, in %
               'The'  ' cat'
    0 'The'      100
    1 ' cat'    90.0    10.0
    >>> x[" cat"]
    weights, query ' cat'
      0 'The'   90.0 %  ███████████████████████████
      1 ' cat'  10.0 %  ███
    >>> x[" cat"].argmax(), x.max(), type(x + 1).__name__
    (np.int64(0), np.float64(1.0), 'ndarray')
    """

    title: str = ""
    names: tuple[str, ...] = ()  # of the axes; none in a view without labels
    labels: tuple[tuple[str, ...], ...] = ()  # of the indices of each axis
    share: bool = False  # the elements are shares of 1, shown in percent
    ranked: bool = False  # shown in order of size
    words: np.ndarray | None = None  # a text for each element

    @property
    def array(self) -> np.ndarray:
        """The elements as a plain array."""
        return np.asarray(self)

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        dots = [place for place, one in enumerate(keys) if one is Ellipsis]
        if dots:
            keys = (*keys[: dots[0]], *[slice(None)] * (self.ndim - len(keys) + 1), *keys[dots[0] + 1 :])
        keys = tuple(self.index_of(axis, one) if isinstance(one, str) else one for axis, one in enumerate(keys))
        found = np.asarray(self)[keys]
        if not isinstance(found, np.ndarray) or not self.names or not all(map(is_basic, keys)):
            return found
        title, axes = self.title, dict[str, tuple[str, ...]]()
        for axis, (name, labels) in enumerate(zip(self.names, self.labels, strict=True)):
            chosen = keys[axis] if axis < len(keys) else slice(None)
            if isinstance(chosen, slice):
                axes[name] = labels[chosen]
            else:
                title += f", {name} {quoted(name, labels[chosen])}"
        words = None if self.words is None else self.words[keys]
        return labelled(found, title, axes, share=self.share, ranked=self.ranked, words=words)

    def index_of(self, axis: int, label: str) -> int:
        """The index of a label. Raises UsageError if there is none, or more than one."""
        name, labels = (self.names[axis], self.labels[axis]) if axis < len(self.names) else ("index", ())
        found = [i for i, one in enumerate(labels) if one == label]
        if len(found) > 1:
            raise UsageError(
                f"{name}: expected a label that occurs once, got {label!r}, which is at {found}; use these"
            )
        if not found:
            some = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
            raise UsageError(f"{name}: expected a number{f', or one of {some}' if some else ''}, got {label!r}")
        return found[0]

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __repr__(self) -> str:
        return as_text(self) if self.names else repr(np.asarray(self))

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        return as_html(self) if self.names else None


def labelled(
    array: Float[np.ndarray, "..."],
    title: str,
    axes: Mapping[str, Sequence[str]],
    *,
    share: bool = False,
    ranked: bool = False,
    words: np.ndarray | None = None,
    kind: type[Labelled] = Labelled,
) -> Any:
    """A copy of the array with labels: `axes` gives those of each axis, by the axis's name; see `Labelled`."""
    result = np.array(array).view(kind)
    result.title, result.share, result.ranked, result.words = title, share, ranked, words
    result.names, result.labels = tuple(axes), tuple(tuple(labels) for labels in axes.values())
    if tuple(map(len, result.labels)) != result.shape:
        raise ValueError(f"{title}: expected {result.shape} labels, got {tuple(map(len, result.labels))}")
    result.flags.writeable = False
    return result


def is_basic(key: Any) -> bool:
    """Whether an index is a number or a range of them."""
    return isinstance(key, int | np.integer | slice) and not isinstance(key, bool)


def quoted(name: str, label: str) -> str:
    """A label as a title and a table show it."""
    return f"'{label}'" if name in TOKENS else label


def row_labels(x: Labelled, axis: int) -> list[str]:
    """The labels of an axis as a table shows them: a token with its position."""
    name, labels = x.names[axis], x.labels[axis]
    wide = len(str(len(labels) - 1))
    places = [f"{i:{wide}} " if name in TOKENS[:3] else "" for i in range(len(labels))]
    return [place + quoted(name, label) for place, label in zip(places, labels, strict=True)]


def as_text(x: Labelled) -> str:
    """The array as a table of at most WIDTH columns."""
    axes = f": {' x '.join(x.names)}" if x.ndim > 1 else ""
    lines = [x.title + axes + (", in %" if x.share and x.ndim == 2 else "")]
    body = {1: bars, 2: table}.get(x.ndim, largest)(x)
    return "\n".join(line.rstrip() for line in [*lines, *body])


def bars(x: Labelled) -> list[str]:
    """A line for each element, with a bar; of a ranking, the largest first."""
    values, labels = x.array.astype(np.float64), row_labels(x, 0)
    if x.words is not None:
        labels = [f"{label}  '{word}'" for label, word in zip(labels, x.words, strict=True)]
    most = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    by_size = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable").tolist()
    order = by_size[:RANKED] if x.ranked else rows_of(len(values))
    wide = min(max((columns(label) for label in labels), default=0), 2 * LABEL)
    texts = {
        i: percent(float(values[i])) if x.share and values[i] else number(x, float(values[i])) for i in order if i >= 0
    }
    digits = max(map(len, texts.values()), default=0)

    def line(i: int) -> str:
        if i < 0:
            return "  ..."
        length = round(BAR * abs(values[i]) / (1.0 if x.share else most)) if most and np.isfinite(values[i]) else 0
        return f"  {padded(labels[i], wide)}  {texts[i]:>{digits}}  {'█' * length}"

    more = len(values) - RANKED
    return [*map(line, order), *([f"  ... {more} more, smaller"] if x.ranked and more > 0 else [])]


def rows_of(count: int) -> list[int]:
    """The rows to show: all, or the first and last ones with -1 between them."""
    half = LINES // 2
    return [*range(count)] if count <= LINES else [*range(half), -1, *range(count - half, count)]


def table(x: Labelled) -> list[str]:
    """A row for each index of the first axis; of many columns the first and the last ones, of many rows likewise."""
    rows = [padded(label, min(LABEL, columns(label))) for label in row_labels(x, 0)]
    first = max(map(columns, rows), default=0)
    texts = [[number(x, value) for value in row] for row in x.array.tolist()]
    if x.words is not None:
        words = [[padded(quoted("token", word), 10) for word in row] for row in x.words]
        texts = [
            [f"{word} {text:>4}" for word, text in zip(*row, strict=True)] for row in zip(words, texts, strict=True)
        ]
    heads = [quoted(x.names[1], label) for label in x.labels[1]]
    widest = max((len(text) for row in texts for text in row), default=1)
    wide = max(widest, min(max(map(columns, heads), default=1), 10))
    shown = list(window(len(heads), len(heads) - 1, max(2, (WIDTH - first - 5) // (wide + 2))))
    cut = len(shown) < len(heads)

    def line(label: str, cells: Sequence[str], gap: str) -> str:
        line = [" " * (wide - columns(cell)) + cell for cell in (padded(cells[i], wide).rstrip() for i in shown)]
        return "  ".join([padded(label, first), *line[:1], *([gap] if cut else []), *line[1:]])

    lines = [line(rows[i], texts[i], "   ") if i >= 0 else "..." for i in rows_of(len(rows))]
    return [line("", heads, "..."), *lines]


def largest(x: Labelled) -> list[str]:
    """For each index of the first axis, the three largest elements and where they are."""
    lines = []
    for label, part in zip(row_labels(x, 0), x, strict=True):
        order = np.argsort(-np.nan_to_num(part.array, nan=-np.inf), axis=None, kind="stable")[:3]
        places = [np.unravel_index(int(i), part.shape) for i in order]
        where = [
            f"{percent(float(part[at])) if x.share else number(x, float(part[at]))} at {', '.join(named_at(part, at))}"
            for at in places
        ]
        line = f"  {x.names[0]} {label}: {where[0]}"
        for more in where[1:]:
            line += f"; {more}" if columns(line) + len(more) < WIDTH - 2 else ""
        lines.append(line)
    return [lines[i] if i >= 0 else "  ..." for i in rows_of(len(lines))]


def named_at(x: Labelled, at: Sequence[Any]) -> list[str]:
    """The labels of an element: layer 5, head 3."""
    return [f"{name} {row_labels(x, axis)[int(i)]}" for axis, (name, i) in enumerate(zip(x.names, at, strict=True))]
