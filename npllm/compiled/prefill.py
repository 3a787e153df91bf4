"""All blocks for many new tokens: the products by BLAS (many.py), everything between them in loops.

What NumPy computes between the products takes a third of a pass: it uses one core, and every operation writes an array
that the next reads back. Here each part is one loop, and attention computes only the keys that a tile of queries sees.
The definition is the pass of the model's family, as in step.py, whose parts are reused here.

Source: Dao et al. 2022, "FlashAttention" (scores exist only for a tile; here one of queries, with all their keys).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Float
from .exp import exp
from .jit import jit
from .layers import geglu, swiglu
from .many import multiply, one_thread
from .step import normed, position_and_append
from .team import count

LANES = 16
ROWS = 8  # rows that a thread takes at a time
SCORES = 192  # rows of scores that a thread computes at a time


@jit
def add_and_norm(thread, threads, eps, after, before, added, x, out, counters):
    """x += the norm of `added`; out = the norm of x. The norms by the addresses of their weights; 0: none."""
    while True:
        first = count(counters, 0) * ROWS
        if first >= len(x):
            return
        last = min(first + ROWS, len(x))
        normed(added[first:last], after, eps, out[first:last])
        x[first:last] += out[first:last]
        normed(x[first:last], before, eps, out[first:last])


@jit
def position(thread, threads, model, block, tokens, qkv, cos, sin, counters):
    """`position_and_append`, some tokens at a time."""
    while True:
        first = count(counters, 0) * ROWS
        if first >= len(tokens):
            return
        last = min(first + ROWS, len(tokens))
        position_and_append(0, 1, model, block, tokens[first:last], qkv[first:last], cos[first:last], sin[first:last])


@jit
def gate(thread, threads, gelu, gate_up, out, counters):
    """out = silu(gate) · up, or gelu(gate) · up, for each row [gate, up]."""
    while True:
        first = count(counters, 0) * ROWS
        if first >= len(out):
            return
        for t in range(first, min(first + ROWS, len(out))):
            if gelu:
                geglu(gate_up[t], out[t])
            else:
                swiglu(gate_up[t], out[t])


@jit
def largest_of(row):
    """The largest of some scores, at least -1e38. The lanes of a register keep one each."""
    lanes = np.full(LANES, -1e38, np.float32)
    whole = len(row) // LANES * LANES
    for start in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] = row[start + i] if row[start + i] > lanes[i] else lanes[i]
    largest = lanes.max()
    for j in range(whole, len(row)):
        largest = max(largest, row[j])
    return largest


@jit
def softmax(scores, group, slot, first, window, scale, cap):
    """Each row of scores becomes its weights: a softmax over the keys that its query sees, zeros for the others.

    scores : [queries · group, keys], `group` heads for each query; the queries are those of the slots from `slot` on,
        the keys those from `first` on
    """
    for i in range(len(scores)):
        own = slot + i // group
        start = max(own - window + 1 - first, 0) if window > 0 else 0
        row = scores[i, start : own + 1 - first]
        for j in range(len(row)):
            row[j] *= scale
        if cap > 0:
            for j in range(len(row)):
                row[j] = cap * np.float32(np.tanh(row[j] / cap))
        largest, total = largest_of(row), np.float32(0)
        for j in range(len(row)):
            row[j] = exp(row[j] - largest)
            total += row[j]
        share = np.float32(0) if total == 0 else np.float32(1) / total  # 0: all scores are -inf
        for j in range(len(row)):
            row[j] *= share
        scores[i, :start] = 0
        scores[i, own + 1 - first :] = 0


def attend(
    thread: int,
    threads: int,
    model: Any,
    window: int,
    past: int,
    keys: np.ndarray,
    values: np.ndarray,
    qkv: Float[np.ndarray, "T NKKH"],
    mixed: Float[np.ndarray, "T NH"],
    counters: np.ndarray,
) -> None:
    """mixed = attention over the cache [K, C, H], a tile of queries and a key/value head at a time."""
    N, K, H = (int(model[name]) for name in ("heads", "kv_heads", "head_dim"))
    G, new = N // K, len(qkv)
    heads, out = qkv.reshape(new, N + 2 * K, H), mixed.reshape(new, N, H)
    tile = max(1, SCORES // G)
    tiles = -(-new // tile)
    while True:
        piece = count(counters, 0)
        if piece >= K * tiles:
            return
        k, start = piece % K, (tiles - 1 - piece // K) * tile  # the last queries first: they see the most keys
        stop, of_group = min(start + tile, new), slice(k * G, (k + 1) * G)
        first = max(0, past + start - window + 1) if window else 0
        seen = slice(first, past + stop)
        scores = heads[start:stop, of_group].reshape(-1, H) @ keys[k, seen].astype(np.float32, copy=False).T
        softmax(scores, G, past + start, first, window, model["scale"], model["cap"])
        out[start:stop, of_group] = (scores @ values[k, seen].astype(np.float32, copy=False)).reshape(-1, G, H)


def prefill(
    run: Callable[..., None],
    layers: Any,
    model: Any,
    blocks: Any,
    caches: Any,
    tokens: Any,
    x: Float[np.ndarray, "T D"],
    cos: Float[np.ndarray, "tables T R"],
    sin: Float[np.ndarray, "tables T R"],
) -> None:
    """x becomes the residual stream after the last block. The arguments are those of `step`, and

    run : `Team.run`
    layers : the weights of the blocks
    caches : the keys and values [K, C, H] of each
    """
    T, eps, none = len(x), model["eps"], np.uint64(0)
    past, first = int(tokens["slot"][0]), blocks[0]
    y, added = np.empty_like(x), np.zeros_like(x)
    qkv = np.empty((T, int(first["qkv_proj"]["height"])), np.float32)
    mixed = np.empty((T, int(first["o_proj"]["width"])), np.float32)
    gate_up = np.empty((T, int(first["gate_up_proj"]["height"])), np.float32)
    activation = np.empty((T, int(first["down_proj"]["width"])), np.float32)

    def product(weights: Any, block: Any, name: str, x: np.ndarray, y: np.ndarray) -> None:
        run(multiply, 1, x, getattr(weights, name), block[name], getattr(weights, f"{name}_bias", None), y)

    with one_thread():
        after = none
        for weights, block, (keys, values) in zip(layers, blocks, caches, strict=True):
            run(add_and_norm, 1, eps, after, block["before_attention"], added, x, y)
            product(weights, block, "qkv_proj", y, qkv)
            run(position, 1, model, block, tokens, qkv, cos[block["tables"]], sin[block["tables"]])
            run(attend, 1, model, int(block["window"]), past, keys, values, qkv, mixed)
            product(weights, block, "o_proj", mixed, added)
            run(add_and_norm, 1, eps, block["after_attention"], block["before_feedforward"], added, x, y)
            product(weights, block, "gate_up_proj", y, gate_up)
            run(gate, 1, model["gelu"], gate_up, activation)
            product(weights, block, "down_proj", activation, added)
            after = block["after_feedforward"]
        run(add_and_norm, 1, eps, after, none, added, x, y)
