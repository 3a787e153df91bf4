"""config.json, key by key: each is checked when it is read, and a key that npllm does not know is named in a warning.

A family reads the keys that it implements, and lists those that it refuses and those that are harmless.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ModelFileError

# Larger than any existing model: a config.json with more is broken or malicious. Refused before allocating.
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
    "moe_intermediate_size": 2**20,
    "num_experts": 2**12,
    "num_local_experts": 2**12,
}
POSITIVE = "a positive number (1e-30 to 1e30)"
MATCH = "check that the file belongs to this model"
NOT_COMPUTED = "npllm does not compute it"


class Keys:
    """The keys of a config.json, and which of them have been read.

    values : the parsed file
    where : the file's name, for messages
    names : keys that have another name in this file: {"hidden_size": "n_embd"}
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json", names: Mapping[str, str] | None = None):
        self.values, self.where, self.names = values, where, dict(names or {})
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, unchecked; the default if the key is missing or null."""
        name = self.names.get(key, key)
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def mark_read(self, *names: str) -> None:
        """Count keys as read, by their names in this file."""
        self.read |= {*names}

    def has(self, key: str) -> bool:
        """Whether the file has the key, even as null."""
        return self.names.get(key, key) in self.values

    def refusal(self, key: str, expected: str, remedy: str = MATCH, got: Any = ...) -> ModelFileError:
        """The error for a key with an invalid value."""
        name = self.names.get(key, key)
        value = self.values.get(name) if got is ... else got
        return ModelFileError(f"{self.where}: {name}: expected {expected}, got {str(repr(value))[:200]}; {remedy}")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to the key's limit in LARGEST."""
        value, most = self.get(key, default), LARGEST.get(key, 2**31)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refusal(key, f"a whole number from {least} to {most}")
        return value

    def optional(self, key: str, absent: int | None = None) -> int | None:
        """A positive whole number; None if the file says null, `absent` if the key is missing."""
        if not self.has(key):
            self.get(key)
            return absent
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(key, default)
        if not is_positive(value):
            raise self.refusal(key, POSITIVE)
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
        value = self.values.get(self.names.get(key, key), default)  # unlike a missing key, null is refused
        if not isinstance(value, str) or value not in computed:
            raise self.refusal(key, " or ".join(repr(one) for one in computed), "npllm computes no other")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """An object; an empty one if the file has none."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refusal(key, "an object")
        return dict(value)

    def strings(self, key: str, count: int | None = None, known: Collection[str] = ()) -> tuple[str, ...]:
        """A list of strings, with `count` entries from `known` if given; () if the file has none."""
        value = self.get(key)
        if value is None:
            return ()
        valid = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        if not valid or count not in (None, len(value)) or (known and not {*value} <= {*known}):
            what = f"{'a list' if count is None else count} of {' and '.join(map(repr, known)) or 'strings'}"
            raise self.refusal(key, what)
        return tuple(value)

    def allow_only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Refuse any other value of these keys: npllm does not compute it.

        allowed : the values of each key that do not affect the computation; a missing key never does
        """
        for key, harmless in allowed.items():
            name = self.names.get(key, key)
            self.read.add(name)
            if name in self.values and not any(same(self.values[name], value) for value in harmless):
                expected = " or ".join(repr(value) for value in harmless) or "no such key"
                raise self.refusal(key, expected, NOT_COMPUTED)

    def finish(self, harmless: Collection[str]) -> None:
        """Warn about keys that were not read and are not known to be harmless: no key is ignored silently."""
        unknown = [
            name
            for name, value in self.values.items()
            if name not in self.read and name not in harmless and not name.startswith("_") and value is not None
        ]
        if unknown:
            some = ", ".join(str(name)[:60] for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            warnings.warn(f"{self.where}: ignored keys that npllm does not know: {some}", stacklevel=2)


def is_positive(value: Any) -> bool:
    """Whether a value is a positive number, not so large or small that a product or a quotient leaves float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 <= value <= 1e30


def same(value: Any, harmless: Any) -> bool:
    """Whether two values are equal and of the same kind: in Python 0 == False, but not in a config."""
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
