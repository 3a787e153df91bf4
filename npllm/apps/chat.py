"""A conversation: the loop, turn by turn, over one KV cache.

A model has no memory between turns. Every turn gives it the whole conversation as one text, in the chat format of its
checkpoint. The KV cache makes this cheap: it still holds everything except the new turn. When the conversation changes,
the cache keeps what the old ids and the new ones begin with.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..cache import CACHE_DTYPES, Cache, empty_cache, grow, kv_cache_bytes
from ..devices.device import free_bytes
from ..devices.dtypes import dtype_like
from ..devices.memory import check_memory
from ..errors import ModelFileError, UsageError
from ..lm import LM
from ..loop import Step, steps
from ..options import check_options, check_prompt
from ..text.arguments import check_writes, checked, shown
from ..text.chat_ids import check_messages


class Chat:
    """A conversation with a model.

    lm : a model whose tokenizer has a chat template
    messages : the turns so far, {"role": "system", "user" or "assistant", "content": text}
    cache : the KV cache, in cache_dtype; its capacity at least doubles when it grows
    cached_ids : the tokens whose keys and values are in the cache

    >>> import npllm
    >>> from npllm.apps.chat import Chat
    >>> chat = Chat(npllm.load())
    >>> "".join(step.text for step in chat.reply("What is the capital of France?"))
    'The capital of France is Paris.'
    >>> chat.messages[-1]
    {'role': 'assistant', 'content': 'The capital of France is Paris.'}
    """

    def __init__(self, lm: LM, system: str | None = None, cache_dtype: str = "float32") -> None:
        check_writes(lm)
        checked("system", system, str | None, lambda _: True, "a text or None")
        if lm.tokenizer is None:
            raise ModelFileError("the model has no tokenizer.json: expected one, because a chat needs it")
        if lm.tokenizer.chat_template is None:
            raise UsageError(
                "the model has no chat template: expected one; it can only continue a text (npllm generate)"
            )
        self.lm, self.tokenizer = lm, lm.tokenizer
        check_options(cache_dtype=cache_dtype)
        self.cache_dtype = cache_dtype
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Discard all turns except the system message."""
        self.messages = list(self.system)
        like = self.lm.weights.norm
        self.cache = empty_cache(self.lm.config, 0, like=like, dtype=dtype_like(self.cache_dtype, like))
        self.cached_ids: list[int] = []

    def resume(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Go on from these messages: turns of user and assistant, perhaps after a system message.

        Raises
        ------
        UsageError : they are not of this form, the chat template refuses them, or they leave no room for another turn
        """
        check_messages(messages)
        system = [dict(message) for message in messages[:1] if message.get("role") == "system"]
        turns = [dict(message) for message in messages[len(system) :]]
        for number, message in enumerate(turns):
            role = ("user", "assistant")[number % 2]
            if message.get("role") != role:
                raise UsageError(
                    f"messages: expected {role} as the role of number {number + len(system)}, got"
                    f" {shown(message.get('role'))}"
                )
        if len(turns) % 2:
            raise UsageError("messages: expected a reply to each turn, got none to the last")
        ids = self.tokenizer.chat_ids([*system, *turns, {"role": "user", "content": "?"}])
        check_prompt(ids, self.lm.config, what="conversation", remedy="shorten it")
        self.system, self.messages = system, [*system, *turns]

    def undo(self) -> str:
        """Remove the last turn and its reply; return the turn. Raises UsageError if there is none."""
        if len(self.messages) == len(self.system):
            raise UsageError("there is no turn yet: expected one before this")
        turn, _ = self.messages[-2:]
        del self.messages[-2:]
        return turn["content"]

    def retry(self, **options: Any) -> Generator[Step, None, None]:
        """Another reply to the last turn, in place of the old one; options and errors as in `reply`.

        Greedy decoding gives the same again. The old reply stays if the new one fails or says nothing.
        """
        before = list(self.messages)
        try:
            yield from self.reply(self.undo(), **options)
        finally:
            if len(self.messages) < len(before):
                self.messages = before

    def ids_with(self, text: str) -> list[int]:
        """The ids of the conversation with a new user turn, up to where the model's reply begins."""
        return self.tokenizer.chat_ids([*self.messages, {"role": "user", "content": text}])

    def reply(self, text: str, *, max_new_tokens: int = 1000, **options: Any) -> Generator[Step, None, None]:
        """The reply to the user's turn, step by step; options as in `steps`.

        If the iterator is closed or interrupted early, the part of the reply made so far is kept. If there is none, the
        turn is discarded.

        Raises
        ------
        UsageError : an argument is invalid, or the conversation is longer than the model's context
        """
        checked("text", text, str, lambda _: True, "a text")
        most = check_options(max_new_tokens=max_new_tokens)["max_new_tokens"]
        config, cache = self.lm.config, self.cache
        ids, context = self.ids_with(text), config.max_position_embeddings
        check_prompt(ids, config, what="conversation", remedy="/reset begins a new one")
        cache["length"] = common_prefix(self.cached_ids, ids)
        left, said, finish_reason = context - len(ids), "", None
        try:
            make_room(self.lm, cache, len(ids), self.cache_dtype)
            for step in steps(self.lm, ids, max_new_tokens=min(most, left), cache=cache, **options):
                ids.append(step.id)
                said, finish_reason = said + step.text, step.finish_reason
                make_room(self.lm, cache, len(ids), self.cache_dtype)
                yield step
        finally:
            self.cached_ids = ids[: cache["length"]]
            if said or finish_reason:
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]


def make_room(lm: LM, cache: Cache, tokens: int, cache_dtype: str = "float32") -> None:
    """Grow the KV cache, if needed, to a capacity of `tokens`."""
    capacity = cache["values"][-1].shape[-2]  # the last array that `grow` replaces, in case it was interrupted
    if tokens > capacity:
        larger = min(max(tokens, 2 * capacity), lm.config.max_position_embeddings)
        needed = kv_cache_bytes(lm.config, larger, CACHE_DTYPES[cache_dtype])
        check_memory({"KV cache": needed}, free_bytes(lm.weights.norm))
        grow(cache, larger)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix of two sequences.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
