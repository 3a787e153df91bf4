"""A model's configuration, with the names of its config.json."""

from dataclasses import dataclass
from typing import NamedTuple

from .text.brief import brief


class RopeScaling(NamedTuple):
    """A context extended after training: the frequency of each of RoPE's R pairs is divided by its factor."""

    kind: str  # "linear", "llama3", "yarn", "longrope" or "dynamic"; "factors" in a GGUF file
    factors: tuple[float, ...]  # R
    long_factors: tuple[float, ...] = ()  # LongRoPE: in their place for a text longer than `original` tokens
    original: int = 0
    attention_factor: float = 1.0  # multiplies cos and sin
    long_attention_factor: float = 1.0  # does so in a text longer than `original` tokens

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model's configuration. families/ builds and validates it; all other code relies on that."""

    family: str  # "phi3", "llama", ...: selects the forward pass
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # N
    num_key_value_heads: int  # K: N for multi-head attention, 1 for multi-query, in between for grouped-query
    head_dim: int  # H
    max_position_embeddings: int  # the context length, in tokens
    rms_norm_eps: float = 0.0  # in models with RMSNorm
    layer_norm_epsilon: float = 0.0  # in models with LayerNorm
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None  # W: the number of tokens a token sees, including itself
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", for each layer
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    architectures: tuple[str, ...] = ()  # "Phi3ForCausalLM", ...: selects the head
    id2label: tuple[str, ...] = ()  # the labels of a classifier
    bidirectional: bool = False  # every token sees all others: BERT, which fills gaps and cannot continue a text
    problem_type: str | None = None  # "multi_label_classification": each label is an independent yes or no

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Config.__repr__  # type: ignore[method-assign]  # or a dataclass gets one of its own

    def __repr__(self) -> str:
        """A line for each field that has not its default value."""
        return brief(self, ",\n    ")

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, or None if it sees all earlier tokens."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    @property
    def rotary_dim(self) -> int:
        """2R: the number of a head's H dimensions that RoPE rotates (all, unless rotation is partial)."""
        return int(self.head_dim * self.partial_rotary_factor)
