"""The public calls `generate`, `stream` and `steps`: of a prompt, which is text or token ids, or of a list of prompts.

The loop itself takes ids (loop.py). The prompts of a list run several at once (apps/batches.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, overload

import numpy as np

from .. import loop
from ..cache import Cache
from ..errors import UsageError
from ..lm import LM
from ..loop import Choice, Step, as_ids, one_by_one
from ..tap import Tap, untapped
from ..text.arguments import boolean, check_writes, whole_number
from ..text.processors import Processor
from .batches import Request, are_prompts, generate_all, naming, one_for_each, steps_of_all
from .generation import Generation, generation

Prompt = str | Sequence[int] | np.ndarray
P = TypeVar("P", bound=Prompt)
Source = Callable[..., Iterator[Choice]]  # of tokens


class Options(TypedDict, total=False):
    """The options of a call with one prompt, as type checkers see them; the signatures have the defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str] | None
    seed: int | None
    use_cache: bool
    cache: Cache | None
    cache_dtype: str
    logits_processors: Sequence[Processor]
    top_logprobs: int | None
    tap: Tap
    tokens: Source
    batch_size: int | None


class OptionsOfMany(TypedDict, total=False):
    """Those of a call with a list of prompts: one value for all, or a list with one for each."""

    max_new_tokens: int | Sequence[int]
    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    min_p: float | Sequence[float]
    repetition_penalty: float | Sequence[float]
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None
    seed: int | Sequence[int | None] | None
    use_cache: bool | Sequence[bool]
    cache_dtype: str
    logits_processors: Sequence[Processor] | Sequence[Sequence[Processor]]
    top_logprobs: int | Sequence[int | None] | None
    tap: Tap | Sequence[Tap]
    tokens: Source | Sequence[Source]
    batch_size: int | None


@overload
def generate(lm: LM, prompt: Prompt, *, progress: bool = False, **options: Unpack[Options]) -> Generation: ...
@overload
def generate(
    lm: LM, prompt: list[P] | tuple[P, ...], *, progress: bool = False, **options: Unpack[OptionsOfMany]
) -> list[Generation]: ...
def generate(
    lm: LM,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int] = 100,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = (),
    seed: int | Sequence[int | None] | None = None,
    use_cache: bool | Sequence[bool] = True,
    cache: Cache | None = None,
    cache_dtype: str = "float32",
    logits_processors: Sequence[Processor] | Sequence[Sequence[Processor]] = (),
    top_logprobs: int | Sequence[int | None] | None = None,
    tap: Tap | Sequence[Tap] = untapped,
    tokens: Source | Sequence[Source] = one_by_one,
    batch_size: int | None = None,
    progress: bool = False,
) -> Generation | list[Generation]:
    """The continuation of a prompt, which is text or token ids; or of each prompt in a list, several at once.

    Parameters
    ----------
    prompt : a text, or a list of token ids; or a list of either
    max_new_tokens, ... tokens : as in `npllm.loop.steps`. With a list of prompts each may be a list, too, with a value
        for each prompt (`stop` and `logits_processors`: a list of lists). There is no "cache" then, and one
        "cache_dtype" for all. With "tokens", a tap or use_cache=False, the prompts run one after the other
    batch_size : how many of a list run at once; by default up to 16, or fewer if memory is short. It does not
        change the texts
    progress : whether to show a progress bar on stderr for a list

    Returns
    -------
    a `Generation`; for a list of prompts a list of them, in the same order

    Raises
    ------
    as `npllm.loop.steps` does. All prompts and options are checked before the first pass; the message names the prompt
    by its index

    >>> import npllm
    >>> lm = npllm.load()
    >>> npllm.generate(lm, "The capital of France is", max_new_tokens=2).text
    ' Paris.'
    >>> made = npllm.generate(lm, ["The capital of France is", "The sky is"], max_new_tokens=2)
    >>> [one.text for one in made]
    [' Paris.', ' a canvas']
    """
    options: dict[str, Any] = {**locals()}  # of the call, with lm and prompt
    boolean("progress", options.pop("progress"))
    check_writes(lm)
    if are_prompts(prompt):
        return generate_all(lm, requests(**options), batch_size, progress)
    ids = as_ids(lm, options.pop("prompt"))
    return generation(ids, list(steps(prompt=ids, **options)), options["top_logprobs"])


@overload
def stream(lm: LM, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]: ...
@overload
def stream(lm: LM, prompt: list[P] | tuple[P, ...], **options: Unpack[OptionsOfMany]) -> Iterator[tuple[int, str]]: ...
def stream(
    lm: LM,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int] = 100,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = (),
    seed: int | Sequence[int | None] | None = None,
    use_cache: bool | Sequence[bool] = True,
    cache: Cache | None = None,
    cache_dtype: str = "float32",
    logits_processors: Sequence[Processor] | Sequence[Sequence[Processor]] = (),
    top_logprobs: int | Sequence[int | None] | None = None,
    tap: Tap | Sequence[Tap] = untapped,
    tokens: Source | Sequence[Source] = one_by_one,
    batch_size: int | None = None,
) -> Iterator[str] | Iterator[tuple[int, str]]:
    """The generated text, piece by piece; of a list of prompts (index of the prompt, piece). Parameters as in `steps`.

    >>> import npllm
    >>> list(npllm.stream(npllm.load(), "The capital of France is", max_new_tokens=3))
    [' Paris', '.', '\\n']
    """
    made: Iterator[Any] = steps(**locals())
    if are_prompts(prompt):
        return ((index, step.text) for index, step in made if step.text)
    return (step.text for step in made if step.text)


@overload
def steps(lm: LM, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Step]: ...
@overload
def steps(lm: LM, prompt: list[P] | tuple[P, ...], **options: Unpack[OptionsOfMany]) -> Iterator[tuple[int, Step]]: ...
def steps(
    lm: LM,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int] = 100,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = (),
    seed: int | Sequence[int | None] | None = None,
    use_cache: bool | Sequence[bool] = True,
    cache: Cache | None = None,
    cache_dtype: str = "float32",
    logits_processors: Sequence[Processor] | Sequence[Sequence[Processor]] = (),
    top_logprobs: int | Sequence[int | None] | None = None,
    tap: Tap | Sequence[Tap] = untapped,
    tokens: Source | Sequence[Source] = one_by_one,
    batch_size: int | None = None,
) -> Iterator[Step] | Iterator[tuple[int, Step]]:
    """The generated tokens, as a `Step` each; of a list of prompts as they are made: (index of the prompt, `Step`).

    Parameters, checks and errors as in `generate`. The call checks everything.

    >>> import npllm
    >>> [step] = npllm.steps(npllm.load(), "The capital of France is", max_new_tokens=1, top_logprobs=2)
    >>> step.text, round(step.logprob, 2), [(id, round(logprob, 2)) for id, logprob in step.top_logprobs]
    (' Paris', -0.26, [(7042, -0.26), (260, -2.74)])
    """
    options: dict[str, Any] = {**locals()}  # of the call, with lm and prompt
    check_writes(lm)
    if are_prompts(prompt):
        return steps_of_all(lm, requests(**options), batch_size)
    check_batch_size(options.pop("batch_size"))
    return loop.steps(ids=as_ids(lm, options.pop("prompt")), **options)


def check_batch_size(batch_size: Any) -> None:
    """Raise UsageError for an invalid number of prompts at once."""
    if batch_size is not None:
        whole_number("batch_size", batch_size)


def requests(lm: LM, prompt: Sequence[Any], batch_size: Any, cache: Any, **options: Any) -> list[Request]:
    """The prompts of a list, each with its options."""
    check_batch_size(batch_size)
    if cache is not None:
        raise UsageError("cache: expected none with a list of prompts, which share one; got one")
    each = {name: one_for_each(name, value, len(prompt)) for name, value in options.items()}
    found = []
    for index, one in enumerate(prompt):
        name = f"prompt {index}: "
        with naming(name):
            found.append(Request(as_ids(lm, one), {key: each[key][index] for key in each}, None, name))
    return found
