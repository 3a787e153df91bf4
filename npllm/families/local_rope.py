"""RoPE of its own in the layers with a sliding window, as in OLMo 3 and Gemma 3: another theta, and no scaling.

A layer with a window needs to tell only near tokens apart, and never sees farther back than in training.

Source: Gemma Team 2025, "Gemma 3 technical report"; OLMo Team 2025, "OLMo 3".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import device

from .. import model
from ..arrays import Array, Bool, Float, Int, array_namespace
from ..block import block
from ..cache import Cache
from ..config import Config
from ..rope import rope_tables
from ..shapes import BlockLike, Weights


@dataclass(frozen=True, kw_only=True)
class LocalRopeConfig(Config):
    """A configuration whose `rope_theta` and `rope_scaling` are those of the layers with full attention."""

    local_rope_theta: float  # theta in the layers with a sliding window


def local(config: LocalRopeConfig) -> LocalRopeConfig:
    """The configuration with the RoPE of the layers with a sliding window."""
    return replace(config, rope_theta=config.local_rope_theta, rope_scaling=None)


def transform(
    ids: Int[Array, "... T"],
    weights: Weights,
    config: LocalRopeConfig,
    cache: Cache | None = None,
    *,
    positions: Int[Array, "... T"] | None = None,
    block: Callable[..., Float[Array, "... T D"]] = block,
    **options: Any,
) -> tuple[Float[Array, "... T D"], Cache | None]:
    """The chapter's pass with RoPE's tables by the kind of layer. Parameters as in `npllm.model.transform`."""
    xp = array_namespace(ids)
    past, new = (0 if cache is None else cache["length"]), ids.shape[-1]
    if positions is None:
        positions = xp.arange(past, past + new, device=device(ids))
    tables = rope_tables(positions, local(config), total_length=past + new)

    def by_layer(
        x: Float[Array, "... T D"],
        weights: BlockLike,
        config: LocalRopeConfig,
        cos: Float[Array, "... T R"],
        sin: Float[Array, "... T R"],
        visible: Bool[Array, "... T S"] | None,
        cache: Cache | None,
        layer: int,
        **more: Any,
    ) -> Float[Array, "... T D"]:
        if config.window(layer):
            cos, sin = tables
        return block(x, weights, config, cos, sin, visible, cache, layer, **more)

    return model.transform(ids, weights, config, cache, positions=positions, block=by_layer, **options)
