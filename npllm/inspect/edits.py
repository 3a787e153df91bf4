"""Edits: heads, layers and neurons switched off or scaled, and values put in from another run.

Each is a tap, so it works in a pass over a whole text, in one with the KV cache, and while a text is generated. A head
is scaled before the output projection mixes it with the others; a layer, as it is added to the residual stream.

Source: "The attention layer at a glance", "The feedforward neural network at a glance" (Figures 3-13, 3-14); Michel et
al. 2019, "Are sixteen heads really better than one?" (scaled heads); Wang et al. 2022, "Interpretability in the wild"
(values of another run).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
from array_api_compat import device

from ..arrays import Array, array_namespace
from ..errors import UsageError
from ..families import family_of
from ..lm import LM
from ..tap import Tap, untapped
from ..text.arguments import check_model, checked, shown
from .trace import trace

HEAD, NEURON = "attention.mixed", "feedforward.activation"
INDEXED = {"head": -3, "neuron": -1}  # the parts that have an index, and its axis


@dataclass(frozen=True)
class Edit:
    """A part of the model, scaled; by default switched off."""

    layer: int
    part: str  # "head", "attention", "feedforward" or "neuron"
    index: int | None = None  # of the head or the neuron
    scale: float = 0.0


@dataclass(frozen=True)
class Patch:
    """A value of another run, put into this one at the same layer and position."""

    layer: int
    position: int
    part: str = "residual"  # after the block; or "attention", "feedforward", or "head"
    index: int | None = None  # of the head


def edit_tap(lm: LM, edits: Sequence[Edit], tap: Tap = untapped) -> Tap:
    """A tap that scales these parts, all at once; a part that is edited twice is scaled twice.

    tap : receives every value after the edits, such as `record(seen)`

    Raises UsageError for an edit that this model cannot have, see `check_edits`.

    >>> import npllm
    >>> from npllm.inspect.edits import Edit, edit_tap
    >>> lm = npllm.load()
    >>> ids = lm.tokenizer.encode("The capital of France is")
    >>> logits, _ = npllm.forward(ids, lm, tap=edit_tap(lm, [Edit(1, "feedforward")]))
    >>> lm.tokenizer.decode([logits[-1].argmax()])
    ' the'
    """
    scales: dict[str, dict[int | None, float]] = {}
    axes: dict[str, int] = {}
    for edit in check_edits(lm, edits):
        name = value_name(lm, edit.part, edit.layer)
        of_value = scales.setdefault(name, {})
        of_value[edit.index] = of_value.get(edit.index, 1.0) * edit.scale
        axes[name] = INDEXED.get(edit.part, -1)

    def editor(name: str, value: Array) -> Array:
        return tap(name, scaled(value, scales[name], axes[name]) if name in scales else value)

    return editor if scales else tap


def scaled(value: Array, scales: Mapping[int | None, float], axis: int) -> Array:
    """The value with some indices of an axis scaled, or all of it for None. Scaled by 0, even infinity is 0.

    >>> scaled(np.ones((2, 1, 2)), {1: 0.5}, -3).tolist()
    [[[1.0, 1.0]], [[0.5, 0.5]]]
    """
    xp = array_namespace(value)
    factors = [scales.get(i, 1.0) * scales.get(None, 1.0) for i in range(value.shape[axis])]
    column = xp.asarray(factors, dtype=value.dtype, device=device(value))
    column = xp.reshape(column, (-1, *[1] * (-axis - 1)))
    return xp.where(column == 0, 0.0, value) * column


def value_name(lm: LM, part: str, layer: int) -> str:
    """The name of the tapped value that an edit scales or a patch replaces; families add layers under several names."""
    family = family_of(lm.config)
    attention, feedforward = family.added
    names = {"head": HEAD, "neuron": NEURON, "attention": attention, "feedforward": feedforward}
    return f"layers.{layer}.{(names | {'residual': family.stream[1]})[part]}"


def check_edits(lm: LM, edits: Sequence[Edit]) -> list[Edit]:
    """The edits, if this model can have them.

    Raises
    ------
    UsageError : a part, layer, head or neuron does not exist, or a scale is not a finite number; the model has experts,
        which have no neurons that all tokens share
    """
    check_model(lm)
    kind = "a list of npllm.inspect.edits.Edit"
    checked("edits", edits, Sequence, lambda all_: all(isinstance(one, Edit) for one in all_), kind)
    return [check_edit(lm, edit) for edit in edits]


def check_edit(lm: LM, edit: Edit) -> Edit:
    """The edit, if this model can have it."""
    parts = ("head", "attention", "feedforward", "neuron")
    check_part(lm, edit, parts)
    name = edit_text(replace(edit, scale=0.0))
    scale = checked(f"{name}: scale", edit.scale, Real, math.isfinite, "a finite number")
    return replace(edit, scale=scale)


def check_part(lm: LM, chosen: Edit | Patch, parts: Sequence[str]) -> None:
    """Raise UsageError unless the model has this part, layer and index."""
    config, what = lm.config, "edit" if isinstance(chosen, Edit) else "patch"
    if chosen.part not in parts:
        raise UsageError(f"{what}: expected one of {', '.join(parts)}, got {shown(chosen.part)}")
    layers = config.num_hidden_layers
    check_number(f"{what} of {chosen.part}: layer", chosen.layer, layers, "layers")
    if chosen.part == "neuron" and NEURON not in family_of(config).parts:
        raise UsageError(
            f"{what} of neuron: expected a model with one network in each layer, got {family_of(config).title}, whose"
            ' experts are networks of their own; switch off "feedforward"'
        )
    if chosen.part in INDEXED:
        heads, neurons = config.num_attention_heads, config.intermediate_size
        count = heads if chosen.part == "head" else neurons
        check_number(f"{what} of layer {chosen.layer}: {chosen.part}", chosen.index, count, f"{chosen.part}s")
    elif chosen.index is not None:
        raise UsageError(f"{what} of {chosen.part}: expected no index, got {shown(chosen.index)}; a head has one")


def check_number(name: str, value: int | None, count: int, what: str) -> None:
    """Raise UsageError for a number that does not exist."""
    expected = f"0 to {count - 1} (there are {count} {what})"
    checked(name, value, Integral, lambda number: 0 <= number < count, expected)


def check_patches(lm: LM, patches: Sequence[Patch], tokens: int) -> list[Patch]:
    """The patches, if this model can have them and both texts have these positions.

    tokens : of the shorter text
    """
    check_model(lm)
    kind = "a list of npllm.inspect.edits.Patch"
    checked("patches", patches, Sequence, lambda all_: all(isinstance(one, Patch) for one in all_), kind)
    for patch in patches:
        check_part(lm, patch, ("residual", "attention", "feedforward", "head"))
        check_number(f"patch of layer {patch.layer}: position", patch.position, tokens, "tokens in the shorter text")
    return list(patches)


def other_values(lm: LM, other_ids: Sequence[int], patches: Sequence[Patch]) -> dict[str, np.ndarray]:
    """The values of the other text that the patches need, by their names: one pass over it."""
    patches = check_patches(lm, patches, len(other_ids))
    return trace(lm, other_ids, ",".join({value_name(lm, one.part, one.layer): None for one in patches} or ["norm"]))


def patch_tap(lm: LM, patches: Sequence[Patch], values: Mapping[str, np.ndarray], tap: Tap = untapped) -> Tap:
    """A tap that puts in values of another run ("activation patching"), from `other_values`.

    It counts the tokens that pass, to know which chunk has a position: use a new one for every text.
    """
    by_name: dict[str, list[Patch]] = {}
    for patch in check_patches(lm, patches, max((value.shape[-2] for value in values.values()), default=1)):
        by_name.setdefault(value_name(lm, patch.part, patch.layer), []).append(patch)
    first = past = 0

    def patcher(name: str, value: Array) -> Array:
        nonlocal first, past
        if name == "embedding":  # a new chunk
            first, past = past, past + value.shape[-2]
        inside = [one for one in by_name.get(name, []) if first <= one.position < past]
        return tap(name, with_values(value, inside, values[name], first) if inside else value)

    return patcher if patches else tap


def with_values(value: Array, patches: Sequence[Patch], other: np.ndarray, first: int) -> Array:
    """The value with those of the other run at some positions; `first` is the position of its first token."""
    xp = array_namespace(value)
    new = xp.asarray(value, copy=True)
    for patch in patches:
        head = () if patch.index is None else (patch.index,)
        there = other[(..., *head, patch.position, slice(None))]
        new[(..., *head, patch.position - first, slice(None))] = xp.asarray(
            there, dtype=value.dtype, device=device(value)
        )
    return new


WRITTEN = re.compile(r"(head|attention|feedforward|neuron):(\d{1,9})(?:\.(\d{1,9}))?(?:=(.+))?", re.ASCII)
SYNTAX = (
    "head:LAYER.HEAD, attention:LAYER, feedforward:LAYER or neuron:LAYER.NEURON, each optionally followed by =SCALE"
)


def parse_edits(text: str, where: str = "--without") -> list[Edit]:
    """The edits in a text such as "head:5.3,feedforward:1,head:5.4=0.5".

    >>> parse_edits("head:5.3,feedforward:1=0.5")
    [Edit(layer=5, part='head', index=3, scale=0.0), Edit(layer=1, part='feedforward', index=None, scale=0.5)]
    """
    edits = []
    for one in text.split(","):
        found = WRITTEN.fullmatch(one.strip())
        try:
            scale = float(found[4] or 0) if found else math.nan
        except ValueError:
            scale = math.nan
        if found is None or not math.isfinite(scale) or (found[1] in INDEXED) is (found[3] is None):
            raise UsageError(f"{where}: expected {SYNTAX}, got {shown(one)}")
        edits.append(Edit(int(found[2]), found[1], None if found[3] is None else int(found[3]), scale))
    return edits


def edit_text(edit: Edit) -> str:
    """The edit as `parse_edits` reads it.

    >>> edit_text(Edit(5, "head", 3)), edit_text(Edit(1, "feedforward", scale=0.5))
    ('head:5.3', 'feedforward:1=0.5')
    """
    index = "" if edit.index is None else f".{edit.index}"
    return f"{edit.part}:{edit.layer}{index}" + (f"={edit.scale:g}" if edit.scale else "")
