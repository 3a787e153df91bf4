"""An attribution as a labelled array: the contributions to a logit, one for each part of the model."""

import numpy as np

from .attribution import Attribution
from .labelled import Labelled, labelled


class Contributions(Labelled):
    """The contributions to a logit, one for each part, such as ["head 23.4"] or ["feedforward 29"]. They sum to it."""

    heads: Labelled  # [L, N]
    feedforward: Labelled  # [L]

    def _repr_html_(self) -> str | None:
        grid = getattr(self, "heads", None)  # not in a view
        return (super()._repr_html_() or "") + ((grid._repr_html_() or "") if grid is not None else "")


def contributions(found: Attribution, token: str) -> Contributions:
    """An `Attribution` to this token as a labelled array."""
    layers, heads = ([str(i) for i in range(count)] for count in found.heads.shape)
    named = {f"head {i}.{n}": found.heads[int(i), int(n)] for i in layers for n in heads}
    named |= {f"feedforward {i}": value for i, value in zip(layers, found.feedforward, strict=True)}
    if found.attention_bias.any():
        named |= {f"attention bias {i}": value for i, value in zip(layers, found.attention_bias, strict=True)}
    named |= {name.replace("_", " "): value for name, value in found.others.items()}
    what = f"contributions to the logit of {token}"
    cap = ", before its cap" if found.capped else ""
    values, axes = np.array([*named.values()], dtype=np.float64), {"part": list(named)}
    result: Contributions = labelled(values, f"{what}, {found.logit:.2f}{cap}", axes, ranked=True, kind=Contributions)
    result.heads = labelled(found.heads, f"heads' {what}", {"layer": layers, "head": heads})
    result.feedforward = labelled(found.feedforward, f"feedforward networks' {what}", {"layer": layers})
    return result
