"""Which models the kernels compute, and why they stay out of the others.

The kernels compute one pass, `model.transform`, with the weights listed here. They would silently ignore a weight that
is not listed, such as a norm of the queries. So passes and heads are listed by identity and weights by field name;
every other model keeps the plain functions.
"""

from functools import partial
from typing import Any

from .. import heads, model
from ..config import Config
from ..lm import LM
from ..shapes import Weights
from .kernels import ATTEND_THREADS, CHUNK

PASSES = (model.transform,)
HEADS = (heads.lm_head,)
MODEL_FIELDS = ("embed_tokens", "layers", "norm", "lm_head", "score", "score_bias")  # all others must be None
BLOCK_FIELDS = (
    "input_layernorm",
    "qkv_proj",
    "o_proj",
    "post_attention_layernorm",
    "gate_up_proj",
    "down_proj",
    "qkv_proj_bias",
    "o_proj_bias",
    "gate_up_proj_bias",
    "down_proj_bias",
)
SHARED_BYTES = 48 * 1024  # shared memory that a block gets without opting in to more


def why_not(lm: LM) -> str | None:
    """The reason why the kernels do not compute this model, in one line; None if they do."""
    if lm.transform not in PASSES:
        return f"the kernels do not know the pass {name_of(lm.transform)}"
    if lm.lm_head not in HEADS:
        return f"the kernels do not know the head {name_of(lm.lm_head)}"
    return why_not_weights(lm.weights) or why_not_sizes(lm.config)


def why_not_weights(weights: Weights) -> str | None:
    """The reason why the kernels do not compute a model with these weights; None if they do."""
    for field, value in zip(weights._fields, weights, strict=True):
        if field not in MODEL_FIELDS and value is not None:
            return f"the kernels do not know the weight {field}"
    reasons = [why_not_block(layer) for layer in weights.layers]
    return next((reason for reason in reasons if reason), None)


def why_not_block(weights: Any) -> str | None:
    """The reason why the kernels do not compute a block with these weights; None if they do."""
    fields = getattr(weights, "_fields", ())
    if fields == BLOCK_FIELDS:
        return None
    unknown = [field for field in fields if field not in BLOCK_FIELDS]
    if unknown:
        return f"the kernels do not know the weights {', '.join(unknown)} of a block"
    return f"the kernels expect the weights {', '.join(BLOCK_FIELDS)} in a block, got {type(weights).__name__}"


def why_not_sizes(config: Config) -> str | None:
    """The reason why the kernels do not compute a model of these sizes; None if they do.

    They load four elements at a time, use a thread for each dimension of a head, and hold a group of query heads in
    shared memory.
    """
    width, sharing = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    if config.hidden_size % 4 != 0 or width % 4 != 0:
        return f"the kernels need hidden_size and head_dim in multiples of 4, got {config.hidden_size} and {width}"
    if width > ATTEND_THREADS:
        return f"the kernels need head_dim up to {ATTEND_THREADS}, got {width}"
    if 4 * sharing * (width + CHUNK + ATTEND_THREADS // width * width) > SHARED_BYTES:
        return f"the kernels have too little shared memory for {sharing} query heads of {width} per key/value head"
    return None


def name_of(function: Any) -> str:
    """The name of a function, with its module; of one with some arguments fixed, the names of these, too."""
    if isinstance(function, partial):
        return f"{name_of(function.func)} with another {', '.join(function.keywords)}"
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
