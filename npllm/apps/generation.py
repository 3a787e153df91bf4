"""The result of a generation: all steps of the loop together."""

from collections.abc import Sequence
from typing import NamedTuple

from ..loop import Step
from ..text.brief import brief


class Generation(NamedTuple):
    """A finished continuation of a prompt."""

    text: str  # without the prompt, the end token and the stop string
    ids: list[int]  # including the end token, or those of the stop string
    prompt_ids: list[int]
    finish_reason: str  # "stop" or "length"
    logprobs: Sequence[float] = ()  # one for each id, as in `Step`; empty without top_logprobs (0: only these)
    top_logprobs: Sequence[list[tuple[int, float]]] = ()

    def __repr__(self) -> str:
        return brief(self)


def generation(prompt_ids: list[int], made: Sequence[Step], top_logprobs: int | None = None) -> Generation:
    """The finished continuation, from all its steps; with their log-probabilities unless `top_logprobs` is None."""
    text, ids = "".join(step.text for step in made), [step.id for step in made]
    found = Generation(text, ids, prompt_ids, made[-1].finish_reason or "")  # only the last step has one
    if top_logprobs is None:
        return found
    return found._replace(logprobs=[one.logprob for one in made], top_logprobs=[one.top_logprobs for one in made])
