"""The numbers that describe a model, under the names they have in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model's configuration. Made and checked by families/: the code relies on it."""

    family: str  # which pass is its own: "phi3", "llama", ...
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # N
    num_key_value_heads: int  # K: N is multi-head, 1 is multi-query, between them is grouped-query attention
    head_dim: int  # H
    max_position_embeddings: int  # the context length, in tokens
    rms_norm_eps: float = 0.0  # of the models with RMSNorm
    layer_norm_epsilon: float = 0.0  # of those with LayerNorm, which is GPT-2
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None  # {"rope_type": "linear", ...}: "llama3", or GGUF's "factors"
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None  # W: how many tokens a token sees, itself among them
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", one for each layer
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    architectures: tuple[str, ...] = ()  # "Phi3ForCausalLM", ...: which head stands on the blocks
    id2label: tuple[str, ...] = ()  # the labels of a model that classifies
    problem_type: str | None = None  # "multi_label_classification": each label is a yes or no of its own

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, or None where it sees everything before it."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    @property
    def rotary_dim(self) -> int:
        """2R: how many of a head's H dimensions are rotated by RoPE (partial rotary: fewer than H)."""
        return int(self.head_dim * self.partial_rotary_factor)
