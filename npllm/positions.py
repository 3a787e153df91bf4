"""Absolute positions: a vector for each position in the text, added to the token's vector before the first block.

Without it, attention treats a text as a bag of words. There are two kinds:

    static    computed by geometric functions, as in the original Transformer: `sinusoidal_positions`
    learned   a trained table with one row per position, as in GPT-2, read by `embed`; the context ends where it ends

Modern models mark positions inside attention instead: see rope.py.

Source: "Positional Embeddings (RoPE)"; Vaswani et al. 2017, "Attention is all you need", section 3.5; Radford et al.
2019, "Language models are unsupervised multitask learners" (GPT-2).
"""

from array_api_compat import device

from .arrays import Array, Float, Int, array_namespace


def sinusoidal_positions(positions: Int[Array, "... T"], width: int) -> Float[Array, "... T D"]:
    """The position vectors: sines and cosines at width / 2 wavelengths, from 2π to nearly 10,000 · 2π tokens.

    Dimension 2i is sin(position / 10000^(2i / D)), dimension 2i + 1 the cosine of the same angle. Pairs are
    neighbouring dimensions, not the two halves as in RoPE. `width` is D and must be even.

    >>> import numpy as np
    >>> sinusoidal_positions(np.array([0, 1]), 4).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]], dtype=float32)
    """
    xp = array_namespace(positions)
    exponents = xp.arange(0, width, 2, dtype=xp.float32, device=device(positions)) / width
    angles = xp.astype(positions, xp.float32)[..., None] / 10000.0**exponents  # [..., T, D / 2]
    return xp.reshape(xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1), (*positions.shape, width))
