"""The values of a pass by their names: what each is, in which shape, where the source computes it, and its figure.

Source: the chapter's figures, by their numbers.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..attention import attention_weights, combine, queries_keys_values, relevance_scores
from ..block import block, gpt2_block, self_attention
from ..embedding import embed
from ..feedforward import feedforward, gelu, plain_feedforward, swiglu
from ..heads import lm_head
from ..lm import LM
from ..model import gpt2_transform
from ..norm import layer_norm, rms_norm
from ..rope import apply_rope

PACKAGE = Path(__file__).parent.parent


class Part(NamedTuple):
    """What a tapped value is."""

    words: str
    letters: str  # its shape, in the letters of shapes.py
    function: Callable[..., Any]  # computes it
    line: str  # that line of the function; "" for its first
    figures: str  # of the chapter


# By the name of the value in a block, or of one outside of the blocks.
PARTS = {
    "embedding": Part("each id's row of the embeddings matrix", "T D", embed, "", "3-5"),
    "input_layernorm": Part("each vector brought to one length", "T D", rms_norm, "", "3-30"),
    "attention.q": Part("queries: what each token looks for", "N T H", queries_keys_values, "    q = ", "3-18, 3-19"),
    "attention.k": Part("keys: what each token offers", "K T H", queries_keys_values, "    k = ", "3-18, 3-19"),
    "attention.v": Part("values: what each token says", "K T H", queries_keys_values, "    v = ", "3-18, 3-19"),
    "attention.q_rotated": Part("RoPE: turned by its position", "N T H", apply_rope, "", "3-32, 3-33"),
    "attention.k_rotated": Part("RoPE: turned by its position", "K T H", apply_rope, "", "3-32, 3-33"),
    "attention.scores": Part("relevance: each query with each key", "N T S", relevance_scores, "", "3-20"),
    "attention.weights": Part("softmax: shares that sum to 1", "N T S", attention_weights, "", "3-20"),
    "attention.mixed": Part("the values, each times its weight", "N T H", combine, "", "3-21"),
    "attention.output": Part("the heads together, back to D", "T D", self_attention, 'tap("output"', "3-17"),
    "residual_after_attention": Part(
        "added to the residual stream", "T D", block, 'tap("residual_after_attention"', "3-30"
    ),
    "post_attention_layernorm": Part("each vector brought to one length", "T D", rms_norm, "", "3-30"),
    "feedforward.gate": Part("how much of each number passes", "T F", feedforward, 'tap("gate"', "3-13"),
    "feedforward.up": Part("out to F dimensions", "T F", feedforward, 'tap("up"', "3-13"),
    "feedforward.activation": Part("SwiGLU: silu(gate) · up", "T F", swiglu, "", "3-30"),
    "feedforward.output": Part("back to D", "T D", feedforward, 'tap("output"', "3-13"),
    "residual_after_feedforward": Part(
        "added to the residual stream", "T D", block, 'tap("residual_after_feedforward"', "3-12, 3-30"
    ),
    "norm": Part("each vector brought to one length", "T D", rms_norm, "", "3-30"),
    "logits": Part("a score for each token of the vocabulary", "T V", lm_head, "", "3-6"),
}
GPT2_PARTS = PARTS | {
    "position_embedding": Part("each position's row of its table", "T D", gpt2_transform, "position_embedding", "3-32"),
    "residual_after_embedding": Part("their sum", "T D", gpt2_transform, 'tap("residual_after_embedding"', "3-29"),
    "input_layernorm": PARTS["input_layernorm"]._replace(function=layer_norm, figures="3-29"),
    "residual_after_attention": PARTS["residual_after_attention"]._replace(function=gpt2_block, figures="3-29"),
    "post_attention_layernorm": PARTS["post_attention_layernorm"]._replace(function=layer_norm, figures="3-29"),
    "feedforward.up": PARTS["feedforward.up"]._replace(function=plain_feedforward),
    "feedforward.activation": Part("GELU", "T F", gelu, "", "3-29"),
    "feedforward.output": PARTS["feedforward.output"]._replace(function=plain_feedforward),
    "residual_after_feedforward": PARTS["residual_after_feedforward"]._replace(function=gpt2_block, figures="3-29"),
    "norm": PARTS["norm"]._replace(function=layer_norm, figures="3-29"),
}


def part(lm: LM, name: str) -> Part:
    """What the value "layers.7.attention.q", or "logits", is in this model."""
    parts = PARTS if lm.weights.norm_bias is None else GPT2_PARTS
    return parts[name.split(".", 2)[2] if name.startswith("layers.") else name]


def source(function: Callable[..., Any], line: str = "") -> str:
    """Where a function stands, or the first line in it that holds this text: "npllm/attention.py:62"."""
    lines, first = inspect.getsourcelines(function)
    offset = next(i for i, text in enumerate(lines) if line in text)
    path = Path(inspect.getfile(inspect.unwrap(function))).relative_to(PACKAGE.parent)
    return f"{path.as_posix()}:{first + offset}"
