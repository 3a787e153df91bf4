"""The record that describes a family; each family's file ends with one.

A family is functions and tables. The first line of its file says after the colon what is special about it; `npllm
models` prints that. Code outside families/ never checks which family a model belongs to: the record has
the forward pass, the names of the weights, the descriptions of the tapped values. `names`, `shapes` and the fields of
`block_weights` use the same names; "experts.down_proj" is a weight that every expert has (families/experts.py). A
family with config keys of its own subclasses `Config`. Kernels run only for the chapter's pass with the chapter's
weights (cuda/fit.py). CONTRIBUTING.md adds a family step by step.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from .. import heads
from ..arrays import Array
from ..config import Config
from ..shapes import Weights
from .keys import Keys
from .metadata import Metadata

# A weight's shape: ([rows of its first tensor, of its second, ...], columns), for files that keep its parts in separate
# tensors; columns is None for a vector.
Rows = tuple[Sequence[int], int | None]


class Tapped(NamedTuple):
    """A tapped value: its description, and the source line that computes it."""

    description: str
    shape: str  # in the letters of shapes.py
    function: Callable[..., Any]  # computes it
    line: str  # part of the text of that line in the function; "" for its first line
    figures: str  # the chapter's


class Work(NamedTuple):
    """One part of a block, and its cost in one layer."""

    part: str
    flops: int
    weights: Sequence[str] = ()  # fields of the block's weights that it reads; "experts.down_proj": one of an expert
    experts: int | None = None  # the number of experts whose weights it reads
    cached: bool = False  # whether it reads the cached keys, or the cached values
    rows: Sequence[str] = ()  # outside the blocks: tables of which it reads a row for each token


class Gguf(NamedTuple):
    """A family in llama.cpp's .gguf files."""

    architecture: str  # general.architecture
    keys: Callable[[Metadata], dict[str, Any]]  # the metadata as keys of config.json
    names: Mapping[str, str]  # of the weights, as in Family.names
    interleaved: Collection[str] = ()  # weights with q and k rows in which RoPE's pairs are neighbours
    checked: str = ""  # "llama.cpp" if its results were compared with those of npllm
    plus_one: Collection[str] = ()  # weights that are stored as 1 + w


class Family(NamedTuple):
    """A family of models: everything specific to it."""

    title: str  # for display
    model_types: Sequence[str]  # config.json's model_type
    lm_class: str  # the class in transformers, as config.json's architectures name it
    read_config: Callable[[Keys], Config]
    harmless: Collection[str]  # keys of config.json that do not affect the computation, besides common.HARMLESS
    names: Mapping[str, str]  # our name of a weight -> its names in Hugging Face's files, see checkpoint/plan.py
    shapes: Callable[[Any], Mapping[str, Rows]]  # our name of a weight -> its shape
    biases: Callable[[Any], Collection[str]]  # the weights that have a bias
    block_weights: type  # the NamedTuple of a block's weights
    transform: Callable[..., Any]  # the forward pass
    block: Callable[..., Any]
    final_norm: Callable[..., Array]  # (residual stream, weights, config)
    # The share of each part of the residual stream in its final norm, without a bias: (parts, residual stream, weights,
    # config). See families/fixed_norm.py.
    final_norm_of_parts: Callable[..., Array]
    # The lines of a block for `npllm show`: (text, weight or ""). ": Linear" is completed with the shape of the weight.
    structure: Callable[[Any, int], Sequence[tuple[str, str]]]
    norm_text: Callable[[Config], str]  # the final norm for `npllm show`
    parts: Mapping[str, Tapped]  # every tapped value, by its name inside a block or outside the blocks
    # The cost of a block: (config, layer, its weights, T, S). All layers have the same parts; one may cost 0.
    work: Callable[[Any, int, Any, int, int], Sequence[Work]]
    norm_flops: Callable[[Config, int], int]  # of the final norm over T tokens
    # A tapped value -> the module of transformers' model with that output (>MODULE: with that input; ^MODULE: with the
    # heads' axis first; KEY · MODULE: with that output before it is multiplied by a key of the config).
    traced: Mapping[str, str]
    lm_head: Callable[..., Array] = heads.lm_head
    uncapped_head: Callable[..., Array] | None = None  # lm_head without the cap on its logits, if there is one
    added: tuple[str, str] = ("attention.output", "feedforward.output")  # what is added to the residual stream
    # The residual stream as the network reads it, and as the next block does.
    stream: tuple[str, str] = ("residual_after_attention", "residual_after_feedforward")
    weights: type = Weights  # the NamedTuple of the whole model's weights
    sequence_head: Callable[..., Array] = heads.sequence_classification_head
    renamed: Callable[[str], str] = str  # a tensor's name in older files -> its name in `names`
    transposed: Collection[str] = ()  # weights that Hugging Face's files store as [in, out]
    alternating: Collection[str] = ()  # weights whose one tensor has rows of gate and up alternately
    bare: Collection[str] = ()  # the ends of tensors' names without .weight, see checkpoint/parameters.py
    # Its attention changes the scores, so all [N, T, S] exist; it ignores `attention` (Phi-3-small: in sparse layers).
    full_scores: bool = False
    masks_by_order: bool = False  # its masks count the tokens in the cache, so texts of several lengths share no pass
    not_read: Sequence[str] = ()  # prefixes of the tensors of a part that is not computed, such as a vision encoder
    not_needed: Sequence[str] = ()  # suffixes of tensors that some files have and no computation needs
    # config.json -> config.json of the part that is computed, and the name of this part: "" if it is the whole model.
    part: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], str]] = lambda keys: (keys, "")
    gguf: Gguf | None = None
    # The operations on a token's embedding, and on its logits besides the product.
    outside_flops: Callable[[Any], tuple[int, int]] = lambda _: (0, 0)
    # The whole cost outside the blocks, if there is more to it: (config, weights, T, scored tokens) -> before, after.
    outside_work: Callable[[Any, Any, int, int], tuple[Sequence[Work], Sequence[Work]]] | None = None
    classifiers: Sequence[str] = ("sequence", "token")  # what it can classify in transformers, besides its LM head
    checked: Sequence[str] = ("transformers",)  # what its results were compared with
