"""Everything that the page shows of a `Look`, as data: numbers, text, and arrays in base64.

Attention weights are stored in 8 bits as square roots, which keeps small ones distinct (from 0.00002). The page squares
them and divides by the sum of their row: the weights shown sum to 1 and are off by less than 0.005.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..arrays import Float
from ..attention import attention_weights, relevance_scores
from ..cache import append, kv_cache_bytes
from ..families import family_of
from ..lm import LM
from ..loop import steps
from ..sampling import choose
from ..tokenizer import Tokenizer
from ..version import __version__
from .cost import costs, total
from .lens import likeliest, logit_lens, shares
from .look import Look, given, lens, norms
from .parts import PACKAGE, part, source, whole
from .summary import cost_table
from .tokens import token_bytes, visible

SECTIONS = ("tokens", "flow", "attention", "lens", "norms", "funnel", "cache", "cost", "source")  # of the page
ALTERNATIVES = 5  # for each position and layer
LABELLED = 4096  # of the likeliest next tokens, in a page that has only some sections
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


def contents(
    seen: Look,
    prompt_length: int,
    name: str,
    only: Sequence[str] = SECTIONS,
    heads: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What these sections of the page show, as data.

    Parameters
    ----------
    only : names from `SECTIONS`; what no section needs is neither computed nor there
    heads : the (layer, head) pairs whose attention maps are there; by default all
    """
    result = about(seen, prompt_length, name, only)
    if "tokens" in only:
        probabilities, ranks = given(seen)
        best = likeliest(seen.logits, ALTERNATIVES)
        expected = {"k": best.shape[-1], "ids": packed(best, "<u4"), "shares": packed(shares(seen.logits, best), "<f4")}
        result |= {"given": packed(probabilities, "<f4"), "ranks": ranks.tolist(), "expected": expected}
    if "flow" in only:
        result |= {"letters": LETTERS, "flow": flow(seen)}
    if "attention" in only:
        result |= attention_data(seen, heads)
    if "lens" in only:
        result["lens"] = lens_data(seen, range(len(seen.ids)))
    if "norms" in only:
        result["norms"] = norms_data(seen)
    if "funnel" in only:
        result["logits"] = packed(seen.logits[-1], "<f4")
    if "cache" in only:
        result["cache"] = {"steps": cache_steps(seen, prompt_length)}
    if "cost" in only:
        config, weights, count = seen.lm.config, seen.lm.weights, len(seen.ids)
        text, next_token = costs(config, weights, count, scored=1), costs(config, weights, 1, past=count)
        result["cost"] = {"text": cost_table(text), "next_token": cost_table(next_token)}
    if "source" in only:
        places = [value["source"] for value in result.get("flow", [])]
        places += [one for what in result["sections"].values() for one in what["sources"]]
        result["listings"] = listings(one["path"] for one in places)
    return result


def about(seen: Look, prompt_length: int, name: str, only: Sequence[str]) -> dict[str, Any]:
    """What every page needs: the text, its tokens, the model, and the labels of the tokens that are shown."""
    lm, config = seen.lm, seen.lm.config
    text = "".join(f"#{i} " for i in seen.ids) if lm.tokenizer is None else lm.tokenizer.decode(seen.ids)
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
        "sections": {section: value for section, value in sections(lm).items() if section in only},
        "not_finite": seen.not_finite,
        "ids": seen.ids,
        "bytes": [None if data is None else data.hex(" ") for data in seen.bytes],
        "prompt_length": prompt_length,
    }


def labels(lm: LM, ids: Iterable[int]) -> list[str | None]:
    """These tokens as the page shows them; none without a tokenizer."""
    return [] if lm.tokenizer is None else [token_label(data) for data in token_bytes(lm.tokenizer, list(ids))]


def needed_labels(seen: Look, shown: dict[str, Any]) -> dict[int, str | None]:
    """The tokens that some sections show, as the page shows them; it writes any other token as its id."""
    ids = {*seen.ids}
    if "logits" in shown:
        ids |= {*likeliest(seen.logits[-1], min(LABELLED, seen.lm.config.vocab_size)).tolist()}
    for key in ("expected", "lens"):
        if key in shown:
            ids |= {*np.frombuffer(base64.b64decode(shown[key]["ids"]), dtype="<u4").tolist()}
    return dict(zip(sorted(ids), labels(seen.lm, sorted(ids)), strict=False))


def attention_data(seen: Look, heads: Sequence[tuple[int, int]] | None) -> dict[str, Any]:
    """The attention maps of these heads, or of all."""
    config = seen.lm.config
    if heads is None:
        maps = [attention_bytes(seen.values[f"layers.{i}.attention.weights"]) for i in range(config.num_hidden_layers)]
        return {"attention": packed(np.stack(maps), "u1")}
    chosen = np.stack([seen.values[f"layers.{layer}.attention.weights"][head] for layer, head in heads])
    return {"heads": [list(pair) for pair in heads], "attention": packed(attention_bytes(chosen), "u1")}


def lens_data(seen: Look, positions: Sequence[int]) -> dict[str, Any]:
    """The logit lens at these positions: a row for the embedding, then one for each block."""
    looked = lens(seen, positions, ALTERNATIVES)
    return {
        "positions": list(positions),
        "k": looked.ids.shape[-1],
        "ids": packed(looked.ids, "<u4"),
        "shares": packed(looked.probabilities, "<f4"),
        "next": packed(looked.next, "<f4"),
    }


def norms_data(seen: Look) -> dict[str, str]:
    """The norms of the residual stream, and of what each layer adds; a row for the embedding, one for each block."""
    lengths, nothing = norms(seen), np.full((1, len(seen.ids)), np.nan, dtype=np.float32)
    return {
        "residual": packed(np.concatenate([lengths.embedding[None], lengths.residual]), "<f4"),
        "attention": packed(np.concatenate([nothing, lengths.attention]), "<f4"),
        "feedforward": packed(np.concatenate([nothing, lengths.feedforward]), "<f4"),
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
