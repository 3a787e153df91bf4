"""An adapter for lm-evaluation-harness: npllm's models as its `LM`.

    import lm_eval, npllm
    from npllm.harness import NpllmLM
    results = lm_eval.simple_evaluate(model=NpllmLM(npllm.load()), tasks=["lambada_openai"])

Needs the extra `eval`. Requests are computed as records of a corpus are (corpus/work.py): continuations several at
once, and log-likelihoods one after the other.

Source: Gao et al. 2021, "A framework for few-shot language model evaluation".
"""

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..compiled.step import LARGEST
from ..corpus.records import OPTIONS, Job, Task
from ..corpus.work import results
from ..errors import UnavailableError, UsageError
from ..lm import LM
from ..text.arguments import check_writes
from ..text.end_ids import end_ids

INSTALLED = find_spec("lm_eval") is not None
TemplateLM: Any = importlib.import_module("lm_eval.api.model").TemplateLM if INSTALLED else object
MAX_NEW_TOKENS = 256  # the harness's own default


class NpllmLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate(model=...)`."""

    def __init__(self, lm: LM, batch_size: int | None = None, prefix_token_id: int | None = None) -> None:
        """batch_size : how many texts are continued at once, by default up to 32

        prefix_token_id : what stands before a text without a context: by default the token that the tokenizer puts
            before every text, or else the one that ends a text. The harness's own models take the tokenizer's
            bos_token, which may be another
        """
        if not INSTALLED:
            raise UnavailableError("NpllmLM needs lm-evaluation-harness: pip install 'npllm-reference[eval]'")
        super().__init__()
        check_writes(lm)
        if lm.tokenizer is None:
            raise UsageError("lm: expected a model with a tokenizer, got one without")
        self.model, self.tokens, self.batch_size = lm, lm.tokenizer, batch_size or LARGEST
        self.prefix = prefix_token_id

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        config = self.model.config
        return min(config.eos_token_id or end_ids((), self.model.generation_config, self.tokens.end_ids))

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self.prefix if self.prefix is not None else next(iter(self.tokens.encode("")), self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Its name in the harness's cache of requests."""
        return "npllm"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """The ids of a text; without add_special_tokens, without those that the tokenizer puts before every text."""
        ids = self.tokens.encode(string)
        return ids[len(self.tokens.encode("")) :] if add_special_tokens is False else ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether it is what greedy decoding makes.

        A context that is too long loses its beginning.
        """
        most = self.model.config.max_position_embeddings + 1  # the last token is predicted, but not read
        jobs = []
        for number, (_, context, continuation) in enumerate(requests):
            ids = [*context, *continuation][-most:]
            jobs.append(Job(number, number, ids, {}, {}, first=max(1, len(ids) - len(continuation))))
        return [(found["sum"], found["greedy"]) for found in self.answers(jobs, "score")]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, the first token after the end of a text; a long one in parts."""
        most = self.model.config.max_position_embeddings
        utils, found = importlib.import_module("lm_eval.utils"), []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=most, context_len=1)
            parts = [(("", ""), *utils.make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(parts)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to one of its strings "until"."""
        jobs = []
        for number, request in enumerate(requests):
            context, how = request.args
            options = generation_options(how)
            room = self.model.config.max_position_embeddings - options["max_new_tokens"]
            ids = self.tok_encode(context)[-max(1, room) :]
            jobs.append(Job(number, number, ids, {**OPTIONS, **options, "seed": number}, {}))
        return [found["text"] for found in self.answers(jobs, "generate")]

    def answers(self, jobs: Sequence[Job], task: str) -> list[dict[str, Any]]:
        """The results of the jobs, in their order. The first that fails is an error."""
        order = sorted(jobs, key=lambda job: -len(job.ids))
        found = {result.line: result.answer for result in results(self.model, order, Task(task), self.batch_size)}
        for job in jobs:
            if "error" in found[job.line]:
                raise UsageError(f"request {job.line}: {found[job.line]['error']}")
        return [found[job.line] for job in jobs]


def generation_options(how: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's options of a continuation as npllm's; greedy unless it says do_sample.

    >>> generation_options({"until": ["."], "max_gen_toks": 5, "do_sample": False})
    {'max_new_tokens': 5, 'stop': ['.'], 'temperature': 0.0}
    """
    left = dict(how)
    until, samples = left.pop("until", None) or [], left.pop("do_sample", float(left.get("temperature") or 0) > 0)
    found = {
        "max_new_tokens": left.pop("max_gen_toks", left.pop("max_new_tokens", MAX_NEW_TOKENS)),
        "stop": [until] if isinstance(until, str) else list(until),
        "temperature": left.pop("temperature", 1.0) if samples else 0.0,
    }
    left.pop("temperature", None)
    for name, value in left.items():
        if name not in OPTIONS:
            raise UsageError(f"generation_kwargs: {name}: expected one of {', '.join(OPTIONS)}, got {value!r:.40}")
        found[name] = value
    return found
