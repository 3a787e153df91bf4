"""The families of models, one file per family.

family       the record that describes a family
keys         config.json, key by key; none is ignored
metadata     the same for a .gguf file
common       keys that most families share
scaling      positions in texts longer than in training
activations  activation functions by name
fixed_norm   norms with a given scale, which are linear
work         the cost of a block's parts
block_sparse  attention to near blocks and some earlier ones
local_rope   RoPE of its own in the layers with a window
layer_normed  the pass of modern models with LayerNorm
other_heads  heads that are not computed
nearest      of families that are not computed: which is most like them
llama        Llama, and what its descendants share
phi3         Phi-3, the chapter's model
phi3small    Phi-3-small: block-sparse attention
phimoe       Phi-3.5-MoE: experts, LayerNorm
mistral      a sliding window
experts      several networks in a block, of which each token passes through a few
mixtral      Mistral with experts
gpt_oss      experts in 4 bits, attention with sinks
qwen2        biases on queries, keys and values
qwen3        a norm on each head's queries and keys
qwen3_moe    Qwen3 with experts
olmo2        norms after the layers; QK-norm over the full width
olmo3        OLMo 2 with windows and RoPE by layer
olmoe        experts, and the same QK-norm
smollm3      no RoPE in every fourth layer
granite      multipliers of embeddings, scores, layers and logits
gemma        norms that multiply by 1 + w, GeGLU, scaled embeddings
gemma2       norms before and after each layer, capped scores and logits
gemma3       a norm on each head's queries and keys; RoPE of its own in layers with a window
gemma3_pictures  the text part of Gemma 3's models that also read pictures
gpt2         absolute positions, LayerNorm, GELU
bert         bidirectional attention, to fill gaps
bert_heads   its configuration, weights and heads
"""

from collections.abc import Mapping
from typing import Any

from ..config import Config
from ..errors import ModelFileError
from .bert import BERT
from .common import HARMLESS
from .family import Family as Family
from .gemma import GEMMA
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3
from .gemma3_pictures import GEMMA3_PICTURES
from .gpt2 import GPT2
from .gpt_oss import GPT_OSS
from .granite import GRANITE
from .keys import Keys
from .llama import LLAMA
from .metadata import Metadata
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .nearest import meant, nearest
from .olmo2 import OLMO2
from .olmo3 import OLMO3
from .olmoe import OLMOE
from .other_heads import check_head
from .phi3 import PHI3
from .phi3small import PHI3SMALL
from .phimoe import PHIMOE
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .smollm3 import SMOLLM3

ALL = (
    PHI3,
    PHIMOE,
    PHI3SMALL,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    OLMO2,
    OLMO3,
    OLMOE,
    SMOLLM3,
    GRANITE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA3_PICTURES,
    GPT_OSS,
    GPT2,
    BERT,
)
# By config.json's model_type, and by a .gguf file's architecture. If several families share an architecture (Mistral's
# files say "llama"), the first in ALL wins; its gguf.keys tells them apart.
FAMILIES: dict[str, Family] = {name: family for family in ALL for name in family.model_types}
ARCHITECTURES = {family.gguf.architecture: family for family in reversed(ALL) if family.gguf is not None}


def family_of(config: Config) -> Family:
    """The family of a model."""
    return FAMILIES[config.family]


def read_config(keys: Mapping[str, Any], where: str = "config.json") -> Config:
    """The parsed config.json as a `Config`. Every key that affects the computation is read, or refused by name.

    Raises
    ------
    ModelFileError : a key is missing, of the wrong type, out of range, or requires what npllm does not compute
    """
    reader = Keys(keys, where)
    family = FAMILIES.get(str(reader.get("model_type")))
    if family is None:
        name = str(reader.get("model_type"))
        remedy = nearest(name, FAMILIES) or "npllm computes no other"
        if keys.get("model_type") is None:
            remedy = "there is none"
        elif one := meant(name, FAMILIES):
            remedy = f"did you mean {one!r}?"
        raise reader.refusal("model_type", "one of those that `npllm models` lists", remedy)
    if family.lm_class not in reader.strings("architectures"):
        check_head(reader, masked=family.lm_class.endswith("ForMaskedLM"))
    config = family.read_config(reader)
    reader.finish(HARMLESS | {*family.harmless})
    return config


def gguf_keys(metadata: Metadata) -> dict[str, Any]:
    """The keys of config.json that correspond to a .gguf file's metadata.

    Raises
    ------
    ModelFileError : npllm does not compute the architecture or a value
    """
    family = ARCHITECTURES.get(str(metadata.architecture))
    if family is None or family.gguf is None:
        name = str(metadata.architecture)[:80]
        remedy = nearest(name, FAMILIES) or "npllm computes no other"
        if "bert" in name:  # llama.cpp has several
            remedy = "such a file has no head, and turns texts into vectors; npllm fill reads a BertForMaskedLM folder"
        elif one := meant(name, ARCHITECTURES):
            remedy = f"did you mean {one!r}?"
        elif one := meant(name, FAMILIES):
            remedy = f"npllm reads {one} from a folder with config.json and safetensors"
        raise ModelFileError(
            f"{metadata.path}: general.architecture: expected one of {', '.join(sorted(ARCHITECTURES))}, got"
            f" {str(repr(metadata.architecture))[:80]}; {remedy}"
        )
    keys = family.gguf.keys(metadata)
    metadata.finish()
    return keys
