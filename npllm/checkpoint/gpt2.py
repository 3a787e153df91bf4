"""GPT-2's checkpoints in Hugging Face layout: their keys in config.json, and their tensors.

They are older than the conventions of the others. Keys and tensors have names of their own; the names begin with
`transformer.` or do not; the matrices are stored as [in, out]; and the causal mask lies among the weights.

Source: https://huggingface.co/openai-community/gpt2
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import ModelFileError
from ..storage.gguf_blocks import OWN_FORMATS
from ..storage.stored import Stored
from .names import Part, check

# The common name of a key in config.json, and GPT-2's.
GPT2_KEYS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
SAME_KEYS = (
    *("model_type", "vocab_size", "layer_norm_epsilon", "eos_token_id", "pad_token_id", "architectures"),
    *("id2label", "num_labels", "problem_type"),
)
# Keys that change the computation: all that npllm computes, the first being what a file without the key means.
COMPUTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Our name of a weight, and its name in a file: outside of the blocks, and in a block. The star is the layer's number.
WHOLE = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}
OF_BLOCK = {
    "ln_1": "h.*.ln_1",
    "qkv_proj": "h.*.attn.c_attn",
    "o_proj": "h.*.attn.c_proj",
    "ln_2": "h.*.ln_2",
    "c_fc": "h.*.mlp.c_fc",
    "c_proj": "h.*.mlp.c_proj",
}
PREFIX = "transformer."
NOT_NEEDED = (".attn.bias", ".attn.masked_bias")  # the causal mask, and what it once put in place of a score


def gpt2_keys(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    """GPT-2's config.json under the common names, with what it means without saying.

    `reorder_and_upcast_attn` is passed over: it is about float16, and the attention here is in float32.

    Raises
    ------
    ModelFileError : it asks for what npllm does not compute
    """
    for key, computed in COMPUTED.items():
        if keys.get(key, computed[0]) not in computed:
            expected = " or ".join(repr(value) for value in computed)
            raise ModelFileError(f"{where}: {key}: expected {expected}, got {keys[key]!r}; npllm computes no other")
    common = {ours: keys.get(theirs) for ours, theirs in GPT2_KEYS.items()} | {key: keys.get(key) for key in SAME_KEYS}
    if common["intermediate_size"] is None and isinstance(common["hidden_size"], int):
        common["intermediate_size"] = 4 * common["hidden_size"]
    tied = keys.get("tie_word_embeddings")
    return common | {"tie_word_embeddings": True if tied is None else tied, "attention_bias": True, "mlp_bias": True}


def plan_gpt2(config: Config, tensors: Mapping[str, Stored], where: Path) -> dict[str, list[Part]]:
    """What each weight is made of, as in `names.plan`; here that is always one tensor.

    Raises
    ------
    ModelFileError : tensors are missing, unknown, of another shape or of a dtype that npllm does not read
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    width, inner = config.hidden_size, config.intermediate_size
    tables = {"embed_tokens": (config.vocab_size, width), "embed_positions": (config.max_position_embeddings, width)}
    matrices = {
        "qkv_proj": (width, 3 * width),
        "o_proj": (width, width),
        "c_fc": (width, inner),
        "c_proj": (inner, width),
    }

    plans = {ours: [Part(f"{prefix}{WHOLE[ours]}.weight", shape)] for ours, shape in tables.items()}
    names = {"norm": WHOLE["norm"]} | {
        f"layers.{layer}.{ours}": theirs.replace("*", str(layer))
        for layer in range(config.num_hidden_layers)
        for ours, theirs in OF_BLOCK.items()
    }
    for ours, theirs in names.items():
        name, shape = f"{prefix}{theirs}.weight", matrices.get(ours.rsplit(".", 1)[-1], (width,))
        plans[f"{ours}_bias"] = [Part(f"{prefix}{theirs}.bias", shape[-1:])]
        # `npllm convert` quantizes along the rows of a product, so it turns the matrix first.
        turned = len(shape) == 2 and name in tensors and tensors[name].dtype in OWN_FORMATS
        plans[ours] = [Part(name, shape[::-1] if turned else shape, transposed=len(shape) == 2 and not turned)]
    needed = {name: stored for name, stored in tensors.items() if not name.endswith(NOT_NEEDED)}
    if config.id2label:
        of_tokens = any(name.endswith("ForTokenClassification") for name in config.architectures)
        head = "classifier" if of_tokens else "score"
        plans["score"] = [Part(f"{head}.weight", (len(config.id2label), width))]
        if of_tokens:
            plans["score_bias"] = [Part(f"{head}.bias", (len(config.id2label),))]
    elif config.tie_word_embeddings:
        needed.pop("lm_head.weight", None)  # a copy of the embeddings
    else:
        plans["lm_head"] = [Part("lm_head.weight", tables["embed_tokens"])]
    check(plans, needed, where)
    return plans
