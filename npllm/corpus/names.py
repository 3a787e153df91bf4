"""Keys of a record that look like options of npllm, but are not: other libraries' options, and misspelt ones."""

import difflib
import warnings
from collections.abc import Iterable
from functools import lru_cache

from ..errors import UsageError

FOREIGN = {  # options of other libraries and services, and npllm's for the same; None: it has none
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_gen_toks", "max_length"), "max_new_tokens"),
    **dict.fromkeys(("num_predict", "n_predict"), "max_new_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_strings"), "stop"),
    "repeat_penalty": "repetition_penalty",
    **dict.fromkeys(("do_sample", "num_beams", "best_of", "typical_p", "no_repeat_ngram_size", "logit_bias")),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens", "min_new_tokens", "stop_token_ids")),
}
OF_RUN = {"cache_dtype", "dtype"}
NEAR = 0.85  # difflib's ratio: from here on, two names count as similar


def check_foreign(names: Iterable[object]) -> None:
    """Raise UsageError for another library's option, or one of the whole run: without it, the text would differ."""
    for name in sorted(OF_RUN & {*names}):
        raise UsageError(f"{name}: not an option of a record; give it to the command, or rename this key")
    for name in sorted(FOREIGN.keys() & {*names}):
        advice = "npllm has none like it" if FOREIGN[name] is None else f"npllm's is {FOREIGN[name]}"
        raise UsageError(f"{name}: no such option, {advice}; rename this key if it is your own")


def warn_of_names(names: Iterable[object], known: frozenset[str]) -> None:
    """Warn of names that look like misspelt known ones, once in a process for each."""
    for name in names:
        if isinstance(name, str) and name not in known and name not in FOREIGN:
            warn_of_name(name, known)


@lru_cache(10_000)
def warn_of_name(name: str, known: frozenset[str]) -> None:
    """Warn if the name is similar to a known one."""
    for near in difflib.get_close_matches(name.lower().replace("-", "_"), known, 1, NEAR):
        warnings.warn(f"{name:.80}: copied to the results as your own key; did you mean {near}?", stacklevel=5)
