"""Token ids to vectors: the first step of the forward pass.

Source: "The Components of the Forward Pass" (Figure 3-5).
"""

from .arrays import Array, Float, Int, Weight, array_namespace, is_packed


def embed(ids: Int[Array, "... T"], embed_tokens: Weight) -> Float[Array, "... T D"]:
    """The embedding vectors of the ids, in float32: row `id` of the embedding matrix for each.

    An invalid id can read a wrong row without an error, so the public calls check ids while they are Python integers.

    >>> import numpy as np
    >>> embed(np.array([2, 0]), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=np.float32))
    array([[4., 5.],
           [0., 1.]], dtype=float32)
    """
    xp = array_namespace(ids)
    flat = xp.reshape(ids, (-1,))
    vectors = embed_tokens.rows(flat) if is_packed(embed_tokens) else xp.take(embed_tokens, flat, axis=0)
    return xp.reshape(xp.astype(vectors, xp.float32, copy=False), (*ids.shape, embed_tokens.shape[1]))
