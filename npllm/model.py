"""The whole forward pass, straight down: ids -> embeddings -> blocks -> final norm -> LM head -> logits.

Source: "The Components of the Forward Pass" (Figures 3-4 to 3-6), "Parallel Token Processing and Context Size"
(Figures 3-8, 3-9).
"""

from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import device

from .arrays import Array, Bool, Float, Int, array_namespace
from .attention import attention
from .block import block
from .cache import Cache
from .config import Config
from .embedding import embed
from .heads import lm_head
from .masks import decoder_mask
from .norm import rms_norm
from .rope import rope_tables
from .shapes import Weights
from .tap import Tap, under, untapped


def transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    *,
    positions: Int[Array, "... T"] | None = None,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    total_length: int | None = None,
    block: Callable[..., Float[Array, "... T D"]] = block,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The stack of Transformer blocks: a vector for each token id, with its context in it. One pass, all T at once.

    It is the chapter's `model.model(input_ids)`.

    Parameters
    ----------
    ids : [T], or [B, T] for a batch of sequences of the same length; not checked, see `embed`
    cache : the tokens before these (`empty_cache` to begin with); the new ones are added to it. None: there are none
    positions : where each token stands, for RoPE; by default they count on from the cache
    visible : which of the S cached and new tokens each may see: for all layers, or a list with one for each.
        By default causal, within the layer's sliding window, counted by places in the sequence, not by `positions`
    total_length : how many tokens the whole text has, for position scalings that depend on it: a chunk of a long prompt
        must get the tables of the whole prompt. By default the cached and new tokens
    block, attention : other ways to compute the same
    tap : looks at the values on the way, see inspect/record.py

    Returns
    -------
    hidden : [..., T, D] float32, after the final norm
    cache : the one given
    """
    xp = array_namespace(ids)
    past, new = (0 if cache is None else cache["length"]), ids.shape[-1]
    if positions is None:
        positions = xp.arange(past, past + new, device=device(ids))
    cos, sin = rope_tables(positions, config, total_length=past + new if total_length is None else total_length)
    if visible is None:
        masks = {window: decoder_mask(past, new, window, ids) for window in {None, config.sliding_window}}
        visible = [masks[config.window(layer)] for layer in range(config.num_hidden_layers)]
    elif not isinstance(visible, Sequence):
        visible = [visible] * config.num_hidden_layers

    x = tap("embedding", embed(ids, weights.embed_tokens))
    for layer, block_weights in enumerate(weights.layers):
        inside = under(tap, f"layers.{layer}")
        x = block(x, block_weights, config, cos, sin, visible[layer], cache, layer, attention=attention, tap=inside)
    if cache is not None:
        cache["length"] = past + new
    return tap("norm", rms_norm(x, weights.norm, config.rms_norm_eps)), cache


def forward(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    *,
    tap: Tap = untapped,
    **options: Any,
) -> tuple[Float[Array, "... T V"], Cache | None]:
    """The forward pass with its head: the logits at every position. Parameters as in `transform`.

    logits[..., t, :] scores the token that follows token t; generation needs only the last of them.
    """
    hidden, cache = transform(ids, weights, config, cache, tap=tap, **options)
    return tap("logits", lm_head(hidden, weights, config)), cache
