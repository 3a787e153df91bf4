"""An adapter for lm-evaluation-harness: npllm's models as its `LM`.

    import lm_eval, npllm
    from npllm.harness import NpllmLM
    results = lm_eval.simple_evaluate(model=NpllmLM(npllm.load()), tasks=["lambada_openai"])

Its own command, with npllm as one more model (`python -m npllm.harness --help`):

    python -m npllm.harness --model npllm --model_args pretrained=NAME --batch_size auto --tasks lambada_openai

Needs the extra `eval`. Requests are computed as the records of a corpus (corpus/work.py): generation is batched,
log-likelihoods run one at a time.

Source: Gao et al. 2021, "A framework for few-shot language model evaluation".
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from typing import Any

from tqdm import tqdm

from ..checkpoint.load import load
from ..compiled.step import LARGEST
from ..corpus.model_hash import model_hash
from ..corpus.records import Job, Task
from ..corpus.work import results
from ..errors import UnavailableError, UsageError
from ..lm import LM
from ..text.arguments import check_writes, whole_number
from ..text.chat_ids import Messages
from ..text.end_ids import end_ids
from .options import generation_options

INSTALLED = find_spec("lm_eval") is not None
TemplateLM: Any = importlib.import_module("lm_eval.api.model").TemplateLM if INSTALLED else object


class NpllmLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate(model=...)`."""

    def __init__(self, lm: LM, batch_size: int | None = None, prefix_token_id: int | None = None) -> None:
        """batch_size : texts continued at once, by default up to 32

        prefix_token_id : the token used as context when there is none: by default the one that the tokenizer puts
            before every text, or else the one that ends a text. The harness's own models use the tokenizer's
            bos_token, which may differ
        """
        if not INSTALLED:
            raise UnavailableError("NpllmLM needs lm-evaluation-harness: pip install 'npllm-reference[eval]'")
        super().__init__()
        check_writes(lm)
        if lm.tokenizer is None:
            raise UsageError("lm: expected a model with a tokenizer, got one without")
        self.model, self.tokens, self.prefix = lm, lm.tokenizer, prefix_token_id
        self.batch_size = LARGEST if batch_size is None else whole_number("batch_size", batch_size)
        self.context = lm.config.max_position_embeddings

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "NpllmLM":
        """From the harness's model_args: "pretrained", a model as in `npllm.load`; its options; and this class's.

        additional_config : the harness's own flags: "batch_size", a number or "auto"; and "device", by default
            "cuda:0", with which the CPU is used where there is no GPU
        """
        flags = dict(additional_config or {})
        if flags.get("device") == "cuda:0":
            flags["device"] = "auto"
        given = {name: value for name, value in {**flags, **arg_dict}.items() if value is not None}
        given.pop("max_batch_size", None)
        name, size, prefix = (given.pop(key, None) for key in ("pretrained", "batch_size", "prefix_token_id"))
        for option in given:
            if option not in (known := [*signature(load).parameters][1:]):
                known = ["pretrained", "batch_size", "prefix_token_id", *known]
                raise UsageError(f"model_args: expected {', '.join(known)}, got {option}")
        automatic = size is None or str(size).partition(":")[0] == "auto"  # or "auto:N"
        return cls(
            load(name, **given),
            None if automatic else whole_number("batch_size", int(size) if str(size).isdecimal() else size),
            prefix,
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "NpllmLM":
        """The same from "pretrained=NAME,dtype=int8"."""
        utils = importlib.import_module("lm_eval.utils")
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text: the configuration's first, or else the only one. Raises UsageError otherwise."""
        config = self.model.config.eos_token_id
        found = config or sorted(end_ids((), self.model.generation_config, self.tokens.end_ids))
        if not config and len(found) != 1:
            raise UsageError(f"expected one token that ends a text, got {[*found]}: give prefix_token_id")
        return found[0]

    @property
    def prefix_token_id(self) -> int:
        """The context when there is none."""
        start = self.tokens.encode("")
        return self.prefix if self.prefix is not None else start[0] if start else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """The model's name in the harness's cache of requests, which depend on its chat template."""
        return f"npllm-{model_hash(self.model)}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's chat template, for the harness's records; None if none is asked for."""
        if isinstance(chat_template, str):
            raise UsageError(f"apply_chat_template: expected no name, npllm reads one template, got {chat_template}")
        return self.tokens.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as one text; without add_generation_prompt it ends within the last message."""
        if self.tokens.render is None:
            raise UsageError("apply_chat_template: expected a model with a chat template, got one without")
        parts = self.tokens.render.parts(chat_history, add_generation_prompt)
        text, last = "".join(part.text for part in parts), chat_history[-1]["content"].strip()
        return text if add_generation_prompt else text[: text.rindex(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """The ids of a text; with the tokens that the tokenizer puts before every text once, even if a chat template
        has written them; without add_special_tokens without them."""
        ids, start = self.tokens.encode(string), self.tokens.encode("")
        twice = bool(start) and ids[: 2 * len(start)] == [*start, *start]
        return ids[len(start) :] if twice or add_special_tokens is False else ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether greedy decoding would produce it."""
        for number, request in enumerate(requests):
            if not any(request.args):
                raise UsageError(f"request {number}: expected a continuation, got an empty text")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **unused: Any,
    ) -> list[tuple[float, bool]]:
        """The same from ids. A context that is too long loses its beginning."""
        jobs = []
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.context:  # none: its text merges with the context's last token
                raise UsageError(
                    f"request {number}: expected a continuation of 1 to {self.context} tokens after its context,"
                    f" got {len(continuation)}"
                )
            ids = [*(context or [self.prefix_token_id]), *continuation]
            ids = ids[-self.context - 1 :]  # the last token is predicted, but not read
            jobs.append(Job(number, number, ids, {}, {}, first=len(ids) - len(continuation)))

        def finished(number: int, answer: dict[str, Any]) -> tuple[float, bool]:
            found, request = (answer["sum"], answer["greedy"]), requests[number][0]
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, found)
            return found

        return self.answers(jobs, "score", finished, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, its first token conditioned on the prefix token; long texts in
        windows."""
        utils, sums = importlib.import_module("lm_eval.utils"), []
        for request in tqdm(requests, "loglikelihood_rolling", disable=disable_tqdm):
            ids = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.context, context_len=1)
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            sums.append(sum(score for score, _ in self._loglikelihood_tokens(parts, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to one of its strings "until". A long context loses its beginning."""
        jobs = []
        for number, request in enumerate(requests):
            context, given = request.args
            options = generation_options(given)
            room = self.context - options["max_new_tokens"]
            if room < 1:
                raise UsageError(
                    f"max_gen_toks: expected less than the context of {self.context}, got {options['max_new_tokens']}"
                )
            ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            jobs.append(Job(number, number, ids, {**options, "seed": number}, {}))

        def finished(number: int, answer: dict[str, Any]) -> str:
            self.cache_hook.add_partial("generate_until", requests[number].args, answer["text"])
            return answer["text"]

        return self.answers(jobs, "generate", finished, disable_tqdm)

    def answers(
        self, jobs: Sequence[Job], task: str, finished: Callable[[int, dict[str, Any]], Any], disable_tqdm: bool
    ) -> list[Any]:
        """What `finished` makes of each job's answer, in the order of the jobs.

        Raises UsageError for the first that failed.
        """
        order = sorted(jobs, key=lambda job: -len(job.ids))
        computed, found = results(self.model, order, Task(task), self.batch_size), {}
        for line, answer, *_ in tqdm(computed, task, len(jobs), disable=disable_tqdm):
            if "error" in answer:
                raise UsageError(f"request {line}: {answer['error']}")
            found[line] = finished(line, answer)
        return [found[job.line] for job in jobs]


if INSTALLED:
    importlib.import_module("lm_eval.api.registry").register_model("npllm")(NpllmLM)
