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
    embed: Callable[..., Float[Array, "... T D"]] = embed,
    norm: Callable[..., Float[Array, "... T D"]] = rms_norm,
    tap: Tap = untapped,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The hidden states, one vector per token id with its context in it: one pass over all T tokens in parallel.

    This is the chapter's `model.model(input_ids)`: the stack of Transformer blocks.

    Parameters
    ----------
    ids : [T], or [B, T] for a batch of sequences of equal length; not checked, see `embed`
    cache : the earlier tokens (start with `empty_cache`); the new ones are added to it. None: no earlier tokens
    positions : the position of each token, for RoPE; by default they continue from the cache
    visible : which of the S cached and new tokens each new token sees: one mask for all layers, or a list with one per
        layer. By default causal within the layer's sliding window, by order in the cache, not by `positions`
    total_length : the length of the whole text, for scalings of positions that depend on it: a chunk of a long prompt
        needs the tables of the whole prompt. By default the cached and new tokens
    block, attention, embed, norm : other implementations
    tap : observes the intermediate values, see inspect/record.py

    Returns
    -------
    hidden : [..., T, D] float32, after the final norm
    cache : the same object
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
    return tap("norm", norm(x, weights.norm, config.rms_norm_eps)), cache


def forward(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: Config,
    cache: Cache | None = None,
    *,
    tap: Tap = untapped,
    **options: Any,
) -> tuple[Float[Array, "... T V"], Cache | None]:
    """The logits at every position, and the cache: `transform`, then the head. Parameters as in `transform`."""
    hidden, cache = transform(ids, weights, config, cache, tap=tap, **options)
    return tap("logits", lm_head(hidden, weights, config)), cache
