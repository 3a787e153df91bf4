"""Where a model stores a fact: the answer, with the feedforward network of one layer at a time left out.

Source: "The feedforward neural network at a glance" (Figure 3-13: "The Shawshank" is followed by "Redemption").
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, array_namespace
from ..devices.finite import check_finite
from ..errors import UsageError
from ..lm import LM, forward
from ..options import check_prompt
from ..sampling import softmax
from ..text.arguments import check_model, whole_number


class Ablation(NamedTuple):
    """How one answer depends on each layer's network."""

    token: int  # the likeliest next token according to the whole model
    probability: float
    without: list[float]  # that token's probability without the network of layer 0, 1, ...
    instead: list[int]  # the likeliest token in that case


@np.errstate(all="ignore")
def without_layers(lm: LM, ids: Sequence[int], part: str = "feedforward", position: int = -1) -> Ablation:
    """The next token and its probability: from the whole model, and with each layer's feedforward network left out.

    A tap replaces what the network adds to the residual stream with zeros; the rest of the block is unchanged.
    part="attention" leaves out the attention layers instead, for comparison. `position` is the token whose logits are
    read: by default the last; for BERT, the mask.

    >>> import npllm
    >>> from npllm.apps.ablate import without_layers
    >>> lm = npllm.load()
    >>> result = without_layers(lm, lm.tokenizer.encode("The Shawshank"))
    >>> lm.tokenizer.decode([result.token]), round(result.probability, 2)
    (' Red', 0.79)
    >>> round(result.without[1], 2), lm.tokenizer.decode([result.instead[1]])
    (0.0, 'a')
    """
    if part not in ("feedforward", "attention"):
        raise UsageError(f"part: expected feedforward or attention, got {part!r}")
    check_model(lm)
    ids = check_prompt(ids, lm.config)
    position = whole_number("position", position, -len(ids), len(ids) - 1)
    xp = array_namespace(lm.weights.norm)
    on_device = xp.asarray(ids, device=device(lm.weights.norm))

    def distribution(left_out: str = "") -> Array:
        """The probabilities of the next token, with this value replaced by zeros."""

        def tap(name: str, value: Array) -> Array:
            return xp.zeros_like(value) if name == left_out else value

        logits, _ = forward(on_device, lm, tap=tap)
        check_finite(logits[position, :], "the logits" + f" without {left_out}" * bool(left_out))
        return softmax(logits[position, :])

    whole = distribution()
    token = int(xp.argmax(whole))
    changed = [distribution(f"layers.{layer}.{part}.output") for layer in range(lm.config.num_hidden_layers)]
    return Ablation(
        token, float(whole[token]), [float(p[token]) for p in changed], [int(xp.argmax(p)) for p in changed]
    )
