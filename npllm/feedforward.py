"""The feedforward network: the other half of a block, applied to each token independently.

Source: "The feedforward neural network at a glance" (Figure 3-13), "The Transformer Block" (Figures 3-29, 3-30);
Vaswani et al. 2017 (ReLU); Hendrycks and Gimpel 2016 (GELU); Shazeer 2020, "GLU Variants Improve Transformer".
"""

import math
from collections.abc import Callable

from .arrays import Array, Float, array_namespace
from .linear import linear
from .shapes import BlockLike
from .tap import Tap, untapped


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · sigmoid(x) = x / (1 + e⁻ˣ): near 0 for very negative x, near x for large x; also called swish."""
    xp = array_namespace(x)
    return x / (1.0 + xp.exp(xp.minimum(-x, 88.0)))  # e⁸⁹ overflows float32


def swiglu(gate: Float[Array, "... F"], up: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """silu(gate) · up: the gate decides, element by element, how much of `up` passes."""
    return silu(gate) * up


def feedforward(x: Float[Array, "... T D"], weights: BlockLike, *, tap: Tap = untapped) -> Float[Array, "... T D"]:
    """x projected up to F dimensions twice (gate and up, in one product), gated, and projected back down to D."""
    gate_up = linear(x, weights.gate_up_proj, weights.gate_up_proj_bias)
    width = gate_up.shape[-1] // 2
    gate, up = tap("gate", gate_up[..., :width]), tap("up", gate_up[..., width:])
    activation = tap("activation", swiglu(gate, up))
    return tap("output", linear(activation, weights.down_proj, weights.down_proj_bias))


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0): the original Transformer's activation."""
    return array_namespace(x).maximum(x, 0.0)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), where Φ is the normal CDF, in GPT-2's tanh approximation (off by up to 5e-4)."""
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def plain_feedforward(
    x: Float[Array, "... T D"], weights: BlockLike, activation: Callable[[Array], Array], *, tap: Tap = untapped
) -> Float[Array, "... T D"]:
    """The network without a gate: up to F dimensions, `relu` (the original) or `gelu` (GPT-2), back down to D."""
    up = tap("up", linear(x, weights.c_fc, weights.c_fc_bias))
    return tap("output", linear(tap("activation", activation(up)), weights.c_proj, weights.c_proj_bias))
