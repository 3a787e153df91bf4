"""The FLOPs of a block's parts, for T new tokens among S, and the weights they read: the pieces of `Family.work`.

inspect/cost.py defines what is counted, and sums over the layers.
"""

from collections.abc import Iterator
from typing import Any

from ..arrays import Array
from ..config import Config
from .family import Work


def linear_work(name: str, weights: Any, T: int) -> Work:
    """A linear layer: a multiplication and an addition per weight, and an addition per bias."""
    rows, columns = getattr(weights, name).shape
    biased = getattr(weights, f"{name}_bias", None) is not None
    return Work(name, T * rows * (2 * columns + biased), (name, f"{name}_bias"))


def rms_norm_flops(T: int, width: int) -> int:
    """RMSNorm of T vectors: square, sum, division, weight per element; mean, check for overflow, root per vector."""
    return T * (4 * width + 4)


def layer_norm_flops(T: int, width: int) -> int:
    """LayerNorm of T vectors."""
    return T * (7 * width + 4)


def attention_work(config: Config, weights: Any, T: int, S: int, rotated: bool = True) -> list[Work]:
    """The attention layer without norms: projections, RoPE if `rotated`, scores, softmax, combining."""
    N, K, H, R = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rotary_dim // 2
    return [
        linear_work("qkv_proj", weights, T),
        *([Work("RoPE", 6 * R * T * (N + K))] if rotated else []),
        Work("scores", T * N * H + 2 * T * S * N * H, cached=True),
        Work("softmax", T * N * (4 * S - 1)),
        Work("combine", 2 * T * S * N * H, cached=True),
        linear_work("o_proj", weights, T),
    ]


def arrays_in(weights: Any) -> Iterator[Array]:
    """Every array in the weights of a model or a block, those of its experts included."""
    for one in weights:
        if isinstance(one, tuple):
            yield from arrays_in(one)
        elif one is not None:
            yield one


def named(block: Any, name: str) -> list[Array]:
    """The arrays of this name in a block: one or none, or one per expert for a name like "experts.down_proj"."""
    inside, _, field = name.rpartition(".")
    owners = block.experts if inside else [block]
    return [getattr(owner, field) for owner in owners if getattr(owner, field, None) is not None]


def read_by(part: Work, block: Any) -> list[Array]:
    """The arrays that a part of the block reads."""
    return [array for name in part.weights for array in named(block, name)[: part.experts if "." in name else None]]
