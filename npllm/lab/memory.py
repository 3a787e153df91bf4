"""What was computed last, so that a click needs no new pass: passes by their run, and KV caches. Both are bounded."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ..apps.chat import common_prefix, make_room
from ..cache import Cache, empty_cache
from ..config import Config
from ..errors import UsageError
from ..inspect.look import Look
from ..lm import LM
from .runs import Run

LOOKS = 2 * 2**30  # bytes of all passes that are kept
CACHES = 4  # KV caches that are kept


def most_tokens(config: Config) -> int:
    """The longest text that the lab looks at: two passes, the untouched one and another, fit in LOOKS.

    A pass keeps L N T² attention weights, and for each token its logits and three vectors of each layer.
    """
    layers = config.num_hidden_layers
    square = 4 * layers * config.num_attention_heads
    each = 4 * (config.vocab_size + (3 * layers + 1) * config.hidden_size)
    most = (math.sqrt(each**2 + 2 * square * LOOKS) - each) / (2 * square)
    return min(int(most), config.max_position_embeddings)


class Seen(NamedTuple):
    """A pass and the seconds it took."""

    look: Look
    seconds: float


class Looks:
    """The last passes, by their run; together at most LOOKS bytes."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Run, Seen] = OrderedDict()

    def get(self, run: Run, make: Callable[[], Seen]) -> Seen:
        """The pass of this run: the one that is kept, or a new one."""
        if run not in self.kept:
            self.kept[run] = make()
        self.kept.move_to_end(run)
        sizes = {one: sum(value.nbytes for value in seen.look.values.values()) for one, seen in self.kept.items()}
        while len(self.kept) > 1 and sum(sizes[one] for one in self.kept) > LOOKS:
            self.kept.popitem(last=False)
        return self.kept[run]


def check_length(config: Config, ids: tuple[int, ...]) -> None:
    """Raise UsageError for a text so long that its pass cannot be kept."""
    most = most_tokens(config)
    if len(ids) > most:
        raise UsageError(f"the text is too long: {len(ids)} tokens, but the lab takes at most {most}; shorten it")


class Caches:
    """The last KV caches, by what changes their numbers. A generation takes one out, and puts it back at its end."""

    def __init__(self) -> None:
        self.kept: list[tuple[Run, Cache]] = []

    def take(self, lm: LM, run: Run) -> Cache:
        """A cache for this run: the one with the longest common prefix, or a new one.

        Patches are of positions that a reused prefix would skip: their caches are new.
        """
        fitting = [one for one in self.kept if one[0].edits == run.edits and not run.patches and not one[0].patches]
        best = max(fitting, key=lambda one: common_prefix(one[1]["ids"], run.ids), default=None)
        if best is None or not common_prefix(best[1]["ids"], run.ids):
            cache = empty_cache(lm.config, 0, like=lm.weights.norm)
        else:
            self.kept = [one for one in self.kept if one is not best]
            cache = best[1]
            cache["length"] = min(cache["length"], common_prefix(cache["ids"], run.ids))
        make_room(lm, cache, len(run.ids))
        return cache

    def put(self, run: Run, cache: Cache) -> None:
        """Keep a cache, and drop the oldest of too many."""
        if "ids" in cache:
            self.kept = [*self.kept, (run, {**cache, "ids": list(cache["ids"])})][-CACHES:]
