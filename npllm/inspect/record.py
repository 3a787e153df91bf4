"""A tap that records the values of a pass."""

from fnmatch import fnmatchcase

from array_api_compat import device

from ..arrays import Array, array_namespace
from ..tap import Tap
from ..text.arguments import checked


def matches(name: str, patterns: str) -> bool:
    """Whether a name matches a pattern: "*.weights", "layers.7.*", or several patterns separated by commas.

    >>> matches("layers.7.attention.q", "norm,layers.*.[qk]"), matches("layers.7.attention.q", "layers.?.q")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def record(into: dict[str, Array], only: str = "*") -> Tap:
    """A tap that stores values in the dict `into`, under their full names.

    Parameters
    ----------
    into : filled during the pass, in the order of execution; use a new one for every text
    only : the names to record, as patterns for `matches`

    A repeated name (from a prompt computed in chunks) is concatenated along T. Later chunks see more keys, so earlier
    rows of "scores" are padded with -inf, and those of "weights" with 0. ("scores" are recorded before the mask: within
    a chunk they include masked tokens.)

    >>> import numpy as np
    >>> seen = {}
    >>> tap = record(seen, "*.scores")
    >>> _ = tap("layers.0.attention.scores", np.ones((1, 2, 2))), tap("layers.0.attention.weights", np.ones((1, 2, 2)))
    >>> _ = tap("layers.0.attention.scores", np.ones((1, 1, 3)))
    >>> list(seen), seen["layers.0.attention.scores"][0]
    (['layers.0.attention.scores'], array([[  1.,   1., -inf],
           [  1.,   1., -inf],
           [  1.,   1.,   1.]]))
    """

    checked("into", into, dict, lambda _: True, "a dict, which is filled during the pass")
    checked("only", only, str, lambda _: True, "a pattern of names")

    def recorder(name: str, value: Array) -> Array:
        if matches(name, only):
            into[name] = join(name, into[name], value) if name in into else value
        return value

    return recorder


def join(name: str, earlier: Array, later: Array) -> Array:
    """Two chunks of a tapped value concatenated along T, the second axis from the right."""
    xp = array_namespace(later)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("scores", "weights") and later.shape[-1] < earlier.shape[-2] + later.shape[-2]:
        raise ValueError(f"{name}: expected the next chunk of the same text, got another text: record into a new dict")
    if leaf in ("scores", "weights"):  # [..., N, T, S]: S has grown
        shape = (*earlier.shape[:-1], later.shape[-1] - earlier.shape[-1])
        unseen = xp.full(
            shape,
            float("-inf") if leaf == "scores" else 0.0,
            dtype=earlier.dtype,
            device=device(earlier),
        )
        earlier = xp.concat([earlier, unseen], axis=-1)
    return xp.concat([earlier, later], axis=-2)
