"""npllm: the transformer LLM of the chapter "Looking Inside Large Language Models", as plain array functions.

Text flows one way: text -> ids -> vectors -> blocks -> logits -> id -> text. These modules are the ground floor, which
is the chapter, in reading order. Each has one concept and, of these modules, uses only those above it:

    arrays       arrays from any library; the interface of a packed weight
    shapes       the letters in every shape; the names of the chapter's weights
    tap          observing values inside the pass
    errors       one error class per exit code
    config       a model's configuration
    tokenizer    text to ids and back; the chat format
    embedding    ids to vectors
    positions    absolute positions: a vector for each
    linear       multiplication by a weight matrix
    norm         RMSNorm, LayerNorm
    rope         positions as rotations
    masks        which tokens a token sees
    attention    relevance scores, softmax, combining
    flash        the same attention, tile by tile
    feedforward  SwiGLU; the original network
    cache        the keys and values of earlier tokens
    block        attention and feedforward network, each added to its input
    heads        hidden states to logits
    model        the whole forward pass
    sampling     logits to a token
    options      checks of the loop's options
    lm           a model as one object; the public calls
    loop         the autoregressive loop

The wings, which are subpackages: text (where text enters and leaves), families (one file per family of models), storage
(weights in few bits, and files), checkpoint (files to weights), devices (CPU or GPU), compiled (CPU kernels), cuda (GPU
kernels), inspect (looking inside), lab (the server of the lab), apps (built on the loop), corpus (many prompts),
harness (an adapter for lm-evaluation-harness), cli (the commands). shapes, errors, config, tokenizer, options and lm
use text; loop uses text and devices.
"""

import os
import sys

from .version import __version__

# `python -m npllm` puts the current folder first on the module search path: in an untrusted model folder, its numpy.py
# would run instead of NumPy. While Python looks for the module to run, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0] == __name__:
    try:
        folder = os.getcwd()  # noqa: PTH109 - pathlib is one of the modules that it could hold
    except FileNotFoundError:  # it has been deleted: then Python has left it out
        folder = ""
    if sys.path[0] == folder and not sys.flags.safe_path:
        del sys.path[0]
        if __path__ == [f"{folder}{os.sep}{__name__}"]:  # a checkout: the processes that we start find npllm there
            sys.path.append(folder)

TYPE_CHECKING = False  # typing's own takes time to import
if TYPE_CHECKING:
    from typing import Any

    from .apps.calls import generate, steps, stream
    from .apps.fill import fill
    from .apps.generation import Generation
    from .apps.pipeline import pipeline
    from .checkpoint.load import load
    from .corpus.run import batch
    from .inspect.patch import patch
    from .inspect.record import record
    from .inspect.view import look
    from .lm import LM, forward, lm_head, transform
    from .loop import Step

__all__ = [
    "LM",
    "Generation",
    "Step",
    "__version__",
    "batch",
    "fill",
    "forward",
    "generate",
    "lm_head",
    "load",
    "look",
    "patch",
    "pipeline",
    "record",
    "steps",
    "stream",
    "transform",
]
# The modules of the public names. They are imported on first use, so that `from npllm.rope import apply_rope` needs no
# tokenizer and no template engine.
HOMES = {
    "apps.calls": ("generate", "steps", "stream"),
    "apps.fill": ("fill",),
    "apps.generation": ("Generation",),
    "apps.pipeline": ("pipeline",),
    "checkpoint.load": ("load",),
    "corpus.run": ("batch",),
    "inspect.patch": ("patch",),
    "inspect.record": ("record",),
    "inspect.view": ("look",),
    "lm": ("LM", "forward", "lm_head", "transform"),
    "loop": ("Step",),
}


def __getattr__(name: str) -> "Any":
    """The public name, imported from its module."""
    import importlib  # here, because Ctrl-C may come while it is imported

    for home, names in HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for `dir` and tab completion."""
    return sorted({*globals(), *__all__})
