"""config.json key by key: each is checked when it is read, and none that could change a number is ignored.

A family reads the keys that it computes, and lists those that it refuses and those that it knows to be harmless.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ModelFileError

# Beyond any model that exists: a config.json that asks for more is broken or hostile. Refused before allocating.
LARGEST = {
    "vocab_size": 2**24,  # float32 holds every id below 2**24 exactly
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "max_position_embeddings": 2**27,
    "num_labels": 2**16,
}
MATCH = "check that the file belongs to this model"
NOT_COMPUTED = "npllm does not compute it"


class Keys:
    """The keys of a config.json, and which of them have been read.

    values : the parsed file
    where : the file's name, for messages
    names : this file's spelling of a key, where it differs: {"hidden_size": "n_embd"}
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json", names: Mapping[str, str] | None = None):
        self.values, self.where, self.names = values, where, dict(names or {})
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, unchecked; the default where the file has none, or null."""
        name = self.names.get(key, key)
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Whether the file has the key, be it null."""
        return self.names.get(key, key) in self.values

    def refusal(self, key: str, expected: str, remedy: str = MATCH, got: Any = ...) -> ModelFileError:
        """The error for a key with a value that cannot be used."""
        name = self.names.get(key, key)
        value = self.values.get(name) if got is ... else got
        return ModelFileError(f"{self.where}: {name}: expected {expected}, got {str(repr(value))[:200]}; {remedy}")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up to the largest that is sensible for the key."""
        value, most = self.get(key, default), LARGEST.get(key, 2**31)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refusal(key, f"a whole number from {least} to {most}")
        return value

    def optional(self, key: str, absent: int | None = None) -> int | None:
        """A whole number from 1; None where the file says null, `absent` where it lacks the key."""
        if not self.has(key):
            self.get(key)
            return absent
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(key, default)
        if not is_positive(value):
            raise self.refusal(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def choice(self, key: str, computed: Collection[Any], default: Any = None) -> Any:
        """One of the values that npllm computes."""
        self.get(key)
        value = self.values.get(self.names.get(key, key), default)  # null is not absent
        if not isinstance(value, str) or value not in computed:
            raise self.refusal(key, " or ".join(repr(one) for one in computed), "npllm computes no other")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """An object; an empty one where the file has none."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refusal(key, "an object")
        return dict(value)

    def strings(self, key: str, count: int | None = None, known: Collection[str] = ()) -> tuple[str, ...]:
        """A list of strings, of `count` entries out of `known` where these are given; () where the file has none."""
        value = self.get(key)
        if value is None:
            return ()
        valid = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        if not valid or count not in (None, len(value)) or (known and not {*value} <= {*known}):
            what = f"{'a list' if count is None else count} of {' and '.join(map(repr, known)) or 'strings'}"
            raise self.refusal(key, what)
        return tuple(value)

    def refuse(self, unless: Mapping[str, Sequence[Any]]) -> None:
        """Refuse keys that change the computation in ways npllm does not know.

        unless : for each key the values that change nothing; a key that the file leaves out changes nothing either
        """
        for key, harmless in unless.items():
            name = self.names.get(key, key)
            self.read.add(name)
            if name in self.values and not any(same(self.values[name], value) for value in harmless):
                expected = " or ".join(repr(value) for value in harmless) or "no such key"
                raise self.refusal(key, expected, NOT_COMPUTED)

    def finish(self, harmless: Collection[str]) -> None:
        """Warn of keys that nothing has read and that are not known to be harmless: no key is ignored silently."""
        unknown = [
            name
            for name, value in self.values.items()
            if name not in self.read and name not in harmless and not name.startswith("_") and value is not None
        ]
        if unknown:
            some = ", ".join(str(name)[:60] for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            warnings.warn(f"{self.where}: ignored keys that npllm does not know: {some}", stacklevel=2)


def is_positive(value: Any) -> bool:
    """Whether a value is a number above 0 that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300


def same(value: Any, harmless: Any) -> bool:
    """Whether two values are equal and of the same kind: in Python 0 == False, in a config they differ."""
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
