"""The page of `npllm inspect --html`: one self-contained file that makes no requests.

It shows one `Look`, embedded as JSON with arrays in base64. The page's script renders it; the content security policy
allows that script and style, by their hashes, and nothing else.

Attention weights are stored in 8 bits as square roots, which keeps small ones distinct (from 0.00002). The page squares
them and divides by the sum of their row: the weights shown sum to 1 and are off by less than 0.005.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float
from ..attention import attention_weights, relevance_scores
from ..cache import append, kv_cache_bytes
from ..errors import UsageError
from ..families import family_of
from ..lm import LM
from ..loop import steps
from ..sampling import choose
from ..storage.files import write_file
from ..tokenizer import Tokenizer
from ..version import __version__
from .cost import costs, total
from .lens import logit_lens
from .look import Look, given, lens, norms
from .parts import PACKAGE, part, source, whole
from .summary import cost_table
from .tokens import token_bytes, visible

ALTERNATIVES = 5  # for each position and layer
LARGEST = 24_000_000  # bytes of attention weights: browsers handle pages of about 40 MB
STEPS = 8  # the least number of steps of the KV cache to show
LETTERS = {
    "T": "tokens of this pass",
    "S": "tokens attended to",
    "D": "model width",
    "N": "heads",
    "K": "key/value heads",
    "H": "head width",
    "F": "feedforward width",
    "V": "vocabulary",
    "E": "experts",
    "A": "active experts of a token",
}


def check_direction(lm: LM) -> None:
    """Refuse a model whose tokens see later ones, for which there is no page."""
    if lm.config.bidirectional:
        raise UsageError("--html: expected a model whose tokens see only earlier ones; leave it out, or take --json")


def check_page(lm: LM, ids: Sequence[int]) -> None:
    """Refuse a text that is too long for a page, before computing anything."""
    maps = lm.config.num_hidden_layers * lm.config.num_attention_heads
    most = math.isqrt(2 * LARGEST // maps)
    if len(ids) > most:
        raise UsageError(
            f"--html: expected at most {most} tokens, because the page holds {maps} attention maps of tokens x tokens,"
            f" got {len(ids)}; the text output takes any length"
        )


def page(seen: Look, prompt_length: int, name: str) -> str:
    """The page as HTML.

    Parameters
    ----------
    prompt_length : the number of prompt tokens; the model generated the rest
    name : the name of the model
    """
    template, style, script = (read(f"page.{kind}") for kind in ("html", "css", "js"))
    parts = {
        "style": style,
        "script": script,
        "style_hash": content_hash(style),
        "script_hash": content_hash(script),
        "data": embedded(contents(seen, prompt_length, name)),
    }
    # In one pass: the data may contain {{style}}.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def write_page(path: str | Path, text: str) -> None:
    """Write the page to a file, atomically; an existing file is replaced. See `write_file`."""
    write_file(path, [text.encode()])


def read(name: str) -> str:
    """One of the page's files, from the folder of this module."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """The SHA-256 by which a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON that is safe in an HTML script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def packed(array: np.ndarray, dtype: str) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def attention_bytes(weights: Float[np.ndarray, "N T T"]) -> np.ndarray:
    """Attention weights in 8 bits, [N, T (T + 1) / 2]: the visible part of each row. A row with NaN becomes zeros."""
    rows, keys = np.tril_indices(weights.shape[-1])
    known = np.isfinite(weights).all(axis=-1, keepdims=True)
    roots = np.sqrt(np.where(known, weights, 0.0))[:, rows, keys]
    return np.rint(255 * roots).astype(np.uint8)


def token_label(data: bytes | None) -> str | None:
    """A token as the page shows it: spaces visible, unprintable characters escaped."""
    return None if data is None else visible(data).replace(" ", "␣")


def contents(seen: Look, prompt_length: int, name: str) -> dict[str, Any]:
    """Everything the page shows, as data."""
    lm, config, count = seen.lm, seen.lm.config, len(seen.ids)
    probabilities, ranks = given(seen)
    looked, lengths = lens(seen, range(count), ALTERNATIVES), norms(seen)
    vocabulary = range(config.vocab_size)
    labels = [] if lm.tokenizer is None else [token_label(data) for data in token_bytes(lm.tokenizer, vocabulary)]
    text = "".join(f"#{i} " for i in seen.ids) if lm.tokenizer is None else lm.tokenizer.decode(seen.ids)
    maps = [attention_bytes(seen.values[f"layers.{i}.attention.weights"]) for i in range(config.num_hidden_layers)]
    nothing = np.full((1, count), np.nan, dtype=np.float32)
    shown, values = sections(lm), flow(seen)
    places = [value["source"] for value in values] + [one for what in shown.values() for one in what["sources"]]
    return {
        "version": __version__,
        "text": "\n".join(visible(line) for line in text.split("\n")),
        "model": {
            "name": visible(name),
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "context": config.max_position_embeddings,
        },
        "letters": LETTERS,
        "sections": shown,
        "listings": listings(one["path"] for one in places),
        "not_finite": seen.not_finite,
        "ids": seen.ids,
        "bytes": [None if data is None else data.hex(" ") for data in seen.bytes],
        "prompt_length": prompt_length,
        "vocabulary": labels,
        "given": packed(probabilities, "<f4"),
        "ranks": ranks.tolist(),
        "flow": values,
        "attention": packed(np.stack(maps), "u1"),
        "lens": {
            "k": looked.ids.shape[-1],
            "ids": packed(looked.ids, "<u4"),
            "shares": packed(looked.probabilities, "<f4"),
            "next": packed(looked.next, "<f4"),
        },
        "norms": {
            "residual": packed(np.concatenate([lengths.embedding[None], lengths.residual]), "<f4"),
            "attention": packed(np.concatenate([nothing, lengths.attention]), "<f4"),
            "feedforward": packed(np.concatenate([nothing, lengths.feedforward]), "<f4"),
        },
        "logits": packed(seen.logits[-1], "<f4"),
        "cache": {"steps": cache_steps(seen, prompt_length)},
        "cost": {
            "text": cost_table(costs(config, lm.weights, count, scored=1)),
            "next_token": cost_table(costs(config, lm.weights, 1, past=count)),
        },
    }


def sections(lm: LM) -> dict[str, Any]:
    """For each section of the page, its figures in the chapter and the source that computes it."""
    family = family_of(lm.config)
    table: dict[str, tuple[str, Sequence[Callable[..., Any]]]] = {
        "tokens": ("3-4 to 3-6", [Tokenizer.encode, family.lm_head]),
        "flow": ("3-8, 3-9, 3-11, 3-12, 3-30", [family.transform, family.block]),
        "attention": ("3-14 to 3-21", [relevance_scores, attention_weights]),
        "lens": ("3-6, 3-11", [logit_lens]),
        "norms": ("3-12, 3-30", [family.block]),
        "funnel": ("3-6, 3-7", [choose]),
        "cache": ("3-10", [append, steps]),
        "cost": ("3-10, 3-25", [costs]),
    }
    return {
        name: {"figures": figures, "sources": [place(function) for function in functions]}
        for name, (figures, functions) in table.items()
    }


def place(function: Callable[..., Any], line: str = "", name: bool = True) -> dict[str, Any]:
    """A line of the source, to link to."""
    path, number = source(function, line).split(":")
    return {"path": path, "line": int(number), "name": whole(function).__name__ if name else ""}


def listings(paths: Iterable[str]) -> dict[str, str]:
    """The source files that the page links to, in full: the page loads nothing, so they are embedded."""
    return {path: (PACKAGE.parent / path).read_text(encoding="utf-8") for path in sorted(set(paths))}


def flow(seen: Look) -> list[dict[str, Any]]:
    """The values of the pass in order; the values of the first block stand for all blocks."""
    values, group = [], "before"
    for name, shape in seen.shapes.items():
        if name.startswith("layers.") and not name.startswith("layers.0."):
            continue
        short = name.removeprefix("layers.0.")
        if group == "before" and name != short:
            group = "attention"
        if group == "feedforward" and name == short:
            group = "after"
        what = part(seen.lm.config, name)
        values.append(
            {
                "name": short,
                "group": group,
                "words": what.description,
                "letters": what.shape,
                "shape": list(shape),
                "source": place(what.function, what.line, name=False),
                "figures": what.figures,
            }
        )
        if short == "residual_after_attention":
            group = "feedforward"
    return values


def cache_steps(seen: Look, prompt_length: int) -> list[dict[str, Any]]:
    """What each step of generation computes, starting with the prompt, with and without the cache.

    The first steps are those that generated the tokens shown, if any.
    """
    config, weights = seen.lm.config, seen.lm.weights
    made = seen.ids[prompt_length:]
    count = min(max(STEPS, len(made)), config.max_position_embeddings - prompt_length)

    def work(new: int, past: int) -> dict[str, int]:
        _, flops, weight_bytes, cache_bytes = total(costs(config, weights, new, past, scored=1))
        return {"streams": new, "flops": flops, "bytes": weight_bytes + cache_bytes}

    return [
        {
            "tokens": prompt_length + step,
            "made": made[step] if step < len(made) else None,
            "with": work(1, prompt_length + step - 1) if step else work(prompt_length, 0),
            "without": work(prompt_length + step, 0),
            "cache_bytes": kv_cache_bytes(config, prompt_length + step),
        }
        for step in range(max(count, 1))
    ]
