"""The answer to a prompt, token by token, with the run's edits and patches.

Without edits the new tokens are computed by the fastest pass there is. The prompt always goes through a tap, so that a
long pass can stop once nobody waits for it.
"""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from ..apps.chat import make_room
from ..cache import Cache
from ..errors import UsageError
from ..lm import LM
from ..loop import next_logits, steps
from ..options import check_options, check_prompt
from ..rope import needs_long_factors
from ..tap import Tap, untapped
from ..text.arguments import whole_number
from .runs import Run

SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
KEYS = ("max_new_tokens", *SAMPLING, "seed", "top")
MOST_TOP = 100


def generated(lm: LM, run: Run, cache: Cache, asked: Mapping[str, Any], changes: Tap, watch: Tap) -> Iterator[Any]:
    """First the ids of the prompt and the seed, then each token: its text, and how likely it and the likeliest were.

    Parameters
    ----------
    cache : the caller keeps it
    asked : max_new_tokens, the settings of the funnel, seed and top: how many alternatives
    changes : the edits and patches, then `watch`
    watch : called with each value of a pass; raises if nobody waits
    """
    ids = check_prompt(run.ids, lm.config)
    left = lm.config.max_position_embeddings - len(ids)
    most = min(whole_number("max_new_tokens", asked.get("max_new_tokens", 100)), left)
    top = whole_number("top", asked.get("top", 10), 0, MOST_TOP)
    sampling = check_options(**{name: asked.get(name, default) for name, default in SAMPLING.items()})
    seed = check_options(seed=asked.get("seed"))["seed"]
    seed = secrets.randbits(32) if seed is None and sampling["temperature"] > 0 else seed
    long = needs_long_factors(lm.config, len(ids))
    if run.patches and needs_long_factors(lm.config, len(ids) + most) != long:
        raise UsageError("patches: expected a text and an answer within the original context; ask for fewer tokens")
    through = changes if run.is_changed else untapped

    yield {"prompt_ids": ids, "seed": seed}
    cache["ids"] = list(ids)  # first: a pass that is cancelled leaves keys and values of these ids only
    if cache["length"] < len(ids) - 1:
        next_logits(watched(lm, changes if run.is_changed else watch), ids[:-1], cache)
    how = sampling | {"max_new_tokens": most, "seed": seed, "cache": cache, "top_logprobs": top}
    for count, step in enumerate(steps(lm, ids, tap=through, **how), 1):
        yield {
            "id": step.id,
            "text": step.text,
            "logprob": step.logprob,
            "top": step.top_logprobs,
            "finish_reason": step.finish_reason,
        }
        make_room(lm, cache, min(len(ids) + count + 1, lm.config.max_position_embeddings))


def watched(lm: LM, watch: Tap) -> LM:
    """The model with a tap in each of its passes, after the tap that a pass may have of its own."""

    def transform(*arguments: Any, tap: Tap = untapped, **options: Any) -> Any:
        return lm.transform(*arguments, tap=lambda name, value: watch(name, tap(name, value)), **options)

    return lm._replace(transform=transform)
