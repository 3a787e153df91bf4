"""Absolute positions: a vector for each place in the text, added to the token's vector before the first block.

It marks the first token as the first, the second as the second, and so on; attention alone would take a text for a bag
of words. There are two ways to have such vectors:

    static    made by geometric functions, as in the original Transformer: `sinusoidal_positions`
    learned   a table with a row for each position, trained like the embeddings, as in GPT-2. A position is then looked
              up as a token is, by `embed`; where the table ends, the context ends

Models of today mark positions inside attention, see rope.py.

Source: "Positional Embeddings (RoPE)"; Vaswani et al. 2017, "Attention is all you need", section 3.5; Radford et al.
2019, "Language models are unsupervised multitask learners" (GPT-2).
"""

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace


def sinusoidal_positions(positions: Int[Array, "... T"], width: int) -> Float[Array, "... T D"]:
    """Waves of width / 2 lengths, from 2π to nearly 10,000 · 2π tokens, and where on each of them a position lies.

    Dimension 2i is sin(position / 10000^(2i / D)), dimension 2i + 1 the cosine of the same angle: neighbours are a
    pair here, and not the two halves as in RoPE. `width` is D, which must be even.

    >>> import numpy as np
    >>> sinusoidal_positions(np.array([0, 1]), 4).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]], dtype=float32)
    """
    xp = array_namespace(positions)
    exponents = xp.arange(0, width, 2, dtype=xp.float32, device=device(positions)) / width
    angles = xp.astype(positions, xp.float32)[..., None] / 10000.0**exponents  # [..., T, D / 2]
    return xp.reshape(xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1), (*positions.shape, width))
