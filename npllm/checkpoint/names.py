"""The names of the weights in a file, and which rows of which weight each tensor fills.

Some files keep the query, key and value projections apart, and the gate and up projections too; others have them
fused. Here they are fused, one below the other: a tensor of a file that keeps them apart fills its rows.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import Config
from ..errors import ModelFileError
from ..storage.stored import FORMATS, Stored

# Our name of a weight, and its name in a file: its parts, in the order of their rows, where they are kept apart | where
# they are fused. The star is the number of the layer.
HUGGING_FACE = {
    "embed_tokens": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "score": "score",
    "input_layernorm": "model.layers.*.input_layernorm",
    "qkv_proj": "model.layers.*.self_attn.q_proj model.layers.*.self_attn.k_proj model.layers.*.self_attn.v_proj"
    " | model.layers.*.self_attn.qkv_proj",
    "o_proj": "model.layers.*.self_attn.o_proj",
    "post_attention_layernorm": "model.layers.*.post_attention_layernorm",
    "gate_up_proj": "model.layers.*.mlp.gate_proj model.layers.*.mlp.up_proj | model.layers.*.mlp.gate_up_proj",
    "down_proj": "model.layers.*.mlp.down_proj",
}
GGUF = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "blk.*.attn_norm",
    "qkv_proj": "blk.*.attn_q blk.*.attn_k blk.*.attn_v | blk.*.attn_qkv",
    "o_proj": "blk.*.attn_output",
    "post_attention_layernorm": "blk.*.ffn_norm",
    "gate_up_proj": "blk.*.ffn_gate blk.*.ffn_up | blk.*.ffn_up",
    "down_proj": "blk.*.ffn_down",
}
# Tensors that some files have and no computation needs: RoPE's frequencies (older Llamas; Llama 3 as .gguf, where
# gguf_config has read them).
NOT_NEEDED = (".rotary_emb.inv_freq", "rope_freqs.weight")


class Part(NamedTuple):
    """A tensor of a file, and the rows of a weight that it fills."""

    name: str
    shape: tuple[int, ...]
    first: int = 0  # its first row in the weight
    interleaved_heads: int = 0  # so many heads, from its first row on, have RoPE's pairs as neighbours
    head_dim: int = 0
    transposed: bool = False  # it is stored as [in, out], and is the whole weight


def biases(config: Config) -> set[str]:
    """The weights that have a bias in Hugging Face's files."""
    attention = {"qkv_proj"} if config.model_type == "qwen2" else {"qkv_proj", "o_proj"}
    feedforward = {"gate_up_proj", "down_proj"}
    score = {"score"} if any(name.endswith("ForTokenClassification") for name in config.architectures) else set()
    return score | (attention if config.attention_bias else set()) | (feedforward if config.mlp_bias else set())


def biases_found(tensors: Set[str]) -> set[str]:
    """The weights of a block that have a bias in a .gguf file, whose metadata do not tell."""
    return {
        ours
        for ours, theirs in GGUF.items()
        if any(f"{name}.bias" in tensors for name in theirs.replace("*", "0").split())
    }


def plan(
    config: Config, tensors: Mapping[str, Stored], table: Mapping[str, str], with_bias: Set[str], where: Path
) -> dict[str, list[Part]]:
    """What each weight is made of: {"embed_tokens": [Part], "layers.0.qkv_proj": [Part, Part, Part], ...}.

    Parameters
    ----------
    table : HUGGING_FACE or GGUF
    with_bias : the weights that have one
    where : the file or folder, for messages

    Raises
    ------
    ModelFileError : tensors are missing, unknown, of another shape than the config says, or of a dtype that npllm does
        not read; the first five are named
    """
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    whole: dict[str, tuple[list[int], int | None]] = {  # the rows of each part, and the columns, None in a vector
        "embed_tokens": ([vocabulary], width),
        "norm": ([width], None),
        **({"score": ([len(config.id2label)], width)} if config.id2label else {"lm_head": ([vocabulary], width)}),
    }
    of_block: dict[str, tuple[list[int], int | None]] = {
        "input_layernorm": ([width], None),
        "qkv_proj": ([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], width),
        "o_proj": ([width], heads * head_dim),
        "post_attention_layernorm": ([width], None),
        "gate_up_proj": ([inner, inner], width),
        "down_proj": ([width], inner),
    }
    # In .gguf files of the llama architecture RoPE's pairs are neighbours; the rows of q and k are sorted accordingly.
    interleaved = table is GGUF and config.model_type != "phi3"

    spelling = {ours: choose(theirs, tensors) for ours, theirs in table.items()}

    def parts(ours: str, layer: int, rows: Sequence[int], columns: int | None, kind: str) -> list[Part]:
        names = [f"{name.replace('*', str(layer))}.{kind}" for name in spelling[ours]]
        turned = [heads, kv_heads, 0] if ours == "qkv_proj" and interleaved else [0] * len(rows)
        if len(names) == 1:
            rows, turned = [sum(rows)], [sum(turned)]
        shapes = [(count,) if columns is None else (count, columns) for count in rows]
        return [
            Part(name, shape, sum(rows[:i]), turned[i], head_dim)
            for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
        ]

    plans = {ours: parts(ours, 0, *size, "weight") for ours, size in whole.items()}
    if "score" in whole and "score" in with_bias:
        plans["score_bias"] = parts("score", 0, whole["score"][0], None, "bias")
    for layer in range(config.num_hidden_layers):
        for ours, (rows, columns) in of_block.items():
            plans[f"layers.{layer}.{ours}"] = parts(ours, layer, rows, columns, "weight")
            if ours in with_bias:
                plans[f"layers.{layer}.{ours}_bias"] = parts(ours, layer, rows, None, "bias")
    if config.tie_word_embeddings and "lm_head" in plans:
        head = plans.pop("lm_head")  # a copy of the embeddings in the file is not read either
        tensors = {name: stored for name, stored in tensors.items() if name != head[0].name}
    check(plans, tensors, where)
    return plans


def choose(spellings: str, tensors: Mapping[str, Stored]) -> list[str]:
    """The names of a weight's parts: apart or fused, whichever the first layer has, or has most of."""
    candidates = [spelling.split() for spelling in spellings.split(" | ")]

    def found(names: list[str]) -> tuple[bool, int]:
        count = sum(f"{name.replace('*', '0')}.weight" in tensors for name in names)
        return count == len(names), count

    return max(candidates, key=found)


def halves_order(interleaved_heads: int, head_dim: int, rows: int) -> np.ndarray:
    """Where the rows of a projection go so that dimensions i and i + H/2 of a head, not neighbours, are a pair.

    The first heads may be interleaved, the rest (the values of a fused projection) stand as they should.

    >>> halves_order(1, 6, 8)
    array([0, 3, 1, 4, 2, 5, 6, 7])
    """
    order = np.arange(rows)
    turned = order[: interleaved_heads * head_dim].reshape(interleaved_heads, 2, head_dim // 2)
    return np.concatenate([turned.swapaxes(1, 2).reshape(-1), order[turned.size :]])


def check(plans: Mapping[str, Sequence[Part]], tensors: Mapping[str, Stored], where: Path) -> None:
    """Compare what is needed with what is there."""
    needed = {part.name: part.shape for parts in plans.values() for part in parts}
    wrong = {
        "missing tensors": [name for name in needed if name not in tensors],
        "unknown tensors": [name for name in tensors if name not in needed and not name.endswith(NOT_NEEDED)],
    }
    for fault, names in wrong.items():
        if names:
            raise ModelFileError(
                f"{where}: {len(names)} {fault}: {first_five(names)}; check that the config belongs to these weights"
            )
    shapes = [
        f"{name} expected {list(shape)}, got {list(tensors[name].shape)}"
        for name, shape in needed.items()
        if tensors[name].shape != shape
    ]
    if shapes:
        raise ModelFileError(
            f"{where}: {len(shapes)} tensors of another shape than the config says: {first_five(shapes)};"
            " check that the config belongs to these weights"
        )
    dtypes = [f"{name} {tensors[name].dtype}" for name in needed if tensors[name].dtype not in FORMATS]
    if dtypes:
        raise ModelFileError(
            f"{where}: {len(dtypes)} tensors of a dtype that npllm does not read: {first_five(dtypes)};"
            f" expected one of {', '.join(FORMATS)}"
        )


def first_five(items: Sequence[str]) -> str:
    """Enough to know what is wrong."""
    return ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
