"""The parts of a Transformer block besides its matrices, for the few new tokens of a decode step.

Each has the array function of the same name on the ground floor as its definition: `norm.rms_norm`,
`rope.apply_rope`, `attention.attention`, `feedforward.swiglu`.
"""

import math

import numpy as np

from .exp import exp
from .jit import as_bfloat16, as_float16, bfloat16, float16, jit, view
from .products import F32, U16, dot
from .records import BFLOAT16, FLOAT32

CHUNK = 256  # keys of a piece of work


@jit
def rms_norm(x, weight, eps, out):
    """out = x / sqrt(mean(x²) + eps) · weight; NaN if a square overflows."""
    mean_square = dot(x, x) / np.float32(len(x))
    scale = np.float32(1) / np.float32(math.sqrt(mean_square + eps))
    if not math.isfinite(mean_square):
        scale = np.float32(np.nan)
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@jit
def apply_rope(head, cos, sin):
    """The vector of a head, rotated in place: pair i is dimensions i and i + R."""
    pairs = len(cos)
    for i in range(pairs):
        first, second = head[i], head[pairs + i]
        head[i] = first * cos[i] - second * sin[i]
        head[pairs + i] = second * cos[i] + first * sin[i]


@jit
def swiglu(gate_up, out):
    """out = silu(gate) · up"""
    width = len(out)
    for i in range(width):
        gate = gate_up[i]
        out[i] = gate / (np.float32(1) + exp(-gate)) * gate_up[width + i]


@jit
def geglu(gate_up, out):
    """out = gelu(gate) · up, in the tanh approximation: 0.5 x (1 + tanh(u)) is x / (1 + e^(-2u))."""
    width = len(out)
    twice = np.float32(2 * math.sqrt(2 / math.pi))
    for i in range(width):
        gate = gate_up[i]
        u = twice * (gate + np.float32(0.044715) * gate * gate * gate)
        out[i] = gate / (np.float32(1) + exp(-u)) * gate_up[width + i]


@jit
def store(address, form, start, numbers):
    """Write float32 numbers to a cache of this form, from element `start` on."""
    stop = start + len(numbers)
    plain, codes = view(address, (stop,), F32), view(address, (stop,), U16)
    for i in range(len(numbers)):
        if form == FLOAT32:
            plain[start + i] = numbers[i]
        else:
            codes[start + i] = as_bfloat16(numbers[i]) if form == BFLOAT16 else as_float16(numbers[i])


@jit
def slots(address, form, start, count, width, wide):
    """Keys or values of `count` slots of a cache, [count, H], from element `start` on; those of 16 bits in `wide`."""
    stop = start + count * width
    if form == FLOAT32:
        return view(address, (stop,), F32)[start:].reshape(count, width)
    codes = view(address, (stop,), U16)
    out = wide[:count]
    for j in range(count):
        for i in range(width):
            code = codes[start + j * width + i]
            out[j, i] = bfloat16(code) if form == BFLOAT16 else float16(code)
    return out


@jit
def four_dots(q, a, b, c, d):
    """The products of q with four keys, in one loop."""
    qa = qb = qc = qd = np.float32(0)
    for i in range(len(q)):
        qa += q[i] * a[i]
        qb += q[i] * b[i]
        qc += q[i] * c[i]
        qd += q[i] * d[i]
    return qa, qb, qc, qd


@jit
def score_keys(q, keys, out):
    """out = keys q, four keys at a time"""
    whole = len(keys) // 4 * 4
    for j in range(0, whole, 4):
        out[j], out[j + 1], out[j + 2], out[j + 3] = four_dots(q, keys[j], keys[j + 1], keys[j + 2], keys[j + 3])
    for j in range(whole, len(keys)):
        out[j] = dot(q, keys[j])


@jit
def mix_values(weights, values, out):
    """out = Σ weights[j] · values[j], four values at a time, so that out is read and written less often"""
    out[:] = 0
    whole = len(values) // 4 * 4
    for j in range(0, whole, 4):
        p, q, r, s = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        a, b, c, d = values[j], values[j + 1], values[j + 2], values[j + 3]
        for i in range(len(out)):
            out[i] += (p * a[i] + q * b[i]) + (r * c[i] + s * d[i])
    for j in range(whole, len(values)):
        for i in range(len(out)):
            out[i] += weights[j] * values[j, i]


@jit
def attend(queries, keys, values, scale, cap, scores, out):
    """Attention of some queries of one token over some keys; the queries of a group share them (GQA).

    The weights are not divided by their sum: other keys follow (`merge`). A softmax does not change if the same number
    is subtracted from all scores; the largest one is, so that no exponential overflows.

    out : [queries, H + 2]: Σ weight · value, the sum of the weights, and the score that was subtracted
    """
    width = queries.shape[1]
    for n in range(len(queries)):
        q, result, row = queries[n], out[n], scores[: len(keys)]
        largest = np.float32(-1e38)
        score_keys(q, keys, row)
        for j in range(len(keys)):
            score = row[j] * scale
            if cap > 0:
                score = cap * np.float32(math.tanh(score / cap))
            row[j] = score
            largest = max(largest, score)
        total = np.float32(0)
        for j in range(len(keys)):
            row[j] = exp(row[j] - largest)
            total += row[j]
        mix_values(row, values, result[:width])
        result[width], result[width + 1] = total, largest


@jit
def merge(parts, out):
    """out = attention over all keys, from the parts [chunks, H + 2] of `attend`: scaled to one score."""
    width = len(out)
    largest = parts[:, width + 1].max()
    total = np.float32(0)
    out[:] = 0
    for c in range(len(parts)):
        shrink = np.float32(math.exp(parts[c, width + 1] - largest))
        total += shrink * parts[c, width]
        for i in range(width):
            out[i] += shrink * parts[c, i]
    share = np.float32(0) if total == 0 else np.float32(1) / total  # 0: all scores are -inf
    for i in range(width):
        out[i] *= share
