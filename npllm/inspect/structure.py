"""The structure of a model: its layers as lines, as printing a PyTorch model shows them.

`npllm show` and `repr(lm)` print it.

Source: "The Components of the Forward Pass", where the chapter prints its model.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ..arrays import Array, Weight
from ..cache import kv_cache_bytes
from ..compiled.cpu import path_of
from ..devices.memory import format_bytes
from ..families import family_of
from ..families.work import arrays_in, named
from ..lm import LM

LINES = 40  # of repr(lm)
Row = tuple[str, int, str, int]  # what a line says; the parameters, dtype and bytes of its arrays


def structure(lm: LM) -> list[str]:
    """The model's layers in order of execution, as lines, each with its parameters, their dtype and size in memory.

    Identical blocks are shown once.
    """
    config, weights = lm.config, lm.weights
    family = family_of(config)
    blocks = [block_rows(block, family.structure(config, layer)) for layer, block in enumerate(weights.layers)]
    before, after = lines_outside(weights, family.norm_text(config))
    rows = [row("(model):"), *block_rows(weights, before), row("  (layers):")]
    first = 0
    for rows_of_block, group in groupby(blocks):
        equal = len(list(group))
        which = f"({first})" if equal == 1 else f"({first}-{first + equal - 1})"
        rows.append(row(f"    {which}: {equal} x Block"))
        rows += [(f"      {text}", count, dtype, size) for text, count, dtype, size in rows_of_block]
        first += equal
    rows += [*block_rows(weights, after), head_row(weights)]
    width, wide = max(len(text) for text, *_ in rows), max(len(dtype) for _, _, dtype, _ in rows)
    lines = [
        f"{text:{width}}  {count:13,}  {dtype:{wide}} {format_bytes(size):>8}" if count else text
        for text, count, dtype, size in rows
    ]

    _, count, dtype, size = row("", *{id(array): array for array in arrays_in(weights)}.values())
    path, context, per_token = path_of(lm), config.max_position_embeddings, kv_cache_bytes(config, 1)
    return [
        *lines,
        "",
        f"{config.family}: {count:,} parameters, {format_bytes(size)} as {dtype}",
        *([f"computed by: {path}"] if path else []),
        f"context: {context:,} tokens",
        "KV cache: none, every token sees all others"
        if config.bidirectional
        else f"KV cache: {per_token:,} bytes per token, {format_bytes(per_token * context)} for the whole context",
        *([f"labels: {', '.join(config.id2label)}"] if config.id2label else []),
    ]


def described(lm: LM) -> str:
    """The structure as one text of at most `LINES` lines: of a model with many kinds of blocks, the first and last."""
    lines = structure(lm)
    if len(lines) > LINES:
        left_out = len(lines) - LINES + 1
        lines = [*lines[:22], f"      ... {left_out} more lines: npllm show", *lines[22 + left_out :]]
    return "\n".join(lines)


def lines_outside(weights: Any, norm: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The lines before the blocks and after them, except the head's: a text and its weight."""
    names = [name for name in weights._fields if getattr(weights, name) is not None and not name.endswith("_bias")]
    names = [name for name in names if name not in ("lm_head", "score")]

    def line(name: str) -> tuple[str, str]:
        shape = getattr(weights, name).shape
        table = f"Embedding({shape[0]}, {shape[-1]})" if name.startswith("embed_") else "Linear"
        return f"  ({name}): {norm if len(shape) == 1 else table}", name

    where = names.index("layers")
    before = [name for name in names if name.startswith("embed_") or name in names[:where]]
    return [line(name) for name in before], [line(name) for name in names[where + 1 :] if name not in before]


def head_row(weights: Any) -> Row:
    """The row of the head."""
    if weights.lm_head is None:
        return row(f"(score): {linear(weights.score, weights.score_bias)}", weights.score, weights.score_bias)
    bias = getattr(weights, "lm_head_bias", None)
    head = f"(lm_head): {linear(weights.lm_head, bias)}"
    if weights.lm_head is weights.embed_tokens:
        return row(f"{head}, tied: it is embed_tokens", bias)
    return row(head, weights.lm_head, bias)


def block_rows(weights: Any, structure: Sequence[tuple[str, str]]) -> list[Row]:
    """The rows of one block; identical blocks have identical rows.

    structure : pairs of a text and the name of its weight ("" for none); "Linear" is completed with the matrix's shape
    """
    rows = []
    for text, name in structure:
        matrices, biases = named(weights, name), named(weights, f"{name}_bias")  # several, if the experts have them
        completed = text.endswith(": Linear")
        line = f"{text.removesuffix('Linear')}{linear(matrices[0], *biases[:1])}" if completed else text
        rows.append(row(line, *matrices, *biases))
    return rows


def linear(weight: Weight, bias: Array | None = None) -> str:
    """A linear layer as PyTorch prints it; the matrix is [out, in]."""
    features_out, features_in = weight.shape
    return f"Linear(in_features={features_in}, out_features={features_out}, bias={bias is not None})"


def row(text: str, *arrays: Array | None) -> Row:
    """A line of the structure: its text, and the parameters, dtypes and bytes of its arrays."""
    given = [array for array in arrays if array is not None]
    dtypes = ", ".join(sorted({str(array.dtype) for array in given}))
    return text, sum(math.prod(array.shape) for array in given), dtypes, sum(array.nbytes for array in given)
