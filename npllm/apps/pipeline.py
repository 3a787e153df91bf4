"""The chapter's pipeline: set up with a model and options, it turns prompts into texts, like transformers' pipeline.

The same call gives the same result as in transformers, with these differences:

- decoding is greedy unless do_sample=True; transformers samples by default
- the continuation keeps the leading space that a SentencePiece tokenizer writes; transformers drops it
- stop strings are called `stop` and are not part of the text; in transformers they are `stop_sequence`, and are part
- a conversation must not end with the assistant's turn; transformers continues such a turn

Source: "Looking Inside Transformer LLMs" (the first code cell), "The Inputs and Outputs of a Trained Transformer LLM".
"""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, overload

import numpy as np

from ..checkpoint.load import load
from ..errors import ModelFileError, UsageError
from ..lm import LM
from ..loop import as_ids
from ..options import check_options
from ..tap import Tap
from ..text.arguments import boolean, whole_number
from ..text.processors import Processor
from ..tokenizer import Tokenizer
from .batches import Request, generate_all, naming
from .constraints import ignored, new_tokens, rule_for

Prompt = str | Sequence[int] | np.ndarray | Sequence[Mapping[str, str]]
P = TypeVar("P", bound=Prompt)
MAX_NEW_TOKENS = 256
# The defaults of transformers' pipeline, unless the call or the model's generation_config.json overrides them.
DEFAULTS = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "repetition_penalty": 1.0,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
LOAD = "pass model=npllm.load(name, device=..., dtype=...)"
INSTEAD = {  # arguments of transformers' pipeline, and what to do instead
    "torch_dtype": LOAD,
    "dtype": LOAD,
    "device": LOAD,
    "device_map": LOAD,
    "revision": LOAD,
    "model_kwargs": LOAD,
    "trust_remote_code": "leave it out: npllm never runs a checkpoint's code",
    "pad_token_id": "leave it out: nothing is padded",
    "max_length": "use max_new_tokens, which does not count the prompt",
    "logits_processor": "use logits_processors",
    "stop_sequence": "use stop",
    "stop_strings": "use stop",
}

CLASSIFIES = "npllm.apps.classify classifies"
ELSEWHERE = {  # other tasks of transformers' pipeline
    "fill-mask": "npllm.fill fills masks",
    "text-classification": CLASSIFIES,
    "sentiment-analysis": CLASSIFIES,
    "token-classification": CLASSIFIES,
    "ner": CLASSIFIES,
}


class Options(TypedDict, total=False):
    """The options of a pipeline and of each call, as type checkers see them."""

    return_full_text: bool | None
    max_new_tokens: int | None
    do_sample: bool | None
    num_return_sequences: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    use_cache: bool | None
    batch_size: int | None
    logits_processors: Sequence[Processor] | None
    tap: Tap | None


class TextGeneration:
    """What `pipeline` returns: a function that continues prompts with its model.

    options : those that hold unless a call gives others
    """

    def __init__(self, lm: LM, options: Mapping[str, Any]) -> None:
        self.lm, self.options = lm, options

    def __repr__(self) -> str:
        shown = ", ".join([self.lm.config.family, *(f"{name}={value!r}" for name, value in self.options.items())])
        return f"{type(self).__name__}({shown})"

    @overload
    def __call__(self, prompts: Prompt, **options: Unpack[Options]) -> list[dict[str, Any]]: ...
    @overload
    def __call__(self, prompts: list[P] | tuple[P, ...], **options: Unpack[Options]) -> list[list[dict[str, Any]]]: ...
    def __call__(
        self,
        prompts: Any,
        *,
        return_full_text: bool | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        num_return_sequences: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        use_cache: bool | None = None,
        batch_size: int | None = None,
        logits_processors: Sequence[Processor] | None = None,
        tap: Tap | None = None,
        **unknown: object,
    ) -> list[Any]:
        """The continuations of a prompt, or of each prompt in a list. None stands for the default.

        Parameters
        ----------
        prompts : a text; or its token ids; or a conversation, [{"role": "user", "content": "Hello"}, ...]; or a list of
            any of these
        return_full_text : whether the prompt is part of the result (default: True)
        max_new_tokens : the maximum number of new tokens (default: from generation_config.json, its max_new_tokens or
            max_length, else 256)
        do_sample : whether to sample each token (default: False, greedy decoding)
        num_return_sequences : how many continuations of each prompt; more than one requires do_sample (default: 1)
        temperature, top_k, top_p, min_p : the sampling parameters with do_sample (default: from generation_config.json,
            else 0.7, 50, 1 and 0)
        repetition_penalty, stop, seed, use_cache, logits_processors, tap : as in `npllm.generate`; continuation i of a
            prompt has the seed seed + i
        batch_size : how many continuations run at once (default: 16, or fewer where the memory is short; in
            transformers 1)
        unknown : refused; of transformers' options with what to do instead

        The tokens that generation_config.json rules out are ruled out, see apps/constraints.py; a warning names its
        settings that have no effect here.

        Returns
        -------
        [{"generated_text": text}, ...], a dict for each continuation; for a list of prompts, a list of such lists. For
        a conversation, the text is the assistant's turn, or with return_full_text all turns as messages

        Raises
        ------
        UsageError : an option, its value or a prompt is invalid
        """
        changes = given(locals())
        options = {**self.options, **changes}
        if is_prompt(prompts):
            return continue_all(self.lm, [prompts], **options)[0]
        if isinstance(prompts, list | tuple) and all(is_prompt(prompt) for prompt in prompts):
            return continue_all(self.lm, prompts, **options)
        raise UsageError(f"prompts: expected a text, token ids, messages, or a list of these, got {prompts!r:.80}")


def pipeline(
    task: str,
    model: LM | str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    return_full_text: bool | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool | None = None,
    num_return_sequences: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    use_cache: bool | None = None,
    batch_size: int | None = None,
    logits_processors: Sequence[Processor] | None = None,
    tap: Tap | None = None,
    **unknown: object,
) -> TextGeneration:
    """A function that continues prompts with this model and returns `[{"generated_text": ...}]`.

    Parameters
    ----------
    task : "text-generation"
    model : an LM, or a name as in `npllm.load`; None for the default model
    tokenizer : replaces the model's own
    return_full_text, ... tap : as in `TextGeneration.__call__`, the returned function, which takes them for a call, too

    >>> import npllm
    >>> lm = npllm.load()
    >>> generator = npllm.pipeline("text-generation", model=lm, return_full_text=False, max_new_tokens=20)
    >>> generator([{"role": "user", "content": "What is the capital of France?"}])
    [{'generated_text': 'The capital of France is Paris.'}]
    >>> generator("The capital of France is", return_full_text=True, max_new_tokens=1)
    [{'generated_text': 'The capital of France is Paris'}]
    """
    options = given(locals())
    if task != "text-generation":
        instead = f"; {ELSEWHERE[task]}" if isinstance(task, str) and task in ELSEWHERE else ""
        raise UsageError(f"task: expected text-generation, got {task!r}{instead}")
    if not isinstance(model, LM | str | Path | None):
        raise UsageError(f"model: expected what npllm.load takes or returns, got {type(model).__name__}")
    if not isinstance(tokenizer, Tokenizer | None):
        raise UsageError(f"tokenizer: expected npllm.load(...).tokenizer, got {type(tokenizer).__name__}")
    lm = model if isinstance(model, LM) else load(model)
    return TextGeneration(lm if tokenizer is None else lm._replace(tokenizer=tokenizer), options)


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the arguments of a call, those that are not None. Raises UsageError for an unknown one."""
    for name in arguments["unknown"]:
        instead = INSTEAD.get(name, "expected one of " + ", ".join(Options.__annotations__))
        raise UsageError(f"{name}: no such option; {instead}")
    return {name: arguments[name] for name in Options.__annotations__ if arguments[name] is not None}


def is_prompt(value: Any) -> bool:
    """Whether the value is a single prompt: a text, token ids, or messages."""
    if isinstance(value, list | tuple) and len(value) > 0:
        return all(isinstance(one, Mapping) for one in value) or isinstance(value[0], Integral)
    return isinstance(value, str) or getattr(value, "ndim", None) == 1


def continue_all(
    lm: LM,
    prompts: Sequence[Any],
    *,
    return_full_text: bool = True,
    do_sample: bool = False,
    num_return_sequences: int = 1,
    seed: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """The continuations of each prompt; parameters as in `TextGeneration.__call__`."""
    boolean("return_full_text", return_full_text)
    boolean("do_sample", do_sample)
    count = whole_number("num_return_sequences", num_return_sequences, 0)
    seed = check_options(seed=seed)["seed"]
    if count < 1 or (count > 1 and not do_sample):
        expected = "at least 1" if do_sample else "1, because without do_sample all would be equal"
        raise UsageError(f"num_return_sequences: expected {expected}, got {count}")
    if unused := ignored(lm, do_sample):
        warnings.warn(f"generation_config.json: {', '.join(unused)} has no effect in npllm", stacklevel=3)
    if not do_sample:
        unused = [name for name in SAMPLING if name in options]
        if unused:
            warnings.warn(f"without do_sample=True, {', '.join(unused)} has no effect", stacklevel=3)
    given = settings(lm) | options | ({} if do_sample else {"temperature": 0.0})
    seeds = [None if seed is None else seed + i for i in range(count)]
    requests = []
    for index, prompt in enumerate(prompts):
        name = f"prompt {index}: " if len(prompts) > 1 else ""
        with naming(name):
            requests += [request_for(lm, prompt, given | {"seed": one}, name) for one in seeds]
    texts = iter([made.text for made in generate_all(lm, requests, batch_size)])
    return [[result(lm, prompt, next(texts), return_full_text) for _ in seeds] for prompt in prompts]


def request_for(lm: LM, prompt: Any, given: Mapping[str, Any], name: str) -> Request:
    """One continuation to make, with the options that the call and generation_config.json give."""
    ids = chat_ids(lm, prompt) if are_messages(prompt) else as_ids(lm, prompt)
    how = {**DEFAULTS, **given}
    if "max_new_tokens" not in given:
        how["max_new_tokens"] = new_tokens(lm, len(ids), default=MAX_NEW_TOKENS)
    most = check_options(max_new_tokens=how["max_new_tokens"])["max_new_tokens"]
    most = min(most, lm.config.max_position_embeddings - len(ids))
    return Request(ids, how, rule_for(lm, len(ids), most), name)


def are_messages(prompt: Any) -> bool:
    """Whether a prompt is a conversation."""
    return isinstance(prompt, list | tuple) and isinstance(prompt[0], Mapping)


def result(lm: LM, prompt: Any, text: str, return_full_text: bool) -> dict[str, Any]:
    """A continuation as the pipeline returns it."""
    whole: Any = text
    if return_full_text and are_messages(prompt):
        whole = [*prompt, {"role": "assistant", "content": text}]
    elif return_full_text:
        decoded = prompt if isinstance(prompt, str) or lm.tokenizer is None else lm.tokenizer.decode(prompt)
        whole = decoded + text if isinstance(decoded, str) else text
    return {"generated_text": whole}


def settings(lm: LM) -> dict[str, Any]:
    """The generation settings in generation_config.json."""
    found = {name: lm.generation_config[name] for name in DEFAULTS if lm.generation_config.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelFileError(f"generation_config.json: {name}: expected a number, got {value!r:.80}")
    stop = lm.generation_config.get("stop_strings")
    return found if stop is None else found | {"stop": stop}


def chat_ids(lm: LM, messages: Any) -> list[int]:
    """The ids of a conversation, up to where the assistant's turn begins."""
    if lm.tokenizer is None:
        raise ModelFileError("the model has no tokenizer.json: expected one, because a chat needs it")
    if messages[-1].get("role") == "assistant":
        raise UsageError(
            "messages: expected the last turn to be another's, got the assistant's; remove it to generate one"
        )
    return lm.tokenizer.chat_ids(messages)
