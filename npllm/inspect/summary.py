"""The output of `npllm inspect` as plain data, printed as JSON, or as text by `terminal.report`."""

import math
from collections.abc import Sequence
from typing import Any

from ..cache import kv_cache_bytes
from ..errors import UsageError
from ..lm import LM
from .cost import Cost, costs, total
from .lens import likeliest, shares
from .look import Look, given, lens, norms
from .tokens import token_bytes


def check_choice(lm: LM, ids: Sequence[int], layer: int, head: int, token: int, top_k: int) -> None:
    """Raise UsageError for a layer, head or token that does not exist, before the pass runs."""
    for name, value, count, what in [
        ("layer", layer, lm.config.num_hidden_layers, "layers"),
        ("head", head, lm.config.num_attention_heads, "heads"),
        ("token", token, len(ids), "tokens"),
    ]:
        if not 0 <= value < count:
            raise UsageError(f"--{name}: expected 0 to {count - 1} (there are {count} {what}), got {value}")
    if not 1 <= top_k <= lm.config.vocab_size:
        raise UsageError(f"--top-k: expected 1 to {lm.config.vocab_size}, the size of the vocabulary, got {top_k}")


def summary(seen: Look, layer: int, head: int, token: int, top_k: int) -> dict[str, Any]:
    """The whole output. `layer` and `head` select the attention map; `token` selects the predictions, lens and norms.

    Numbers that are not finite stay NaN or infinity here; `finite` turns them into None for JSON.
    """
    config = seen.lm.config
    probabilities, ranks = given(seen)
    best = likeliest(seen.logits[token], top_k)
    looked, lengths = lens(seen, [token], min(top_k, 3)), norms(seen)
    one, all_tokens = kv_cache_bytes(config, 1), kv_cache_bytes(config, len(seen.ids))
    return {
        "model": {
            "family": config.family,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "context": config.max_position_embeddings,
        },
        "not_finite": seen.not_finite,
        "tokens": [
            named(i, data) | {"probability": float(share) if rank else None, "rank": int(rank) or None}
            for i, data, share, rank in zip(seen.ids, seen.bytes, probabilities, ranks, strict=True)
        ],
        "shapes": {name: list(shape) for name, shape in seen.shapes.items()},
        "token": token,
        "next": alternatives(seen.lm, best.tolist(), shares(seen.logits[token], best).tolist()),
        "lens": [
            {"layer": row - 1 if row else None, "likeliest": alternatives(seen.lm, ids[0].tolist(), of_ids[0].tolist())}
            for row, (ids, of_ids) in enumerate(zip(looked.ids, looked.probabilities, strict=True))
        ],
        "norms": [
            {"layer": None, "attention": None, "feedforward": None, "residual": float(lengths.embedding[token])},
            *(
                {
                    "layer": i,
                    "attention": float(lengths.attention[i, token]),
                    "feedforward": float(lengths.feedforward[i, token]),
                    "residual": float(lengths.residual[i, token]),
                }
                for i in range(config.num_hidden_layers)
            ),
        ],
        "layer": layer,
        "head": head,
        "attention": seen.values[f"layers.{layer}.attention.weights"][head].tolist(),
        "kv_cache": None if config.bidirectional else {"bytes_per_token": one, "bytes": all_tokens},
        "cost": {
            "text": cost_table(costs(config, seen.lm.weights, len(seen.ids), scored=1)),
            "next_token": None
            if config.bidirectional
            else cost_table(costs(config, seen.lm.weights, 1, past=len(seen.ids))),
        },
    }


def named(token: int, data: bytes | None) -> dict[str, Any]:
    """A token: "bytes" in hexadecimal, and "text" if they are whole characters; both None for an id without a piece."""
    try:
        text = None if data is None else data.decode()
    except UnicodeDecodeError:
        text = None
    return {"id": token, "text": text, "bytes": None if data is None else data.hex()}


def alternatives(lm: LM, ids: Sequence[int], probabilities: Sequence[float]) -> list[dict[str, Any]]:
    """Tokens with their probabilities."""
    data = [None] * len(ids) if lm.tokenizer is None else token_bytes(lm.tokenizer, ids)
    return [named(i, d) | {"probability": p} for i, d, p in zip(ids, data, probabilities, strict=True)]


def cost_table(parts: list[Cost]) -> list[dict[str, Any]]:
    """The parts, followed by their total."""
    return [part._asdict() for part in [*parts, total(parts)]]


def finite(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON lacks, and other floats rounded to 6 digits."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
