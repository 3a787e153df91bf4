"""A .gguf file's metadata, key by key, as keys.py reads config.json: checked, and none that matters is ignored."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelFileError

# Keys below the architecture's name that affect the computation, and the values that do not.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale"), (0.0, 1.0)),
    **dict.fromkeys(("attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias"), (0.0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0.0,)),
    **dict.fromkeys(("attention.temperature_scale", "attention.output_scale"), (0.0, 1.0)),
    **dict.fromkeys(("expert_count", "interleave_moe_layer_step", "nextn_predict_layers"), (0,)),
    **dict.fromkeys(("expert_shared_count", "expert_group_count", "leading_dense_block_count"), (0,)),
    "expert_gating_func": (0, 1),  # unknown, softmax
    "expert_weights_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    **dict.fromkeys(("attention.sliding_window", "attention.sliding_window_pattern"), (0,)),
    **dict.fromkeys(("rope.freq_base_swa", "rope.dimension_count_swa", "rope.dimension_sections"), ()),
    **dict.fromkeys(("attention.key_length_swa", "attention.value_length_swa"), ()),
}
# Keys that do not affect the computation, or only together with a refused one (experts').
HARMLESS = (
    *("vocab_size", "tensor_data_layout", "pooling_type", "expert_used_count", "expert_feed_forward_length"),
    *("rope.scaling.finetuned", "rope.scaling.original_context_length", "attention.layer_norm_epsilon"),
    *("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_log_multiplier"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
# Keys that change YaRN, with the values that do not; without YaRN they affect nothing.
YARN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"), (None, -1.0, 1.0)),
    "rope.scaling.yarn_log_multiplier": (None, 0.0),
}


class Metadata:
    """The keys of one architecture in a .gguf file.

    path : for messages
    values : all metadata
    tensors : the shapes of the tensors by name; a part of the configuration is only there
    """

    def __init__(self, path: Path, values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]):
        self.path, self.values, self.tensors = path, values, tensors
        self.architecture = values.get("general.architecture")
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key below the architecture's name, unchecked."""
        self.read.add(key)
        return self.values.get(f"{self.architecture}.{key}", default)

    def refusal(self, key: str, expected: str) -> ModelFileError:
        """The error for a key with an invalid value."""
        got = str(repr(self.get(key)))[:200]
        return ModelFileError(f"{self.path}: {self.architecture}.{key}: expected {expected}, got {got}")

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            raise self.refusal(key, "a whole number from 1")
        return value

    def required(self, key: str) -> Any:
        """A number that the file must have."""
        if self.get(key) is None:
            raise self.refusal(key, "a number")
        return self.number(key)

    def number(self, key: str, default: Any = None) -> Any:
        """A number, in the fewest digits that give the same float32: 1e-05 instead of 9.999999747378752e-06."""
        value = self.get(key, default)
        with np.errstate(over="ignore"):  # a double may become infinite, which `Keys.number` refuses
            return float(str(np.float32(value))) if isinstance(value, float) else value

    def finish(self) -> None:
        """Refuse keys that affect the computation and that the family has not read; warn about unknown ones."""
        keys = [
            key.removeprefix(f"{self.architecture}.") for key in self.values if key.startswith(f"{self.architecture}.")
        ]
        for key in keys:
            if key in ALLOWED and key not in self.read and self.get(key) not in ALLOWED[key]:
                allowed = " or ".join(map(repr, ALLOWED[key])) or "no such key"
                raise self.refusal(key, f"{allowed}, because npllm does not compute it")
        unknown = [key for key in keys if key not in self.read and key not in HARMLESS]
        if unknown:
            warnings.warn(f"{self.path}: ignored keys that npllm does not know: {', '.join(unknown[:5])}", stacklevel=2)


def common(metadata: Metadata, names: Collection[str]) -> dict[str, Any]:
    """The keys of config.json that correspond to the metadata of a decoder with RMSNorm and RoPE.

    Some follow from the tensors: the vocabulary size is the number of rows of the embedding matrix, and without an
    output matrix the embeddings are tied.

    names : the tensors' names
    """
    m = metadata
    head_dim = m.count("attention.key_length", m.count("embedding_length") // m.count("attention.head_count"))
    if m.get("attention.value_length", head_dim) != head_dim:
        raise m.refusal("attention.value_length", f"that of the keys, {head_dim}")
    return {
        "vocab_size": vocab_size(m),
        "hidden_size": m.get("embedding_length"),
        "intermediate_size": m.get("feed_forward_length"),
        "num_hidden_layers": m.get("block_count"),
        "num_attention_heads": m.get("attention.head_count"),
        "num_key_value_heads": m.get("attention.head_count_kv", m.get("attention.head_count")),
        "head_dim": head_dim,
        "max_position_embeddings": m.get("context_length"),
        "rms_norm_eps": m.required("attention.layer_norm_rms_epsilon"),
        "rope_theta": m.number("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(m),
        "tie_word_embeddings": "output.weight" not in names,
        "eos_token_id": end_ids(m),
    }


def vocab_size(metadata: Metadata) -> int:
    """The number of rows of the embedding matrix."""
    if "token_embd.weight" not in metadata.tensors:
        raise ModelFileError(
            f"{metadata.path}: expected a tensor token_embd.weight, found none; download the file again"
        )
    return metadata.tensors["token_embd.weight"][0]


def end_ids(metadata: Metadata) -> list[Any]:
    """The tokens that end a text: that of the text, and that of a turn."""
    ends = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return [metadata.values[key] for key in ends if key in metadata.values]


def decoder(metadata: Metadata, model_type: str) -> dict[str, Any]:
    """The keys of config.json for a family whose metadata are the common ones, and whose heads rotate as a whole."""
    keys = common(metadata, metadata.tensors)
    whole_heads_rotate(metadata, keys["head_dim"])
    biases = {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors or "blk.0.attn_qkv.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in metadata.tensors,
    }
    return {"model_type": model_type} | keys | biases


def experts(metadata: Metadata) -> dict[str, Any]:
    """The number of experts in a block, and of those that run for each token."""
    return {
        "num_local_experts": metadata.get("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
    }


def whole_heads_rotate(metadata: Metadata, head_dim: int) -> None:
    """Refuse a file that rotates only a part of each head."""
    if metadata.count("rope.dimension_count", head_dim) != head_dim:
        raise metadata.refusal("rope.dimension_count", f"the head width, {head_dim}")


def rope_scaling(metadata: Metadata) -> dict[str, Any] | None:
    """The scaling of positions in the metadata: linear or YaRN; None without one.

    LongRoPE is in the tensors, whatever the type says: see `phi3.gguf_keys`.
    """
    m = metadata
    kind = m.get("rope.scaling.type", "linear")
    longrope = kind == "longrope" and "rope_factors_long.weight" in m.tensors
    if kind not in ("none", "linear", "yarn") and not longrope:
        raise m.refusal("rope.scaling.type", "none, linear or yarn, because npllm computes no other")
    factor = m.number("rope.scaling.factor", m.number("rope.scale_linear", 1.0))
    more = yarn(m) if kind == "yarn" else {}
    return None if kind not in ("linear", "yarn") or factor in (0, 1) else {"rope_type": kind, "factor": factor} | more


def yarn(metadata: Metadata) -> dict[str, Any]:
    """YaRN's keys, except for its factor. llama.cpp ignores the betas of most architectures; transformers does not."""
    m = metadata
    for key, allowed in YARN.items():
        if m.get(key) not in allowed:
            raise m.refusal(key, f"{allowed[-1]}, because npllm does not compute it")
    keys = {"original_max_position_embeddings": m.get("rope.scaling.original_context_length", m.get("context_length"))}
    for beta in ("beta_fast", "beta_slow"):
        if m.get(f"rope.scaling.yarn_{beta}") is not None:
            keys[beta] = m.number(f"rope.scaling.yarn_{beta}")
    return keys
