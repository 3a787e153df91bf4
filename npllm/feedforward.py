"""The feed-forward network: the other half of a block, which works on each token by itself.

Source: "The feedforward neural network at a glance" (Figure 3-13), "The Transformer Block" (Figure 3-30);
Shazeer 2020, "GLU Variants Improve Transformer".
"""

from .linear import linear
from .shapes import Array, BlockWeights, Float, array_namespace
from .tap import Tap, untapped


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · sigmoid(x) = x / (1 + e⁻ˣ): near 0 for very negative x, near x for large; also called swish."""
    xp = array_namespace(x)
    return x / (1.0 + xp.exp(xp.minimum(-x, 88.0)))  # e⁸⁹ overflows float32


def swiglu(gate: Float[Array, "... F"], up: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """silu(gate) · up: a gate decides, number by number, how much of `up` passes."""
    return silu(gate) * up


def feedforward(x: Float[Array, "... T D"], weights: BlockWeights, *, tap: Tap = untapped) -> Float[Array, "... T D"]:
    """Out to F dimensions twice, as gate and as up; gated; and back to D.

    Both ways out are one product: the rows of `gate_up_proj` are gate first, then up.
    """
    gate_up = linear(x, weights.gate_up_proj, weights.gate_up_proj_bias)
    width = gate_up.shape[-1] // 2
    gate, up = tap("gate", gate_up[..., :width]), tap("up", gate_up[..., width:])
    activation = tap("activation", swiglu(gate, up))
    return tap("output", linear(activation, weights.down_proj, weights.down_proj_bias))
