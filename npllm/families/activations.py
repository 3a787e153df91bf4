"""Activation functions by their names in config.json, and what they cost.

Source: Hendrycks and Gimpel 2016, "Gaussian error linear units"; transformers' activations.py for the names.
"""

import math
from collections.abc import Callable

from ..arrays import Array, Float, array_namespace
from ..feedforward import gelu, relu, silu


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x) without the tanh approximation. The array API has no erf; this series is within 1.5e-7 of it.

    Source: Abramowitz and Stegun 1964, formula 7.1.26.
    """
    xp = array_namespace(x)
    z = xp.abs(x) / math.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * xp.exp(xp.maximum(-z * z, -80.0))  # Φ(-|x|)
    return x * xp.where(x > 0, 1.0 - tail, tail)


def bounded_glu(
    gate: Float[Array, "... F"], up: Float[Array, "... F"], limit: float, alpha: float = 1.702
) -> Float[Array, "... F"]:
    """gate · sigmoid(α · gate) · (up + 1): gate at most `limit`, up within it on both sides.

    With `up` at zero, the gate itself passes; with α = 1.702 it passes a rough GELU. Infinities stay, so that an
    overflow does not look like a large value. Source: Hendrycks and Gimpel 2016, section 2.
    """
    xp = array_namespace(gate)
    gate = xp.where(xp.isinf(gate), gate, xp.minimum(gate, limit))
    up = xp.where(xp.isinf(up), up, xp.maximum(xp.minimum(up, limit), -limit))
    return gate / (1.0 + xp.exp(xp.minimum(-alpha * gate, 88.0))) * (up + 1.0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # by their names in config.json
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), gelu),
    **dict.fromkeys(("gelu", "gelu_python"), exact_gelu),
    **dict.fromkeys(("silu", "swish"), silu),
    "relu": relu,
}
FLOPS: dict[Callable[[Array], Array], int] = {gelu: 9, exact_gelu: 19, silu: 3, relu: 0}  # per element
