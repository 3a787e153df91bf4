"""The sampling funnel: from the whole vocabulary down to the chosen token, step by step.

Source: "Choosing a Single Token from the Probability Distribution" (Figure 3-7).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import Array, Float, array_namespace
from ..sampling import choose, softmax
from ..text.brief import brief
from .record import record


class FunnelStep(NamedTuple):
    """The state after one step of the funnel."""

    name: str  # as in `choose`: first "logits", last "draw" or "greedy"
    logits: Float[Array, " V"]  # -inf: ruled out
    probabilities: Float[Array, " V"]
    left: int  # how many tokens remain

    def __repr__(self) -> str:
        return brief(self)


@np.errstate(all="ignore")
def funnel(logits: Float[Array, " V"], **options: Any) -> list[FunnelStep]:
    """The steps of `choose`, from the whole vocabulary down to the chosen token. Options as in `choose`.

    >>> import numpy as np
    >>> [(step.name, step.left) for step in funnel(np.asarray([3.0, 1.0, 2.0]), temperature=1.0, top_k=2)]
    [('logits', 3), ('temperature', 3), ('top_k', 2), ('draw', 1)]
    """
    xp, values = array_namespace(logits), dict[str, Array]()
    choose(logits, tap=record(values), **options)
    *_, before, last = values  # the last value is the token
    ids = xp.arange(logits.shape[0], device=device(logits))
    values[last] = xp.where(ids == values[last], values[before], -math.inf)
    return [FunnelStep(name, x, softmax(x), int(xp.count_nonzero(x > -math.inf))) for name, x in values.items()]
