"""Several texts at once: each pass makes the next token of every text, and reads the weights once for all of them.

A decode step takes as long as reading the weights does. Eight texts one after the other read them eight times to
get one token each; together they read them once. (The attention layers read the keys and values of each text in any
case.)

The texts have different lengths, so they are aligned at their ends. They share one KV cache [rows, K, C, H]:

    slot      0  1  2  3  4  5
    row 0     a  b  c  d  e  f
    row 1     .  .  .  p  q  r
    row 2     .  .  .  .  x  y

A pass writes all new keys and values into the next slot. The positions of a text count from its own first token, and
its mask hides the slots before that. A new text is prefilled alone, in a row of its own, and then moved to the right. A
text that ends leaves its row to one that waits. When one text is left, it runs as if it had always been alone.

Each text is the one that its prompt gives alone, up to rounding: a matrix product over several rows sums in a different
order than over a single row (see apps/speculation.py).

Source: Yu et al. 2022, "Orca: A distributed serving system for transformer-based generative models" (texts join and
leave between passes).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device
from tqdm import tqdm

from ..arrays import Array, array_namespace
from ..cache import Cache, empty_cache
from ..devices.device import free_bytes
from ..devices.dtypes import dtype_like
from ..devices.memory import check_generation
from ..errors import ModelFileError, NotEnoughMemoryError, UsageError
from ..families import family_of
from ..lm import LM, on_device
from ..loop import PREFILL_CHUNK, Choice, Step, next_logits, next_token, one_by_one, steps
from ..masks import aligned_mask
from ..options import check_options
from ..rope import needs_long_factors
from ..tap import untapped
from ..text.arguments import whole_number
from .constraints import ruled
from .generation import Generation, generation

MOST = 16  # texts at once, unless the caller says otherwise; a compiled step takes up to 32 (compiled/step.py)


class Request(NamedTuple):
    """A prompt to continue."""

    ids: list[int]
    options: Mapping[str, Any]  # of `steps`, with "max_new_tokens"
    rule: Callable[[Array], Array] | None = None  # logits -> logits, see apps/constraints.py
    name: str = ""  # in messages: "prompt 3: "


def are_prompts(value: Any) -> bool:
    """Whether the value is a list of prompts: of texts, or of lists of token ids."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Sequence) or getattr(first, "ndim", None) == 1


def one_for_each(name: str, value: Any, count: int) -> Sequence[Any]:
    """An option's value for each of the prompts. A list of strings to stop at is one value; so is one of functions."""
    if name == "cache_dtype" or not isinstance(value, list | tuple):
        return [value] * count
    if name in ("stop", "logits_processors") and all(isinstance(one, str) or callable(one) for one in value):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: expected one value, or one for each of the {count} prompts, got {len(value)}")
    return value


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the prompt's name before the message of an error that is about it."""
    try:
        yield
    except (UsageError, ModelFileError) as error:
        raise type(error)(f"{name}{error}") from error


def generate_all(
    lm: LM, requests: Sequence[Request], batch_size: int | None = None, progress: bool = False
) -> list[Generation]:
    """The continuations, in the order of the requests. Parameters and errors as in `npllm.generate`."""
    made: list[list[Step]] = [[] for _ in requests]
    with tqdm(total=len(requests), desc="Prompts", unit="", disable=not progress, leave=False) as bar:
        for index, step in steps_of_all(lm, requests, batch_size):
            made[index].append(step)
            bar.update(step.finish_reason is not None)
    pairs = zip(requests, made, strict=True)
    return [generation(one.ids, each, one.options.get("top_logprobs")) for one, each in pairs]


def steps_of_all(lm: LM, requests: Sequence[Request], batch_size: int | None = None) -> Iterator[tuple[int, Step]]:
    """The steps of all texts as they are made, each with the index of its request. The call checks everything."""
    rows = min(len(requests), MOST if batch_size is None else whole_number("batch_size", batch_size))
    rows = 1 if family_of(lm.config).masks_by_order else rows
    if any(needs_its_own_passes(each.options) for each in requests):
        for each in requests:
            with naming(each.name):
                steps(lm, each.ids, **each.options)  # for its checks
        return one_after_the_other(lm, requests)
    if not requests:
        return iter(())
    lengths = []
    for request in requests:
        with naming(request.name):
            new = check_options(max_new_tokens=request.options["max_new_tokens"])["max_new_tokens"]
        lengths.append(min(len(request.ids) + new, lm.config.max_position_embeddings))
    kind = check_options(cache_dtype=requests[0].options.get("cache_dtype", "float32"))["cache_dtype"]
    batch = Batch(lm, fitting(lm, rows, max(lengths), kind, batch_size is None), max(lengths), kind)
    texts = [Text(batch, *each) for each in zip(range(len(requests)), requests, lengths, strict=True)]
    return together(batch, deque(texts))


def needs_its_own_passes(options: Mapping[str, Any]) -> bool:
    """Whether a text with these options shares no pass with others; a tap would see their values, too."""
    usual = {"tokens": one_by_one, "use_cache": True, "tap": untapped}
    return any(options.get(name, value) is not value for name, value in usual.items())


def one_after_the_other(lm: LM, requests: Sequence[Request]) -> Iterator[tuple[int, Step]]:
    """The steps of all texts, one text after the other."""
    for index, (ids, options, rule, name) in enumerate(requests):
        with naming(name):
            for step in steps(ruled(lm, rule), ids, **options):
                yield index, step


def fitting(lm: LM, rows: int, capacity: int, cache_dtype: str, fewer: bool) -> int:
    """How many texts run at once: `rows`, or with `fewer` half of it and so on, until they fit into memory.

    Raises
    ------
    NotEnoughMemoryError : they do not fit
    """
    chunk = min(capacity, PREFILL_CHUNK)
    while True:
        try:
            check_generation(lm.config, capacity, chunk, cache_dtype, free_bytes(lm.weights.norm), texts=rows)
            return rows
        except NotEnoughMemoryError:
            if rows == 1 or not fewer:
                raise
            rows //= 2


class Text:
    """A text of the batch.

    cache : its row of the shared cache, as a cache of its own: valid while the text begins at slot 0
    start : the slot of its first token
    logits : for its next token
    finished : whether it has ended
    shares : whether it can be computed in one pass with others; not if it may need LongRoPE's long factors, with which
        its keys are computed anew
    """

    def __init__(self, batch: "Batch", index: int, request: Request, length: int) -> None:
        self.index, self.rule, self.name = index, request.rule, request.name
        self.shares = not needs_long_factors(batch.lm.config, length)
        self.start, self.finished, self.logits = 0, False, None
        self.cache: Cache = {}
        checked = batch.row(0) | {"length": 0}  # `steps` gets a cache only to find it large enough
        with naming(self.name):
            self.steps = steps(batch.lm, request.ids, **{**request.options, "cache": checked, "tokens": self.tokens})
        self.ids: list[int] = checked["ids"]  # the prompt, and then the new tokens

    def tokens(
        self, lm: LM, ids: list[int], cache: Cache, random: np.random.Generator, sampling: Mapping[str, Any]
    ) -> Iterator[Choice]:
        """The new tokens, appended to `ids`: the source of tokens for `steps`. The batch makes the logits."""
        while True:
            logits = self.logits if self.rule is None else self.rule(self.logits)
            choice = next_token(logits, ids, self.cache, random, sampling)
            ids.append(choice.id)
            yield choice

    def step(self) -> tuple[int, Step]:
        """The next step, from the logits."""
        with naming(self.name):
            made = next(self.steps)
        self.finished = made.finish_reason is not None
        return self.index, made

    def release(self) -> None:
        """Let go of the cache at once. `steps` and the text refer to each other, so it would stay until Python collects
        garbage."""
        self.steps, self.cache = iter(()), {}


class Batch:
    """The texts that are computed together, each in a row of one KV cache.

    live : the texts; text i is in row i
    storage : the whole cache, with free rows
    cache : the rows of the live texts
    """

    def __init__(self, lm: LM, rows: int, capacity: int, cache_dtype: str) -> None:
        self.lm, self.rows, self.live = lm, rows, list[Text]()
        like = lm.weights.norm
        self.storage = empty_cache(lm.config, capacity, (rows,), like=like, dtype=dtype_like(cache_dtype, like))
        self.arrays = [*self.storage["keys"], *self.storage["values"]]
        self.cache: Cache = {}

    def row(self, index: int) -> Cache:
        """A row as a cache of its own."""
        return self.part((index, ...))

    def part(self, key: Any) -> Cache:
        """Some rows of the keys and values."""
        return {name: [array[key] for array in self.storage[name]] for name in ("keys", "values")}

    def has_room_for(self, text: Text) -> bool:
        """Whether a text may join now."""
        return not self.live or (len(self.live) < self.rows and text.shares and self.live[0].shares)

    def join(self, text: Text) -> None:
        """Prefill a text in a free row."""
        text.cache = self.row(len(self.live)) | {"length": 0}
        text.logits = next_logits(self.lm, text.ids, text.cache)[0, :]
        self.live.append(text)

    def leave(self, row: int) -> None:
        """Remove a text; the last one takes its row."""
        self.live[row].release()
        last = self.live.pop()
        if row < len(self.live):
            self.live[row] = last
            for array in self.arrays:
                array[row, ...] = array[len(self.live), ...]
            last.cache |= self.row(row)

    def align(self) -> int:
        """Move the texts so that all end at the same slot, and the longest begins at slot 0; returns that end."""
        end = max(text.cache["length"] for text in self.live)
        for row, text in enumerate(self.live):
            old, length = text.start, text.cache["length"]
            text.start = end - length
            if text.start != old:
                for array in self.arrays:
                    moved = array[row, :, old : old + length, :]
                    array[row, :, text.start : end, :] = array_namespace(moved).asarray(moved, copy=True)
        return end

    @np.errstate(all="ignore")
    def compute(self) -> None:
        """One pass over the last token of each text: its logits for the next."""
        lm, live, end = self.lm, self.live, self.align()
        if len(live) == 1:
            live[0].logits = next_logits(lm, live[0].ids, live[0].cache)[0, :]
            return
        if len(self.cache.get("keys", [()])[0]) != len(live):
            self.cache = self.part((slice(len(live)), ...))
        self.cache["length"] = end
        last = on_device([[text.ids[-1]] for text in live], lm)
        starts = on_device([[text.start] for text in live], lm)
        slots = array_namespace(last).arange(end + 1, device=device(last))
        keys = slots - starts  # the positions in each text; before its beginning negative
        masks = {window: aligned_mask(keys, window) for window in {None, lm.config.sliding_window}}
        by_layer = [masks[lm.config.window(layer)] for layer in range(lm.config.num_hidden_layers)]
        options = {"positions": keys[:, -1:], "visible": by_layer, "total_length": end + 1}
        hidden, _ = lm.transform(last, lm.weights, lm.config, self.cache, **options)
        logits = lm.lm_head(hidden[:, -1, :], lm.weights, lm.config)
        for row, text in enumerate(live):
            text.logits, text.cache["length"] = logits[row, :], len(text.ids)


def together(batch: Batch, waiting: deque[Text]) -> Iterator[tuple[int, Step]]:
    """The loop of `steps_of_all` after its checks. The first token of a text comes from its prefill."""
    try:
        while waiting or batch.live:
            if waiting and batch.has_room_for(waiting[0]):
                text = waiting.popleft()
                with naming(text.name):
                    batch.join(text)
                yield text.step()
            else:
                batch.compute()
                for text in [*batch.live]:
                    yield text.step()
            for row in reversed(range(len(batch.live))):
                if batch.live[row].finished:
                    batch.leave(row)
    finally:
        for text in (*batch.live, *waiting):
            text.release()
