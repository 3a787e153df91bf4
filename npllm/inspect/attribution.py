"""Direct logit attribution: how much of a token's logit each head and each feedforward layer wrote.

The last vector of the residual stream is a sum: the embedding, and what every layer adds to it. The final norm divides
this sum by one number, and the LM head multiplies by the token's row, so the logit is a sum of the same parts, exactly,
if the final norm, and the norms after layers in families that have them, keep the scale of this run. LayerNorm's mean
is subtracted from each part. What a layer changes in a later one is counted for the later one: these are direct effects
only.

Source: "The Transformer Block" (Figures 3-29, 3-30), "The Components of the Forward Pass" (Figure 3-6); Elhage et al.
2021, "A mathematical framework for transformer circuits"; Wang et al. 2022, "Interpretability in the wild" (the
difference of two logits).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, array_namespace
from ..devices.device import to_host
from ..embedding import embed
from ..errors import UsageError
from ..families import family_of
from ..linear import linear
from ..lm import LM, forward
from ..options import check_prompt
from ..tap import Tap, untapped
from ..text.arguments import check_writes, whole_number
from ..text.brief import brief
from .edits import HEAD, Edit, edit_tap

EMBEDDINGS = ("embedding", "position_embedding")
MOST_ERROR = 0.01  # of the sum, relative to its largest part; in float16 it is of the order of 0.001


class Attribution(NamedTuple):
    """The parts of a logit, or of the difference of two."""

    token: int
    against: int | None  # the token whose logit is subtracted
    position: int
    logit: float  # what the pass itself computed, before a cap
    capped: bool  # whether the model caps its logits afterwards (Gemma 2): its own logit is then closer to 0
    heads: Float[np.ndarray, "L N"]
    attention_bias: Float[np.ndarray, " L"]  # of the output projection, which belongs to no head
    feedforward: Float[np.ndarray, " L"]
    others: Mapping[str, float]  # the embeddings, the biases of the final norm and the LM head, patches

    def __repr__(self) -> str:
        return brief(self)

    @property
    def total(self) -> float:
        """The sum of all parts: the logit."""
        layers = (self.heads, self.attention_bias, self.feedforward)
        return float(sum(part.sum() for part in layers) + sum(self.others.values()))


@np.errstate(all="ignore")
def attribution(
    lm: LM,
    ids: Sequence[int],
    token: int,
    position: int = -1,
    *,
    against: int | None = None,
    edits: Sequence[Edit] = (),
    tap: Tap = untapped,
) -> Attribution:
    """What each part of the model added to the logit of `token` to follow `position`.

    against : a second token; the parts are then of the difference of the two logits, in which everything that raises
        all logits alike cancels
    edits : parts of the model that are scaled, see edits.py
    tap : changes other values, such as `patch_tap`; their effect is the part "patches", except that of a patched
        head, which is that head's part

    Raises
    ------
    UsageError : the model does not predict the next token, or gives this one no logit of its own; an argument is
        invalid

    >>> import npllm
    >>> from npllm.inspect.attribution import attribution, ranked_parts
    >>> lm = npllm.load()
    >>> ids = lm.tokenizer.encode("The capital of France is")
    >>> found = attribution(lm, ids, lm.tokenizer.encode(" Paris")[0])
    >>> round(found.logit, 1), round(found.total, 1), [name for name, _ in ranked_parts(found, 3)]
    (17.4, 17.4, ['feedforward 29', 'feedforward 28', 'head 23.4'])
    """
    check_writes(lm)
    ids = check_prompt(ids, lm.config, new=0)
    position = whole_number("position", position, -len(ids), len(ids) - 1) % len(ids)
    rows = [whole_number("token", token, 0, lm.config.vocab_size - 1)]
    rows += [] if against is None else [whole_number("against", against, 0, lm.config.vocab_size - 1)]
    if against is not None and rows[0] == rows[1]:
        raise UsageError(f"against: expected another token than {rows[0]}, got the same")
    run = run_at(lm, ids, position, edits, tap)
    parts = parts_of_stream(lm, run, edits, patched=tap is not untapped)
    values = [difference(one) for one in logits_of_parts(lm, parts, run.last, rows)]
    bounds = np.cumsum([one.shape[0] for one in parts.values()])
    found = dict(zip(parts, np.split(np.asarray(values), bounds[:-1]), strict=True))
    others = {name: float(value.sum()) for name, value in found.items() if name not in ("heads", "bias", "feedforward")}
    layers = lm.config.num_hidden_layers
    capped = getattr(lm.config, "final_logit_softcapping", None) is not None
    logit = difference(head_of(lm, rows)(run.norm[None, ...])[0] if capped else to_host(run.logits)[rows])
    result = Attribution(
        rows[0],
        against,
        position,
        logit,
        capped,
        found["heads"].reshape(layers, -1),
        found["bias"],
        found["feedforward"],
        others | biases(lm, rows),
    )
    largest = max(1.0, np.abs(np.concatenate([*found.values()])).max())
    if not abs(result.total - result.logit) <= MOST_ERROR * largest:
        raise UsageError(
            f"token {rows[0]}: expected a logit that is the sum of the model's parts, got {result.logit:g} and a sum of"
            f" {result.total:g}: the model sets this token's logit, or a value is not finite"
        )
    return result


class Run(NamedTuple):
    """What a pass computed at one position, before and after each value was changed by a tap."""

    before: dict[str, Array]
    after: dict[str, Array]
    last: Float[Array, " D"]  # the residual stream before the final norm
    norm: Float[Array, " D"]
    logits: Float[Array, " V"]


def run_at(lm: LM, ids: Sequence[int], position: int, edits: Sequence[Edit], tap: Tap) -> Run:
    """One pass over the tokens, with the values that the parts are made of."""
    before: dict[str, Array] = {}
    after: dict[str, Array] = {}
    change = edit_tap(lm, edits, tap)
    kept = {HEAD, "attention.output", *family_of(lm.config).added, family_of(lm.config).stream[1]}

    def both(name: str, value: Array) -> Array:
        wanted = not name.startswith("layers.") or name.split(".", 2)[2] in kept
        if wanted:
            before[name] = value[..., position, :] + 0
        value = change(name, value)
        if wanted:
            after[name] = value[..., position, :] + 0
        return value

    forward(ids, lm, tap=both)
    last = after[f"layers.{lm.config.num_hidden_layers - 1}.{family_of(lm.config).stream[1]}"]
    return Run(before, after, last, after["norm"], after["logits"])


def parts_of_stream(lm: LM, run: Run, edits: Sequence[Edit], patched: bool) -> dict[str, Float[Array, "_ D"]]:
    """The vectors that sum to the residual stream: "heads" [L·N, D], "bias" [L, D], "feedforward" [L, D] and others.

    patched : a tap may have changed values; "patches" is then the rest. A residual stream that it replaced has nothing
        left of earlier parts, which are zero
    """
    (attention, feedforward), after = family_of(lm.config).added, family_of(lm.config).stream[1]
    xp, layers = array_namespace(run.last), range(lm.config.num_hidden_layers)
    names = [f"layers.{layer}.{after}" for layer in layers]
    replaced = [i for i in layers if patched and bool(xp.any(run.before[names[i]] != run.after[names[i]]))]
    start = replaced[-1] + 1 if replaced else 0

    def scale(layer: int, part: str) -> float:
        edited = [edit.scale for edit in edits if (edit.layer, edit.part) == (layer, part)]
        return float(layer >= start) * float(np.prod(edited))

    heads, bias, networks = [], [], []
    for layer, weights in enumerate(lm.weights.layers):
        of_heads, of_bias = parts_of_attention(run.after[f"layers.{layer}.{HEAD}"], weights)
        output = run.before[f"layers.{layer}.attention.output"]
        added = run.before[f"layers.{layer}.{attention}"]
        # Some families multiply the output, by a number or as a norm does: by element, so the ratio is the factor.
        ratio = scale(layer, "attention") * xp.where(output == 0, 0.0, added / xp.where(output == 0, 1.0, output))
        heads.append(of_heads * ratio)
        bias.append(of_bias * ratio)
        networks.append(run.before[f"layers.{layer}.{feedforward}"] * scale(layer, "feedforward"))
    parts = {"heads": xp.concat(heads), "bias": xp.stack(bias), "feedforward": xp.stack(networks)}
    first = {name: run.after[name][None, ...] for name in EMBEDDINGS if name in run.after}
    parts |= {name: vector * float(start == 0) for name, vector in first.items()}
    if patched:
        parts["patches"] = run.last[None, ...] - sum(xp.sum(vectors, axis=0)[None, ...] for vectors in parts.values())
    return parts


def parts_of_attention(mixed: Float[Array, "N H"], weights: Any) -> tuple[Float[Array, "N D"], Float[Array, " D"]]:
    """What each head contributes to the output of its layer, and the bias.

    The projection is applied to each head with the others zero, which also works where it is stored in 4 or 8 bits.
    """
    xp = array_namespace(mixed)
    heads, width = mixed.shape
    alone = xp.eye(heads, dtype=mixed.dtype, device=device(mixed))[..., None] * mixed  # [N, N, H]
    projected = linear(xp.reshape(alone, (heads, heads * width)), weights.o_proj)
    bias = weights.o_proj_bias
    return projected, xp.zeros_like(projected[0, ...]) if bias is None else bias


def head_of(lm: LM, rows: Sequence[int], bias: Array | None = None) -> Any:
    """The LM head for these tokens only, before a cap on the logits: (vectors [P, D]) -> [P, rows] on the host."""
    weights, xp = lm.weights, array_namespace(lm.weights.norm)
    on_device = xp.asarray(rows, dtype=xp.int64, device=device(weights.norm))
    few = weights._replace(lm_head=embed(on_device, weights.lm_head), lm_head_bias=bias)
    head = family_of(lm.config).uncapped_head or lm.lm_head
    return lambda vectors: to_host(head(vectors, few, lm.config)).astype(np.float64)


def logits_of_parts(
    lm: LM, parts: Mapping[str, Float[Array, "_ D"]], last: Float[Array, " D"], rows: Sequence[int]
) -> Float[np.ndarray, "P rows"]:
    """The logits of all parts, with the final norm's scale for the whole vector `last`."""
    xp = array_namespace(last)
    normed = family_of(lm.config).final_norm_of_parts(xp.concat([*parts.values()]), last, lm.weights, lm.config)
    return head_of(lm, rows)(normed)


def biases(lm: LM, rows: Sequence[int]) -> dict[str, float]:
    """The parts of the biases of the final norm and the LM head, if the model has them."""
    weights, xp = lm.weights, array_namespace(lm.weights.norm)
    found = {}
    if weights.norm_bias is not None:
        found["norm_bias"] = difference(head_of(lm, rows)(weights.norm_bias[None, ...])[0])
    if weights.lm_head_bias is not None:
        on_device = xp.asarray(rows, dtype=xp.int64, device=device(weights.norm))
        bias = xp.take(weights.lm_head_bias, on_device)
        found["lm_head_bias"] = difference(head_of(lm, rows, bias)(xp.zeros_like(weights.norm)[None, ...])[0])
    return found


def difference(logits: Float[np.ndarray, " rows"]) -> float:
    """The logit, minus that of the second token if there are two."""
    return float(logits[0]) - (float(logits[1]) if len(logits) > 1 else 0.0)


def ranked_parts(found: Attribution, k: int | None = None) -> list[tuple[str, float]]:
    """The parts by size, the largest first, whatever their sign: ("head 5.3", 1.2), ("feedforward 7", -0.8)."""
    named = {f"head {layer}.{i}": value for layer, row in enumerate(found.heads) for i, value in enumerate(row)}
    named |= {f"feedforward {layer}": value for layer, value in enumerate(found.feedforward)}
    if found.attention_bias.any():
        named |= {f"attention bias {layer}": value for layer, value in enumerate(found.attention_bias)}
    named |= found.others
    return [(name, float(value)) for name, value in sorted(named.items(), key=lambda item: -abs(item[1]))[:k]]
