"""The tokens that end a text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError

if TYPE_CHECKING:
    from ..lm import LM


def end_ids(lm: "LM") -> frozenset[int]:
    """The tokens that end a text: those of the config, of the generation config and of the tokenizer together."""
    ids = {*lm.config.eos_token_id, *read_token_ids(lm.generation_config, "eos_token_id", "generation_config.json")}
    return frozenset(ids if lm.tokenizer is None else ids | lm.tokenizer.end_ids)


def read_token_ids(keys: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    """One id, a list of ids or nothing, as a tuple: config.json and generation_config.json have all three."""
    value = keys.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ModelFileError(f"{where}: {key}: expected a token id or a list of them, got {value!r}")
    return ids
