"""Norms with the scale of one vector, applied to the parts of that vector: then a norm is linear.

A norm divides a vector by a number that depends on all of it. With this number taken from the whole vector, the norms
of its parts sum to the norm of the whole, but for the bias. So what each layer adds can be followed to the logits.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits"; McDougall et al. 2023, "Copy
suppression" (the scale of the run).
"""

from ..arrays import Array, Float, array_namespace


def rms_norm_of_parts(
    parts: Float[Array, "P D"], x: Float[Array, " D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "P D"]:
    """The share of each part in rms_norm(x), if the parts sum to x."""
    xp = array_namespace(x)
    return parts / xp.sqrt(xp.mean(x * x) + eps) * weight


def layer_norm_of_parts(
    parts: Float[Array, "P D"], x: Float[Array, " D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "P D"]:
    """The share of each part in layer_norm(x) without its bias, if the parts sum to x."""
    xp = array_namespace(x)
    centred = x - xp.mean(x)
    return (parts - xp.mean(parts, axis=-1, keepdims=True)) / xp.sqrt(xp.mean(centred * centred) + eps) * weight
