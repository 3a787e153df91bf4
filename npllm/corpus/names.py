"""Record keys that look like npllm options but are not: other libraries' options, and misspellings."""

import difflib
import warnings
from collections.abc import Iterable
from functools import lru_cache

from ..errors import UsageError

FOREIGN = {  # options of other libraries and services, and npllm's for the same; None: it has none
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_gen_toks"), "max_new_tokens"),
    "max_length": "max_new_tokens, which does not count the prompt",
    **dict.fromkeys(("num_predict", "n_predict"), "max_new_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_strings"), "stop"),
    "repeat_penalty": "repetition_penalty",
    **dict.fromkeys(("do_sample", "num_beams", "best_of", "typical_p", "no_repeat_ngram_size", "logit_bias")),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens", "min_new_tokens", "stop_token_ids")),
}
OF_RUN = {"cache_dtype", "dtype"}  # options of the command, not of a record
NEAR = 0.85  # difflib's ratio: from here on, two names count as similar


def check_of_run(names: Iterable[object]) -> None:
    """Raise UsageError for an option of the whole run: a record cannot have its own."""
    if found := OF_RUN & {*names}:
        raise UsageError(f"{min(found)}: not an option of a record; give it to the command, or rename this key")


def check_foreign(names: Iterable[object]) -> None:
    """Raise UsageError for another library's option: without it, the text would differ."""
    if found := FOREIGN.keys() & {*names}:
        name = min(found)
        advice = "npllm has no equivalent; rename" if FOREIGN[name] is None else f"use {FOREIGN[name]}, or rename"
        raise UsageError(f"{name}: not an npllm option; {advice} the key if it is your own")


def warn_of_names(names: Iterable[object], known: frozenset[str]) -> None:
    """Warn once per process of each name that looks like a misspelt known one."""
    for name in names:
        if isinstance(name, str) and name not in known and name not in FOREIGN:
            warn_of_name(name, known)


@lru_cache(10_000)
def warn_of_name(name: str, known: frozenset[str]) -> None:
    """Warn if the name is similar to a known one."""
    for near in difflib.get_close_matches(name.lower().replace("-", "_"), known, 1, NEAR):
        warnings.warn(f"{name:.80}: copied to the results as your own key; did you mean {near}?", stacklevel=5)
