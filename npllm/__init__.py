"""npllm: the transformer LLM of the chapter "Looking Inside Large Language Models", as plain array functions.

Text flows one way: text -> ids -> vectors -> blocks -> logits -> id -> text. The modules in reading order, one concept
each; a module uses only those above it:

    arrays       arrays of any library; what a stored weight offers
    shapes       what the letters in every shape mean; the names of the chapter's weights
    tap          looking at a value as it passes
    errors       what can go wrong
    config       the numbers that describe a model
    tokenizer    text to ids and back; the chat format
    embedding    ids to vectors
    positions    absolute positions: a vector for each place
    linear       the product with a weight matrix
    norm         RMSNorm, LayerNorm
    rope         positions as rotations
    masks        who may look at whom
    attention    relevance scores, softmax, combining
    flash        the same attention, tile by tile
    feedforward  SwiGLU; the original network
    cache        the keys and values of earlier tokens
    block        attention and feed-forward network, each added to its input
    heads        vectors to logits
    model        the whole pass, straight down
    sampling     logits to a token
    options      what may be asked of the loop
    lm           a model with all that belongs to it; the public calls
    loop         the autoregressive loop

The wings: text (text at its edges), families (one file for each family of models), storage (weights in few bits),
checkpoint (files to weights), devices (which machine), cuda (kernels for a GPU), inspect (looking inside), apps (what
is built on the loop), cli (the commands). tokenizer uses text; loop uses text and devices.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .apps.pipeline import pipeline
    from .checkpoint.load import load
    from .inspect.patch import patch
    from .inspect.record import record
    from .lm import LM, forward, lm_head, transform
    from .loop import Generation, Step, generate, steps, stream

__all__ = [
    "LM",
    "Generation",
    "Step",
    "__version__",
    "forward",
    "generate",
    "lm_head",
    "load",
    "patch",
    "pipeline",
    "record",
    "steps",
    "stream",
    "transform",
]
# Where each public name is defined. It is imported when it is first used, so that `from npllm.rope import apply_rope`
# needs no tokenizer and no template engine.
HOMES = {
    "apps.pipeline": ("pipeline",),
    "checkpoint.load": ("load",),
    "inspect.patch": ("patch",),
    "inspect.record": ("record",),
    "lm": ("LM", "forward", "lm_head", "transform"),
    "loop": ("Generation", "Step", "generate", "steps", "stream"),
}


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it."""
    for home, names in HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for `dir` and for completion."""
    return sorted({*globals(), *__all__})
