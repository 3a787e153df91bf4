"""A port of Mistral in a few lines of NumPy, for docs/find-my-bug.md. It shares nothing with npllm but the value names.

python docs/my_port.py FOLDER 1,2,3 ours.safetensors
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / theta ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def forward(weights, config, ids):
    """Every value of a forward pass over the ids, by name, in order of execution."""
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    tokens = np.arange(len(ids))
    distance = tokens[:, None] - tokens  # from each query back to each key
    visible = (distance >= 0) & (distance < config["sliding_window"])

    seen = {}

    def keep(name, value):
        seen[name] = np.ascontiguousarray(value, dtype=np.float32)
        return value

    x = keep("embedding", weights["model.embed_tokens.weight"][ids])
    for layer in range(config["num_hidden_layers"]):
        w = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in PARTS}
        attention, feedforward = f"layers.{layer}.attention", f"layers.{layer}.feedforward"

        normed = keep(f"layers.{layer}.input_layernorm", rms_norm(x, w["input_layernorm"], eps))
        q = keep(f"{attention}.q", split(normed @ w["self_attn.q_proj"].T, heads))
        k = keep(f"{attention}.k", split(normed @ w["self_attn.k_proj"].T, kv_heads))
        v = keep(f"{attention}.v", split(normed @ w["self_attn.v_proj"].T, kv_heads))
        q = keep(f"{attention}.q_rotated", rotate(q, config["rope_theta"]))
        k = keep(f"{attention}.k_rotated", rotate(k, config["rope_theta"]))
        k, v = (np.repeat(shared, heads // kv_heads, axis=0) for shared in (k, v))
        scores = keep(f"{attention}.scores", q @ k.mT / np.sqrt(q.shape[-1]))
        probabilities = keep(f"{attention}.weights", softmax(np.where(visible, scores, -np.inf)))
        mixed = keep(f"{attention}.mixed", probabilities @ v)
        concatenated = mixed.swapaxes(0, 1).reshape(len(ids), -1)
        x = x + keep(f"{attention}.output", concatenated @ w["self_attn.o_proj"].T)

        x = keep(f"layers.{layer}.residual_after_attention", x)
        normed = keep(f"layers.{layer}.post_attention_layernorm", rms_norm(x, w["post_attention_layernorm"], eps))
        gate = keep(f"{feedforward}.gate", normed @ w["mlp.gate_proj"].T)
        up = keep(f"{feedforward}.up", normed @ w["mlp.up_proj"].T)
        activation = keep(f"{feedforward}.activation", gate / (1 + np.exp(-gate)) * up)
        x = x + keep(f"{feedforward}.output", activation @ w["mlp.down_proj"].T)
        x = keep(f"layers.{layer}.residual_after_feedforward", x)
    x = keep("norm", rms_norm(x, weights["model.norm.weight"], eps))
    keep("logits", x @ weights["lm_head.weight"].T)
    return seen


PARTS = [
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip


def split(x, heads):
    """[tokens, heads * width] -> [heads, tokens, width]"""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def main(folder, ids, output):
    config = json.loads(Path(folder, "config.json").read_text())
    seen = forward(load_file(Path(folder, "model.safetensors")), config, [int(token) for token in ids.split(",")])
    save_file(seen, output, metadata={"names": json.dumps(list(seen)), "ids": ids})


if __name__ == "__main__":
    main(*sys.argv[1:])
