"""How close is close enough: all the tests' tolerances, in one place.

Two computations of the same formula in float32 differ by a few roundings of each operation, so a tolerance is a number
of roundings: a multiple of the dtype's eps (float32: 1.19e-7).
"""

import numpy as np

# Against transformers, in float32: |a - b| <= 1e-4 |b| + 2e-5 max|b|, the max over all of the tapped value. The
# second term is for sums that nearly cancel: their error scales with the summands, not with the result.
RELATIVE = 838  # eps: 0.999e-4
OF_LARGEST = 167  # eps: 1.99e-5

# If the two best logits are closer than this, rounding may decide which one is larger.
NEAR_TIE = 1e-3
# Logits of the default model, compared with transformers.
TOP_LOGIT = 1e-3


def assert_close(name, got, expected, where=None):
    """Raise AssertionError with the worst element unless got is expected, within the tolerance of got's dtype.

    `where` (broadcast to the values' shape) selects what to compare. NaN or infinity on either side never passes, nor
    does any difference of integers.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.dtype.kind == "i":
        np.testing.assert_array_equal(got, expected, err_msg=name)
        return
    assert got.shape == expected.shape, f"{name}: expected shape {expected.shape}, got {got.shape}"
    eps = float(np.finfo(got.dtype).eps)
    chosen = np.ones(got.shape, dtype=bool) if where is None else np.broadcast_to(where, got.shape)
    a, b = got.astype(np.float64), expected.astype(np.float64)
    largest = np.max(np.abs(b), where=chosen, initial=0.0)
    limit = RELATIVE * eps * np.abs(b) + OF_LARGEST * eps * largest
    with np.errstate(invalid="ignore"):
        error = np.where(chosen, np.abs(a - b), 0.0)
        passed = np.isfinite(error) & (error <= limit)
        excess = np.where(np.isfinite(error), error - limit, np.inf)
    if not np.all(passed):
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{name}{[int(i) for i in worst]}: expected {b[worst]:.9g}, got {a[worst]:.9g}:"
            f" off by {error[worst]:.3g}, allowed {limit[worst]:.3g};"
            f" {np.sum(~passed)} of {np.sum(chosen)} numbers are off"
        )


def assert_same_ids(name, got, expected, gaps):
    """Raise AssertionError unless two greedy continuations agree.

    gaps[i] is the distance between the two best logits at step i. The first difference is allowed at a near tie.
    The texts diverge from there, and the rest is not compared.
    """
    got, expected = list(got), list(expected)
    for step, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a != b:
            assert gaps[step] <= NEAR_TIE, (
                f"{name}: token {step}: expected {b}, got {a}, and the two best logits are {gaps[step]:.4g} apart"
            )
            return
    assert len(got) == len(expected), f"{name}: expected {len(expected)} tokens, got {len(got)}"
