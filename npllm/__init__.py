"""npllm: the transformer LLM of the chapter "Looking Inside Large Language Models", as plain array functions.

Text flows one way: text -> ids -> vectors -> blocks -> logits -> id -> text. The modules in reading order, one concept
each; a module uses only those above it (tokenizer and generate also a wing: text, backend):

    shapes       what the letters in every shape mean; the names of all weights
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
    generate     the loop

Beside them: text (text at its edges), backend (devices, packed weights), checkpoint (files to weights), inspect
(looking inside), apps (what is built on the loop), cli (the commands).
"""

import os

# BLAS's threads spin for a while after each product, here for 2**20 cycles and not 2**26: the threads that share the
# packed weights need the same cores. It counts only if NumPy is not imported yet.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

from .apps.pipeline import pipeline
from .checkpoint.load import load
from .generate import Generation, Step, generate, steps, stream
from .heads import lm_head
from .inspect.patch import patch
from .inspect.record import record
from .model import LM, forward, transform
from .version import __version__

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
