"""The answer to each call, as data for the page. Every function here is called in the worker's thread."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..arrays import Float
from ..errors import UsageError
from ..families import family_of
from ..inspect.attribution import attribution
from ..inspect.contents import SECTIONS, contents, labels, lens_data, packed
from ..inspect.edits import NEURON, Edit, check_number, edit_tap, other_values, patch_tap
from ..inspect.heads import KINDS, head_scores, induction_scores, without_first_token
from ..inspect.heads import labels as kinds_of
from ..inspect.look import Look, look
from ..inspect.page import lab_page
from ..inspect.patching import patching_rows
from ..lm import LM
from ..tap import Tap, untapped
from ..text.arguments import boolean, check_writes, checked, whole_number
from ..text.end_ids import end_ids
from .generate import KEYS, generated, watched
from .memory import Caches, Looks, Seen, check_length, most_tokens
from .runs import Run, keys_of, read_run
from .worker import Item

THUMB = 32  # the most rows and columns of a small map
POSITIONS = 32  # the most positions of the lens at once: each takes the LM head L + 1 times
OF_MODEL = ("version", "model", "letters", "sections")  # what the page needs once
ALWAYS = ("tokens", "flow", "norms", "funnel", "cache", "cost")  # the sections whose data is small


class Lab:
    """The model and what was computed last.

    lm : a model that predicts the next token
    name : as the page shows it
    """

    def __init__(self, lm: LM, name: str) -> None:
        check_writes(lm)
        self.lm, self.name = lm, name
        self.looks, self.caches = Looks(), Caches()
        self.induction: dict[tuple[Edit, ...], Float[np.ndarray, "L N"]] = {}  # by the edits

    def page(self) -> tuple[str, str]:
        """The page, and its Content-Security-Policy."""
        return lab_page()

    def seen(self, run: Run, tap: Tap) -> Seen:
        """The pass of a run."""
        check_length(self.lm.config, run.ids)

        def make() -> Seen:
            changes = self.changes(run, tap)
            start = time.perf_counter()
            found = look(self.lm, run.ids, tap=changes)
            return Seen(found, time.perf_counter() - start)

        return self.looks.get(run if run.patches else run._replace(other=()), make)

    def changes(self, run: Run, tap: Tap) -> Tap:
        """A tap with the edits and patches of a run, for one pass or one generation; it ends in `tap`."""
        return edit_tap(self.lm, run.edits, self.patches(run, tap))

    def patches(self, run: Run, tap: Tap) -> Tap:
        """A tap with the patches of a run; `tap`, if there are none."""
        if not run.patches:
            return tap
        check_length(self.lm.config, run.other)
        return patch_tap(self.lm, run.patches, other_values(watched(self.lm, tap), run.other, run.patches), tap)


def asked_run(lab: Lab, asked: Mapping[str, Any], *more: str) -> tuple[Run, int]:
    """The run of a request, and the length of its prompt. `more`: the other keys it may have."""
    return read_run(lab.lm, keys_of("the request", asked, ("run", *more)).get("run"))


def model(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """What does not depend on a run."""
    keys_of("the request", asked, ())
    lm = lab.lm
    tokenizer = lm.tokenizer
    first = contents(look(lm, [0], tap=tap), 1, lab.name, SECTIONS)
    ends = end_ids(lm.config.eos_token_id, lm.generation_config, () if tokenizer is None else tokenizer.end_ids)
    chat = tokenizer is not None and tokenizer.chat_template is not None
    yield {
        **{name: first[name] for name in (*OF_MODEL, "listings")},
        "chat": chat,
        "neurons": lm.config.intermediate_size if NEURON in family_of(lm.config).parts else None,
        "vocabulary": labels(lm, range(lm.config.vocab_size)),
        "end_ids": sorted(ends),
        "most_tokens": most_tokens(lm.config),
    }


def run(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """What one pass shows, and the logits of the untouched run and of the second text."""
    this, length = asked_run(lab, asked)
    seen, seconds = lab.seen(this, tap)
    found = contents(seen, length, lab.name, ALWAYS)
    for name in OF_MODEL:
        del found[name]
    base = lab.seen(this.untouched, tap).look if this.is_changed else None
    other = lab.seen(Run(this.other), tap).look if this.other else None
    yield found | {
        "base": None if base is None else packed(base.logits[-1], "<f4"),
        "other": None if other is None else second(lab, other),
        "seconds": seconds,
    }


def second(lab: Lab, seen: Look) -> Item:
    """What the page needs from the second text."""
    found = contents(seen, len(seen.ids), lab.name, ("funnel",))
    return {name: found[name] for name in ("text", "ids", "bytes", "logits")}


def logits(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """The logits for the token after a position, from the pass already made."""
    this, _ = asked_run(lab, asked, "position")
    position = whole_number("position", asked.get("position"), 0, len(this.ids) - 1)
    base = lab.seen(this.untouched, tap).look if this.is_changed else None
    yield {
        "logits": packed(lab.seen(this, tap).look.logits[position], "<f4"),
        "base": None if base is None else packed(base.logits[position], "<f4"),
    }


def lens(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """The logit lens at some positions."""
    this, _ = asked_run(lab, asked, "positions")
    few = f"1 to {POSITIONS} positions"
    positions = checked("positions", asked.get("positions"), list, lambda all_: 0 < len(all_) <= POSITIONS, few)
    positions = [whole_number("positions", one, 0, len(this.ids) - 1) for one in positions]
    yield {"lens": lens_data(lab.seen(this, tap).look, positions)}


def thumbs(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """A small map of every head, optionally as if the first token were hidden."""
    this, _ = asked_run(lab, asked, "without_first_token")
    change = without_first_token if boolean("without_first_token", asked.get("without_first_token", False)) else None
    seen = lab.seen(this, tap).look
    weights = [seen.values[f"layers.{i}.attention.weights"] for i in range(lab.lm.config.num_hidden_layers)]
    maps = [small(one if change is None else change(one)) for one in weights]
    yield {"size": maps[0].shape[-1], "thumbs": packed(np.stack(maps), "u1")}


def small(weights: Float[np.ndarray, "N T T"]) -> np.ndarray:
    """[N, size, size]: the largest weight of each cell, its square root in 8 bits. NaN becomes 0.

    >>> small(np.tril(np.full((1, 2, 2), 0.25))).tolist()
    [[[128, 0], [128, 128]]]
    """
    size = min(weights.shape[-1], THUMB)
    edges = np.arange(size) * weights.shape[-1] // size
    cells = np.maximum.reduceat(np.maximum.reduceat(np.nan_to_num(weights), edges, axis=-1), edges, axis=-2)
    return np.rint(255 * np.sqrt(cells)).astype(np.uint8)


def attention(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """The weights of one head: the visible part of each row."""
    this, _ = asked_run(lab, asked, "layer", "head")
    layer, head = asked.get("layer"), asked.get("head")
    check_number("layer", layer, lab.lm.config.num_hidden_layers, "layers")
    check_number("head", head, lab.lm.config.num_attention_heads, "heads")
    weights = lab.seen(this, tap).look.values[f"layers.{layer}.attention.weights"][head]
    yield {"weights": packed(weights[np.tril_indices(len(weights))], "<f4")}


def heads(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """What each head looks at. Induction is measured once for the same edits."""
    this, _ = asked_run(lab, asked)
    seen = lab.seen(this, tap).look
    if this.edits not in lab.induction:
        lab.induction[this.edits] = induction_scores(lab.lm, tap=edit_tap(lab.lm, this.edits, tap))
    scores = head_scores(lab.lm, seen, lab.induction[this.edits])
    yield {
        "scores": {name: packed(array, "<f4") for name, array in scores._asdict().items()},
        "labels": kinds_of(scores),
        "kinds": {name: kind._asdict() for name, kind in KINDS.items()},
    }


def generate(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """The answer, token by token."""
    this, _ = asked_run(lab, asked, *KEYS)
    cache = lab.caches.take(lab.lm, this)
    try:
        yield from generated(lab.lm, this, cache, asked, lab.changes(this, tap), tap)
    finally:
        lab.caches.put(this, cache)


def token_of(asked: Mapping[str, Any]) -> Any:
    """The token that a request asks about; the functions that take it check it."""
    if asked.get("token") is None:
        raise UsageError("token: expected the id of a token, got none")
    return asked["token"]


def attribute(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """What each part added to the logit of a token; with a second token, to the difference of the two."""
    this, _ = asked_run(lab, asked, "token", "position", "against")
    check_length(lab.lm.config, this.ids)
    patches = lab.patches(this, tap) if this.patches else untapped
    how = {name: asked[name] for name in ("position", "against") if asked.get(name) is not None}
    lm = watched(lab.lm, tap)
    found = attribution(lm, this.ids, token_of(asked), **how, edits=this.edits, tap=patches)
    arrays = {name: packed(getattr(found, name), "<f4") for name in ("heads", "attention_bias", "feedforward")}
    yield found._asdict() | arrays | {"total": found.total, "others": dict(found.others)}


def patching(lab: Lab, asked: Mapping[str, Any], tap: Tap) -> Iterator[Item]:
    """How much of the answer each value of the run restores in the second text: row by row."""
    this, _ = asked_run(lab, asked, "token", "part", "position", "against")
    if this.is_changed:
        raise UsageError("patching: expected two texts without edits and patches; switch them off")
    if not this.other:
        raise UsageError('patching: expected a second text, got none; give one under "other"')
    check_length(lab.lm.config, this.ids)
    how = {name: asked[name] for name in ("part", "position", "against") if asked.get(name) is not None}
    found = patching_rows(watched(lab.lm, tap), this.ids, this.other, token_of(asked), **how)
    yield {"layers": lab.lm.config.num_hidden_layers, "clean": found.clean, "other": found.other}
    for layer, row in enumerate(found.rows):
        yield {"layer": layer, "row": row.tolist()}


ANSWERS: dict[str, Callable[[Lab, Mapping[str, Any], Tap], Iterator[Item]]] = {
    "model": model,
    "run": run,
    "logits": logits,
    "lens": lens,
    "thumbs": thumbs,
    "attention": attention,
    "heads": heads,
    "generate": generate,
    "attribution": attribute,
    "patching": patching,
}
STREAMS = ("generate", "patching")  # answers of many lines
