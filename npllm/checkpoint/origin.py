"""Text that knows who wrote each of its characters, for chat templates.

A template combines texts of its own with those of the messages, and only its own may become control tokens. So its
constants are `Text` of origin TEMPLATE, and the content of message i is `Text` of origin MESSAGES + i. Slices, joins,
replacements, formatting and so on keep the origin of each character. Any other operation returns a plain str, whose
origin is UNKNOWN. So an operation that is missing here can lose a control token, but never forge one.

Numbers work the same way: a `Number` depends on the template alone. A plain int may depend on a message, as the length
of a text does. So its digits have no known origin, nor does the text that it selects.

Each operation returns the same characters as that of str. The sizes of the texts are limited.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

UNKNOWN, TEMPLATE, MESSAGES = 0, 1, 2  # that of message i is MESSAGES + i; sandbox.render subtracts MESSAGES

MAX_SIZE = 2**24  # characters of a text, or items of a list
MAX_TOTAL = 2**29  # characters and items in all that one rendering makes
WIDE = re.compile(r"\d{6}|\*")  # a width that no format needs, or one that is a value

# A conversion of the % operator, such as %(name)-5.2f
CONVERSION = re.compile(r"%(?:\((?P<key>[^)]*)\))?(?P<layout>[#0\- +]*(?:\d+|\*)?(?:\.(?:\d+|\*)?)?)[hlL]?(?P<type>.)")


class Total:
    """What this process has made since `size` was set to 0."""

    size = 0


def count(size: int) -> int:
    """Count something that is about to be made, and return its size. Raises OverflowError if that is too much."""
    Total.size += max(size, 0)
    if size > MAX_SIZE or Total.size > MAX_TOTAL:
        raise OverflowError(f"a text or list has more than {MAX_SIZE} characters or items, or all have {MAX_TOTAL}")
    return size


class Number(int):
    """An integer that depends on the template alone."""

    def __str__(self) -> str:
        return Text(int.__repr__(self), TEMPLATE)

    def __neg__(self) -> "Number":
        return Number(int.__neg__(self))


class Text(str):
    """A str with an origin for each character.

    origins : one for all characters, or a str with one for each, as characters: chr(TEMPLATE), ...
    """

    _origins: str  # the underscore hides it from the template

    def __new__(cls, text: str = "", origins: int | str = UNKNOWN) -> "Text":
        made = super().__new__(cls, text)
        size = count(len(made))
        made._origins = origins if isinstance(origins, str) else chr(origins) * size
        return made

    def __str__(self) -> str:
        return self

    def _part(self, start: int, stop: int) -> "Text":
        return Text(str.__getitem__(self, slice(start, stop)), self._origins[start:stop])

    def _chosen_by(self, *inputs: Any) -> "Text":
        """This text, which the inputs selected. If they depend on a message, the template's characters become UNKNOWN.

        Otherwise a message could spell any text with them: alphabet[n].
        """
        return self if known(*inputs) else Text(self, self._origins.replace(chr(TEMPLATE), chr(UNKNOWN)))

    def _split(self, pieces: Iterable[str], gap: int | None) -> "list[Text]":
        """Consecutive pieces of this text with their origins. gap: the characters between two; None for white space."""
        found, start = [], 0
        for piece in pieces:
            start = self.find(piece, start) if gap is None else start
            found.append(self._part(start, start + len(piece)))
            start += len(piece) + (gap or 0)
        return found

    def _changed(self, text: str) -> "Text":
        """A text made from this one character by character, such as upper case."""
        if len(text) == len(self):
            return Text(text, self._origins)
        return Text(text, TEMPLATE if known(self) else UNKNOWN)

    def __iter__(self) -> "Iterator[Text]":
        return map(Text, str.__iter__(self), self._origins)

    def __getitem__(self, key: Any) -> "Text":
        part = Text(str.__getitem__(self, key), self._origins[key])
        return part._chosen_by(*((key.start, key.stop, key.step) if isinstance(key, slice) else (key,)))

    def __add__(self, other: Any) -> "Text":
        return joined((self, other)) if isinstance(other, str) and not hasattr(other, "__html__") else NotImplemented

    def __radd__(self, other: Any) -> "Text":
        return joined((other, self)) if isinstance(other, str) and not hasattr(other, "__html__") else NotImplemented

    def __mul__(self, times: Any) -> "Text":
        count(len(self) * times)
        return Text(str.__mul__(self, times), self._origins * times)._chosen_by(times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Text":
        return formatted(self, values)

    def join(self, items: Iterable[str], /) -> "Text":
        return joined(part for i, item in enumerate(items) for part in ((self, item) if i else (item,)))

    def split(self, sep: str | None = None, maxsplit: int = -1) -> "list[Text]":  # type: ignore[override]
        pieces = self._split(str.split(self, sep, maxsplit), None if sep is None else len(sep))
        return [piece._chosen_by(sep, maxsplit == -1 or maxsplit) for piece in pieces]

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> "list[Text]":  # type: ignore[override]
        pieces = self._split(str.rsplit(self, sep, maxsplit), None if sep is None else len(sep))
        return [piece._chosen_by(sep, maxsplit == -1 or maxsplit) for piece in pieces]

    def splitlines(self, keepends: bool = False) -> "list[Text]":  # type: ignore[override]
        lines = self._split(str.splitlines(self, True), 0)
        return lines if keepends else [line._part(0, len(str.splitlines(line)[0])) for line in lines]

    def partition(self, sep: str, /) -> "tuple[Text, ...]":  # type: ignore[override]
        return tuple(piece._chosen_by(sep) for piece in self._split(str.partition(self, sep), 0))

    def rpartition(self, sep: str, /) -> "tuple[Text, ...]":  # type: ignore[override]
        return tuple(piece._chosen_by(sep) for piece in self._split(str.rpartition(self, sep), 0))

    def replace(self, old: str, new: str, times: Any = -1, /) -> str:
        if old == "":
            count(len(self) + (len(self) + 1) * len(new))
            return str.replace(self, old, new, times)
        new = new if isinstance(new, Text) else Text(new)
        origins, start = [], 0
        for piece in str.split(self, old, times):
            origins.append(self._origins[start : start + len(piece)])
            start += len(piece) + len(old)
        count(len(self) + (len(origins) - 1) * (len(new) - len(old)))
        made = Text(str.replace(self, old, new, times), new._origins.join(origins))
        return made._chosen_by(old, times == -1 or times)

    def lstrip(self, chars: str | None = None, /) -> "Text":
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))._chosen_by(chars)

    def rstrip(self, chars: str | None = None, /) -> "Text":
        return self._part(0, len(str.rstrip(self, chars)))._chosen_by(chars)

    def strip(self, chars: str | None = None, /) -> "Text":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> "Text":
        return self._part(len(self) - len(str.removeprefix(self, prefix)), len(self))._chosen_by(prefix)

    def removesuffix(self, suffix: str, /) -> "Text":
        return self._part(0, len(str.removesuffix(self, suffix)))._chosen_by(suffix)

    def upper(self) -> "Text":
        return self._changed(str.upper(self))

    def lower(self) -> "Text":
        return self._changed(str.lower(self))

    def title(self) -> "Text":
        return self._changed(str.title(self))

    def capitalize(self) -> "Text":
        return self._changed(str.capitalize(self))

    def swapcase(self) -> "Text":
        return self._changed(str.swapcase(self))

    def casefold(self) -> "Text":
        return self._changed(str.casefold(self))

    # These return a plain str; only its size is limited.

    def center(self, width: Any, *fill: str) -> str:
        return str.center(self, count(width), *fill)

    def ljust(self, width: Any, *fill: str) -> str:
        return str.ljust(self, count(width), *fill)

    def rjust(self, width: Any, *fill: str) -> str:
        return str.rjust(self, count(width), *fill)

    def zfill(self, width: Any, /) -> str:
        return str.zfill(self, count(width))

    def expandtabs(self, tabsize: Any = 8) -> str:
        count(len(self) + str.count(self, "\t") * tabsize)
        return str.expandtabs(self, tabsize)

    def translate(self, table: Any, /) -> str:
        return joined(str.translate(character, table) for character in str.__iter__(self))


def joined(texts: Iterable[str]) -> Text:
    """The texts one after the other, each character with its origin."""
    pieces: list[str] = []
    size = 0
    for text in texts:
        pieces.append(text)
        size += len(text)
        if size > MAX_SIZE:
            count(size)
    origins = (text._origins if isinstance(text, Text) else chr(UNKNOWN) * len(text) for text in pieces)
    return Text("".join(pieces), "".join(origins))


def parts(text: Text) -> "Iterator[tuple[int, str]]":
    """The longest runs of characters of one origin, in order, each with its origin."""
    for run in re.finditer("\x01+|[^\x01]+", text._origins):  # faster than the pattern below, which is seldom needed
        same = run[0].count(run[0][0]) == len(run[0])
        for part in [run] if same else re.compile(r"(.)\1*", re.DOTALL).finditer(text._origins, *run.span()):
            yield ord(part[0][0]), str.__getitem__(text, slice(*part.span()))


def formatted(text: Text, values: Any) -> Text:
    """The % operator."""
    conversions = list(CONVERSION.finditer(text))
    if any(WIDE.search(conversion["layout"]) for conversion in conversions):
        raise OverflowError("a format has a width of more than 99999")
    whole = str.__mod__(text, values)
    rest = iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    end = 0
    for conversion in conversions:
        pieces.append(text._part(end, conversion.start()))
        end = conversion.end()
        layout, kind, key = conversion["layout"], conversion["type"], conversion["key"]
        if kind == "%":
            pieces.append(text._part(end - 1, end))
            continue
        value = next(rest) if key is None else values[key]
        plain = kind == "s" and not layout
        pieces.append(as_text(value) if plain else kept(f"%{layout}{kind}" % (value,), value))
    made = joined([*pieces, text._part(end, len(text))])
    return made if made == whole else kept(whole, text, values)


def as_text(value: Any) -> str:
    """str(value), with its origin."""
    return value if isinstance(value, str) else kept(str(value), value)


def kept(result: Any, *inputs: Any) -> Any:
    """The result of an operation. A plain str or int is the template's if all the inputs are."""
    if type(result) is str:
        return Text(result, TEMPLATE if known(*inputs) else UNKNOWN)
    if type(result) is int and known(*inputs):
        return Number(result)
    if type(result) is list:
        count(len(result))
    return result


def known(*inputs: Any) -> bool:
    """Whether values depend on the template alone."""
    left = list(inputs)
    for _ in range(1000):  # a value with more parts counts as unknown
        if not left:
            return True
        value = left.pop()
        if isinstance(value, Text):
            if value._origins.count(chr(TEMPLATE)) < len(value):
                return False
        elif type(value) in (list, tuple, dict):
            if len(value) > 1000:
                return False
            left.extend(value)
            left.extend(value.values() if type(value) is dict else ())
        elif not (value is None or isinstance(value, (Number, bool))):
            return False
    return False
