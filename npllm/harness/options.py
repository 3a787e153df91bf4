"""The harness's options of a generation, as npllm's."""

from collections.abc import Mapping
from typing import Any

from ..corpus.records import OPTIONS
from ..errors import UsageError
from ..options import check_options

MAX_NEW_TOKENS = 256  # the harness's own default
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}


def generation_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's options as npllm's; greedy unless it says do_sample or a temperature.

    Numbers may be text, as the harness takes them.

    Raises
    ------
    UsageError : npllm has no such option, or its value is invalid

    >>> options = generation_options({"until": ["."], "max_gen_toks": 5, "do_sample": False})
    >>> options["max_new_tokens"], options["stop"], options["temperature"]
    (5, ['.'], 0.0)
    """
    left = {name: value for name, value in given.items() if value is not None}
    until, length = left.pop("until", []), [left.pop(name) for name in LENGTHS if name in left]
    temperature = number("temperature", left.pop("temperature", 1.0 if left.get("do_sample") else 0.0))
    options = {
        "max_new_tokens": length[0] if length else MAX_NEW_TOKENS,
        "stop": [until] if isinstance(until, str) else [one for one in until if one],
        "temperature": temperature if left.pop("do_sample", True) else 0.0,
    }
    for name, value in left.items():
        if name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name]:
            continue
        if name not in OPTIONS:
            raise UsageError(f"generation_kwargs: expected one of {', '.join(OPTIONS)}, got {name}: {value!r:.40}")
        options[name] = value
    return check_options(**{name: number(name, value) for name, value in {**OPTIONS, **options}.items()})


def number(name: str, value: Any) -> Any:
    """An option's value: a number where it is given as text."""
    try:
        return type(OPTIONS[name])(value) if isinstance(value, str) else value
    except ValueError:
        raise UsageError(f"generation_kwargs: {name}: expected a number, got {value!r:.40}") from None
