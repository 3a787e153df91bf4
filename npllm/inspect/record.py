"""Keeping the values of a pass as they come by."""

from fnmatch import fnmatchcase

from array_api_compat import device

from ..arrays import Array, array_namespace
from ..tap import Tap


def matches(name: str, patterns: str) -> bool:
    """Whether the name is one that a pattern stands for: "*.weights", "layers.7.*", or several, separated by commas.

    >>> matches("layers.7.attention.q", "norm,layers.*.[qk]"), matches("layers.7.attention.q", "layers.?.q")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def record(into: dict[str, Array], only: str = "*") -> Tap:
    """A tap that keeps values in the dict `into`, under their full names.

    Parameters
    ----------
    into : filled as the pass goes on, in the order of execution; take a fresh one for every text
    only : the names to keep, as patterns for `matches`

    A name that comes again (a prompt computed in chunks) is joined along T. The keys that a chunk sees grow from
    chunk to chunk: earlier rows of "scores" are filled up with -inf, of "weights" with 0. ("scores" are those before
    the mask: within a chunk they are also there for tokens that the mask then hides.)

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

    def recorder(name: str, value: Array) -> Array:
        if matches(name, only):
            into[name] = join(name, into[name], value) if name in into else value
        return value

    return recorder


def join(name: str, earlier: Array, later: Array) -> Array:
    """Two chunks of one tapped value as one, along T: the second axis from the right of every tap."""
    xp = array_namespace(later)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("scores", "weights") and later.shape[-1] < earlier.shape[-2] + later.shape[-2]:
        raise ValueError(
            f"{name}: expected the next chunk of the same text, got another text: record into a fresh dict"
        )
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
