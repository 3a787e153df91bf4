"""The output of `npllm inspect` as plain data, printed as JSON, or as text by `terminal.report`."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..cache import kv_cache_bytes
from ..errors import UsageError
from ..lm import LM
from ..text.arguments import shown
from ..text.similar import hint
from .cost import Cost, costs, total
from .lens import likeliest, shares
from .look import Look, given, lens, norms
from .tokens import token_bytes

# The sections of the text, and their keys in the JSON, which always has "model", "not_finite" and "token".
SECTIONS = {
    "tokens": ["tokens"],
    "shapes": ["shapes"],
    "next": ["next"],
    "lens": ["lens"],
    "attention": ["layer", "head", "attention", "maps"],
    "norms": ["norms"],
    "cache": ["kv_cache"],
    "cost": ["cost"],
    "heads": ["heads"],
    "attribution": ["attribution"],
    "patching": ["patching"],
}
DEFAULT = tuple(name for name in SECTIONS if name not in ("heads", "attribution", "patching"))


def sections_of(text: str | None) -> tuple[str, ...]:
    """The sections in a text such as "tokens,lens", in the order of the report; DEFAULT for None.

    Raises UsageError for an unknown one.
    """
    if text is None:
        return DEFAULT
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in SECTIONS:
            raise UsageError(
                f"--only: expected sections of {', '.join(SECTIONS)}, got {shown(name)}{hint(name, SECTIONS)}"
            )
    return tuple(name for name in SECTIONS if name in asked)


def heads_of(text: str, layer: int | None) -> list[tuple[int, int]]:
    """The heads in a text such as "3", which is of `layer` (0 for None), or "5.3,7.1": (layer, head) each.

    >>> heads_of("3", 5), heads_of("5.3,7.1", None)
    ([(5, 3)], [(5, 3), (7, 1)])
    """
    heads = []
    for one in text.split(","):
        found = re.fullmatch(r"(?:(\d{1,9})\.)?(-?\d{1,9})", one.strip(), re.ASCII)
        if found is None or (found[1] and layer is not None):
            remedy = "" if found is None else " with --layer"
            raise UsageError(
                f"--head: expected N, or without --layer L.N, or several as 5.3,7.1, got {shown(one)}{remedy}"
            )
        heads.append((int(found[1] or layer or 0), int(found[2])))
    return list(dict.fromkeys(heads))


def check_choice(lm: LM, ids: Sequence[int], heads: Sequence[tuple[int, int]], token: int, top_k: int) -> None:
    """Raise UsageError for a layer, head or token that does not exist, before the pass runs."""
    config = lm.config
    choices = [("layer", layer, config.num_hidden_layers, "layers") for layer, _ in heads]
    choices += [("head", head, config.num_attention_heads, "heads") for _, head in heads]
    for name, value, count, what in [*choices, ("token", token, len(ids), "tokens")]:
        if not 0 <= value < count:
            raise UsageError(f"--{name}: expected 0 to {count - 1} (there are {count} {what}), got {value}")
    if not 1 <= top_k <= config.vocab_size:
        raise UsageError(f"--top-k: expected 1 to {config.vocab_size}, the size of the vocabulary, got {top_k}")


def summary(
    seen: Look, heads: Sequence[tuple[int, int]], token: int, top_k: int, sections: Sequence[str] = DEFAULT
) -> dict[str, Any]:
    """These sections as data, but for the last three, which where.py has. The shapes are always there.

    heads : (layer, head) of each attention map
    token : the position whose predictions, lens and norms are shown

    Numbers that are not finite stay NaN or infinity here; `finite` turns them into None for JSON.
    """
    config = seen.lm.config
    probabilities, ranks = given(seen)
    one, all_tokens = kv_cache_bytes(config, 1), kv_cache_bytes(config, len(seen.ids))
    found: dict[str, Any] = {
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
    }
    if "next" in sections:
        best = likeliest(seen.logits[token], top_k)
        found["next"] = alternatives(seen.lm, best.tolist(), shares(seen.logits[token], best).tolist())
    if "lens" in sections:
        found["lens"] = lens_rows(seen, token, min(top_k, 3))
    if "norms" in sections:
        found["norms"] = norm_rows(seen, token)
    if "attention" in sections:
        maps = [
            {"layer": layer, "head": head, "attention": seen.values[f"layers.{layer}.attention.weights"][head].tolist()}
            for layer, head in heads
        ]
        found |= maps[0] if len(maps) == 1 else {"maps": maps}
    if "cache" in sections:
        found["kv_cache"] = None if config.bidirectional else {"bytes_per_token": one, "bytes": all_tokens}
    if "cost" in sections:
        later = None if config.bidirectional else costs(config, seen.lm.weights, 1, past=len(seen.ids))
        found["cost"] = {
            "text": cost_table(costs(config, seen.lm.weights, len(seen.ids), scored=1)),
            "next_token": None if later is None else cost_table(later),
        }
    return found


def lens_rows(seen: Look, token: int, k: int) -> list[dict[str, Any]]:
    """The likeliest tokens at one position before the first block (layer None) and after each."""
    looked = lens(seen, [token], k)
    return [
        {"layer": row - 1 if row else None, "likeliest": alternatives(seen.lm, ids[0].tolist(), of_ids[0].tolist())}
        for row, (ids, of_ids) in enumerate(zip(looked.ids, looked.probabilities, strict=True))
    ]


def norm_rows(seen: Look, token: int) -> list[dict[str, Any]]:
    """The lengths of the vectors at one position before the first block (layer None) and in each."""
    lengths = norms(seen)
    first = {"layer": None, "attention": None, "feedforward": None, "residual": float(lengths.embedding[token])}
    return [
        first,
        *(
            {
                "layer": i,
                "attention": float(lengths.attention[i, token]),
                "feedforward": float(lengths.feedforward[i, token]),
                "residual": float(lengths.residual[i, token]),
            }
            for i in range(seen.lm.config.num_hidden_layers)
        ),
    ]


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
