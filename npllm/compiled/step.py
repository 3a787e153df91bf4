"""A decode step as one compiled call: all blocks for one to 32 new tokens, all threads inside.

Several tokens are those of one text (guesses to verify, or the end of a prompt), or one of each text of a batch. The
definition is the pass of the model's family; fit.py says which passes have their steps here, and what is special about
each.

Each thread keeps its own copy of the residual stream, and computes the small vectors derived from it itself. Shared are
the results of the products, which the threads divide among themselves, and the cache.

Source: "Inside the Transformer Block" (Figures 3-11, 3-12), "Speeding Up Generation by Caching Keys and Values"; Dao et
al. 2023, "Flash-Decoding for long-context inference" (keys in chunks that are merged).
"""

import numpy as np

from .jit import jit, view
from .layers import CHUNK, apply_rope, attend, geglu, merge, rms_norm, slots, store, swiglu
from .products import F32, product
from .records import FLOAT32, WEIGHT
from .team import count, wait

PHASES = 11  # counters of a block
LARGEST = 32  # tokens

BLOCK = np.dtype(
    [
        ("qkv_proj", WEIGHT),
        ("o_proj", WEIGHT),
        ("gate_up_proj", WEIGHT),
        ("down_proj", WEIGHT),
        # The addresses of the norms' weights; 0: there is no such norm.
        ("before_attention", "u8"),
        ("of_queries", "u8"),
        ("of_keys", "u8"),
        ("after_attention", "u8"),
        ("before_feedforward", "u8"),
        ("after_feedforward", "u8"),
        ("keys", "u8"),  # the addresses of the layer's cache [..., K, C, H]
        ("values", "u8"),
        ("window", "i8"),  # the tokens that a token sees; 0: all
        ("tables", "i8"),  # which of the two pairs of RoPE tables
    ],
    align=True,
)
MODEL = np.dtype(
    [
        ("heads", "i8"),  # N
        ("kv_heads", "i8"),  # K
        ("head_dim", "i8"),  # H
        ("eps", "f4"),
        ("scale", "f4"),  # of the scores
        ("cap", "f4"),  # of the scores; 0: none
        ("gelu", "i8"),  # whether the gate is GELU, not SiLU
        ("cache", "i8"),  # the form of the cache
        ("capacity", "i8"),  # C
    ],
    align=True,
)
TOKEN = np.dtype(
    [
        ("text", "i8"),  # its index in the batch
        ("slot", "i8"),  # of the cache
        ("first", "i8"),  # the first slot that it sees
    ],
    align=True,
)


@jit
def normed(x, weight, eps, out):
    """RMSNorm of each row of x, with the norm's weights at this address; without such a norm, x itself."""
    if weight == 0:
        out[:] = x
        return
    weights = view(weight, (x.shape[1],), F32)
    for t in range(len(x)):
        rms_norm(x[t], weights, eps, out[t])


@jit
def position_and_append(thread, threads, model, block, tokens, qkv, cos, sin):
    """Normalize and rotate queries and keys, and append keys and values to the cache; each thread does some heads."""
    N, K, H = model["heads"], model["kv_heads"], model["head_dim"]
    for t in range(len(tokens)):
        of_token = qkv[t].reshape(N + 2 * K, H)
        for n in range(thread, N + 2 * K, threads):
            head, is_query, is_key = of_token[n], n < N, N <= n < N + K
            norm = block["of_queries"] if is_query else block["of_keys"] if is_key else np.uint64(0)
            if norm != 0:
                rms_norm(head, view(norm, (H,), F32), model["eps"], head)
            if is_query or is_key:
                apply_rope(head, cos[t], sin[t])
            if not is_query:
                place = ((tokens[t]["text"] * K + (n - N) % K) * model["capacity"] + tokens[t]["slot"]) * H
                store(block["keys"] if is_key else block["values"], model["cache"], place, head)


@jit
def attend_in_chunks(model, block, tokens, qkv, parts, counters, phase):
    """The parts of `attend`: for each token and each key/value head, a chunk of keys at a time."""
    N, K, H = model["heads"], model["kv_heads"], model["head_dim"]
    G, chunks = N // K, parts.shape[2]
    scores = np.empty(CHUNK, np.float32)
    wide = np.empty((2, 0 if model["cache"] == FLOAT32 else CHUNK, H), np.float32)
    while True:
        piece = count(counters, phase)
        if piece >= len(tokens) * K * chunks:
            return
        t, k, c = piece // (K * chunks), piece // chunks % K, piece % chunks
        out = parts[t, k * G : (k + 1) * G, c]
        stop = tokens[t]["slot"] + 1
        first = tokens[t]["first"]
        if block["window"] > 0:
            first = max(first, stop - block["window"])
        first, stop = max(first, c * CHUNK), min(stop, (c + 1) * CHUNK)
        if first >= stop:  # nothing to see here
            out[:] = 0
            out[:, H + 1] = -1e38
            continue
        place = ((tokens[t]["text"] * K + k) * model["capacity"] + first) * H
        keys = slots(block["keys"], model["cache"], place, stop - first, H, wide[0])
        values = slots(block["values"], model["cache"], place, stop - first, H, wide[1])
        queries = qkv[t, k * G * H : (k + 1) * G * H].reshape(G, H)
        attend(queries, keys, values, model["scale"], model["cap"], scores, out)


@jit
def step(thread, threads, model, blocks, tokens, x, cos, sin, qkv, parts, added, gate_up, counters):
    """x becomes the residual stream after the last block.

    model : record; blocks : [L] records; tokens : [T] records
    x : [T, D]
    cos, sin : [1, T, R], or [2, T, R] where layers with a window have tables of their own
    qkv [T, (N + 2K) H], parts [T, N, chunks, H + 2], added [2, T, D], gate_up [T, 2F] : what the threads share
    """
    T, H = len(x), model["head_dim"]
    stream, y = x.copy(), np.empty_like(x)
    mixed = np.empty((T, model["heads"] * H), np.float32)
    activation = np.empty((T, gate_up.shape[1] // 2), np.float32)
    for layer in range(len(blocks)):
        block, phase, tables = blocks[layer], layer * PHASES, blocks[layer]["tables"]
        normed(stream, block["before_attention"], model["eps"], y)
        product(block["qkv_proj"], y, qkv, counters, phase)
        wait(counters, phase + 1, threads)
        position_and_append(thread, threads, model, block, tokens, qkv, cos[tables], sin[tables])
        wait(counters, phase + 2, threads)
        attend_in_chunks(model, block, tokens, qkv, parts, counters, phase + 3)
        wait(counters, phase + 4, threads)
        for t in range(T):
            for n in range(model["heads"]):
                merge(parts[t, n], mixed[t, n * H : (n + 1) * H])
        product(block["o_proj"], mixed, added[0], counters, phase + 5)
        wait(counters, phase + 6, threads)
        normed(added[0], block["after_attention"], model["eps"], y)
        stream += y
        normed(stream, block["before_feedforward"], model["eps"], y)
        product(block["gate_up_proj"], y, gate_up, counters, phase + 7)
        wait(counters, phase + 8, threads)
        for t in range(T):
            if model["gelu"]:
                geglu(gate_up[t], activation[t])
            else:
                swiglu(gate_up[t], activation[t])
        product(block["down_proj"], activation, added[1], counters, phase + 9)
        wait(counters, phase + 10, threads)
        normed(added[1], block["after_feedforward"], model["eps"], y)
        stream += y
    if thread == 0:
        x[:] = stream
