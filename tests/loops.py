"""The formulas a second time, as Python loops in float64: as short as possible, however slow.

Indices are the letters of npllm/shapes.py in lower case: t is a query token, s a key token, n a query head, k a
key/value head, h a dimension of a head. The loops share no code and no library calls with npllm.
"""

from math import cos, exp, pi, sin, sqrt, tanh

import numpy as np


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def rms_norm(x, weight, eps):
    """x [D]"""
    length = sqrt(dot(x, x) / len(x) + eps)
    return np.array([float(a) / length * float(w) for a, w in zip(x, weight, strict=True)])


def layer_norm(x, weight, bias, eps):
    """x, weight and bias [D]"""
    mean = sum(float(a) for a in x) / len(x)
    deviation = sqrt(sum((float(a) - mean) ** 2 for a in x) / len(x) + eps)
    return np.array(
        [(float(a) - mean) / deviation * float(w) + float(b) for a, w, b in zip(x, weight, bias, strict=True)]
    )


def sinusoidal_position(position, width):
    """Vaswani et al. 2017, section 3.5"""
    angles = [position / 10000 ** (2 * i / width) for i in range(width // 2)]
    return np.array([wave(angle) for angle in angles for wave in (sin, cos)])


def linear(x, weight, bias=None):
    """x [D], weight [F, D]"""
    bias = np.zeros(len(weight)) if bias is None else bias
    return np.array([dot(x, row) + float(b) for row, b in zip(weight, bias, strict=True)])


def rope(x, position, theta, rotated=None):
    """x [H], rotated by its position. Dimensions i and i + R form a pair; those from 2R on are unchanged."""
    out = np.array(x, dtype=np.float64)
    R = (len(x) if rotated is None else rotated) // 2
    for i in range(R):
        angle = position * theta ** (-i / R)
        out[i] = x[i] * cos(angle) - x[i + R] * sin(angle)
        out[i + R] = x[i] * sin(angle) + x[i + R] * cos(angle)
    return out


def causal(t):
    """The key tokens s that token t sees. The next four functions return the same."""
    return set(range(t + 1))


def sliding_window(t, window):
    return set(range(t + 1)[-window:])


def strided(t, stride):
    """Child et al. 2019, section 4.3: their A(1) and A(2), merged."""
    return set(range(max(0, t - stride), t + 1)) | {s for s in range(t + 1) if (t - s) % stride == 0}


def fixed(t, block, summary):
    """Child et al. 2019, section 4.3, as well."""
    own = {s for s in range(t + 1) if s // block == t // block}
    return own | {s for s in range(t + 1) if s % block in range(block - summary, block)}


def block_local(t, block, local_blocks, stride, offset):
    """Phi-3-small, block by block. With an offset of 0, all tokens see the last of every `stride` blocks."""
    own = t // block
    blocks = [*range(max(0, own - local_blocks + 1), own + 1), *range((-1 - offset) % stride, own + 1, stride)]
    return {b * block + place for b in blocks for place in range(block) if b * block + place <= t}


def attention(q, k, v, window=None, visible=None):
    """q [N, T, H], k and v [K, S, H]: the queries are the last T of the S tokens. Returns [N, T, H]."""
    out = np.zeros(q.shape)
    past = k.shape[1] - q.shape[1]
    for n, t in np.ndindex(q.shape[:2]):
        head = n // (len(q) // len(k))  # adjacent query heads share a key/value head
        seen = [s for s in range(past + t + 1) if window is None or s > past + t - window]
        if visible is not None:
            seen = [s for s in range(k.shape[1]) if visible[t][s]]
        scores = [dot(q[n, t], k[head, s]) / sqrt(q.shape[2]) for s in seen]
        total = sum(exp(score) for score in scores)
        for s, score in zip(seen, scores, strict=True):
            out[n, t] += exp(score) / total * v[head, s]
    return out


def swiglu(gate, up):
    """gate and up [F]"""
    return np.array([float(g) / (1 + exp(-float(g))) * float(u) for g, u in zip(gate, up, strict=True)])


def block(x, weights, config, window=None):
    """x [T, D], the first T tokens"""
    N, K, H, F = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
    )
    factor = config.rope_scaling.factors[0] if config.rope_scaling else 1.0
    q, k, v = np.zeros((N, len(x), H)), np.zeros((K, len(x), H)), np.zeros((K, len(x), H))
    for t in range(len(x)):
        normed = rms_norm(x[t], weights.input_layernorm, config.rms_norm_eps)
        heads = linear(normed, weights.qkv_proj, weights.qkv_proj_bias).reshape(N + 2 * K, H)
        q[:, t] = [rope(head, t / factor, config.rope_theta, config.rotary_dim) for head in heads[:N]]
        k[:, t] = [rope(head, t / factor, config.rope_theta, config.rotary_dim) for head in heads[N : N + K]]
        v[:, t] = heads[N + K :]
    mixed = attention(q, k, v, window)
    out = np.zeros(x.shape)
    for t in range(len(x)):
        y = x[t] + linear(np.concatenate(list(mixed[:, t])), weights.o_proj, weights.o_proj_bias)
        normed = rms_norm(y, weights.post_attention_layernorm, config.rms_norm_eps)
        gate_up = linear(normed, weights.gate_up_proj, weights.gate_up_proj_bias)
        out[t] = y + linear(swiglu(gate_up[:F], gate_up[F:]), weights.down_proj, weights.down_proj_bias)
    return out


def logits(ids, weights, config):
    """ids [T]. Returns the logits [T, V] of the whole model."""
    x = np.array([weights.embed_tokens[token] for token in ids], dtype=np.float64)
    for layer, block_weights in enumerate(weights.layers):
        x = block(x, block_weights, config, config.window(layer))
    return np.array([linear(rms_norm(row, weights.norm, config.rms_norm_eps), weights.lm_head) for row in x])


def relu(x):
    """x is a scalar"""
    return max(float(x), 0.0)


def gelu(x):
    """x is a scalar; GPT-2's tanh form"""
    x = float(x)
    return x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def plain_block(x, weights, config, activation, post_norm):
    """x [T, D]: GPT-2's block, or with post_norm the original Transformer's"""
    N, eps = config.num_attention_heads, config.layer_norm_epsilon
    first = [layer_norm(row, weights.ln_1, weights.ln_1_bias, eps) for row in x]
    heads = [linear(row, weights.qkv_proj, weights.qkv_proj_bias) for row in (x if post_norm else first)]
    q, k, v = np.array(heads).reshape(len(x), 3, N, -1).transpose(1, 2, 0, 3)
    mixed, out = attention(q, k, v), np.zeros(x.shape)
    for t in range(len(x)):
        y = x[t] + linear(np.concatenate(list(mixed[:, t])), weights.o_proj, weights.o_proj_bias)
        if post_norm:
            y = layer_norm(y, weights.ln_1, weights.ln_1_bias, eps)
        inner = y if post_norm else layer_norm(y, weights.ln_2, weights.ln_2_bias, eps)
        inner = [activation(number) for number in linear(inner, weights.c_fc, weights.c_fc_bias)]
        y = y + linear(inner, weights.c_proj, weights.c_proj_bias)
        out[t] = layer_norm(y, weights.ln_2, weights.ln_2_bias, eps) if post_norm else y
    return out


def gpt2_hidden(ids, weights, config, original=False):
    """ids [T]. Returns the vectors [T, D] after the stack: GPT-2's blocks and final norm, or the original blocks."""
    x = np.array([weights.embed_tokens[token] for token in ids], dtype=np.float64)
    x += weights.embed_positions[: len(ids)]
    for block_weights in weights.layers:
        x = plain_block(x, block_weights, config, relu if original else gelu, post_norm=original)
    norm = weights.norm, weights.norm_bias, config.layer_norm_epsilon
    return x if original else np.array([layer_norm(row, *norm) for row in x])
