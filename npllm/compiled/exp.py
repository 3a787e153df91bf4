"""The exponential function in float32, without a branch, so that a loop computes it in all lanes of a vector register.

eˣ = 2ⁿ · eʳ with a whole n and |r| <= ln 2 / 2. 2ⁿ is built from exponent bits, eʳ is a polynomial.

Source: Moshier, "Cephes mathematical library", expf: the coefficients, with an error below 2^-24 for these r.
"""

import math

import numpy as np

from .jit import jit, power_of_two

PER_OCTAVE = np.float32(1 / math.log(2))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2; n · LN2_HIGH is exact
C2, C3, C4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
C5, C6, C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
LEAST, LARGEST = np.float32(-87.0), np.float32(88.0)
ONE, HALF = np.float32(1), np.float32(0.5)


@jit
def exp(x):
    """eˣ; below -87, where it is under 2e-38, 0; above 88, infinity."""
    bounded = min(max(LEAST, x), LARGEST)  # LEAST for NaN
    n = np.float32(math.floor(bounded * PER_OCTAVE + HALF))
    r = (bounded - n * LN2_HIGH) - n * LN2_LOW
    series = ((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2
    y = (series * r * r + r + ONE) * power_of_two(np.int32(n))
    y = y if x >= LEAST else np.float32(0)
    y = y if x <= LARGEST else np.float32(np.inf)
    return y if x == x else x
