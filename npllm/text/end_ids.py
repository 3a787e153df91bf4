"""The tokens that end a text."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ModelFileError

NONE = (-1, 2**32 - 1)  # what older config.json files and llama.cpp write for "no such token"


def end_ids(
    config_ids: Iterable[int], generation_config: Mapping[str, Any], tokenizer_ids: Iterable[int] = ()
) -> frozenset[int]:
    """The ids that end a text: the union of those in the config, the generation config and the tokenizer."""
    generation_ids = read_token_ids(generation_config, "eos_token_id", "generation_config.json")
    return frozenset({*config_ids, *generation_ids, *tokenizer_ids})


def read_token_ids(keys: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    """The ids under a key as a tuple: config.json and generation_config.json hold one id, a list of ids, or null.

    Ids that mean "none" (NONE) are left out.
    """
    value = keys.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and (i >= 0 or i in NONE) for i in ids):
        raise ModelFileError(f"{where}: {key}: expected a token id or a list of them, got {value!r:.80}")
    return tuple(i for i in ids if i not in NONE)
