"""npllm show: the model's structure."""

import argparse
import math
from collections.abc import Callable
from itertools import groupby

from ..arrays import Array, Weight
from ..cache import kv_cache_bytes
from ..config import Config
from ..devices.memory import format_bytes
from ..lm import LM
from ..shapes import BlockWeights, GPT2BlockWeights, Weights
from . import options, report

DESCRIPTION = """\
Show the model's layers, as printing a PyTorch model does, and the number, dtype
and size of their parameters.
"""
EXAMPLES = """\
examples:
  npllm show
  npllm show --model microsoft/Phi-3-mini-4k-instruct
"""
Row = tuple[str, int, str, int]  # what a line says; the parameters, dtype and bytes of its arrays


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the structure and return the exit code."""
    report.write(structure(options.load_model(args)))
    return 0


def structure(lm: LM) -> str:
    """The model's layers in order of execution, each with its number of parameters, their dtype and size in memory.

    Blocks that are equal are shown once.
    """
    config, weights = lm.config, lm.weights
    rows_of: Callable[..., list[Row]] = gpt2_block_rows if config.model_type == "gpt2" else block_rows
    blocks = [rows_of(block, config, layer) for layer, block in enumerate(weights.layers)]
    table = f"Embedding({config.max_position_embeddings}, {config.hidden_size})"
    rows = [
        row("(model):"),
        row(f"  (embed_tokens): Embedding({config.vocab_size}, {config.hidden_size})", weights.embed_tokens),
        *([] if weights.embed_positions is None else [row(f"  (embed_positions): {table}", weights.embed_positions)]),
        row("  (layers):"),
    ]
    first = 0
    for rows_of_block, group in groupby(blocks):
        equal = len(list(group))
        which = f"({first})" if equal == 1 else f"({first}-{first + equal - 1})"
        rows.append(row(f"    {which}: {equal} x Block"))
        rows += [(f"      {text}", count, dtype, size) for text, count, dtype, size in rows_of_block]
        first += equal
    norm = rms_norm(config) if weights.norm_bias is None else layer_norm(config)
    rows += [row(f"  (norm): {norm}", weights.norm, weights.norm_bias), head_row(weights)]
    width = max(len(text) for text, *_ in rows)
    lines = [
        f"{text:{width}}  {count:13,}  {dtype:8} {format_bytes(size):>8}" if count else text
        for text, count, dtype, size in rows
    ]

    of_blocks = [array for block in weights.layers for array in block]
    outside = [getattr(weights, name) for name in weights._fields if name != "layers"]
    _, count, dtype, size = row("", *{id(array): array for array in (*of_blocks, *outside)}.values())
    context, per_token = config.max_position_embeddings, kv_cache_bytes(config, 1)
    lines += [
        "",
        f"{config.model_type}: {count:,} parameters, {format_bytes(size)} as {dtype}",
        f"context: {context:,} tokens",
        f"KV cache: {per_token:,} bytes per token, {format_bytes(per_token * context)} for the whole context",
        *([f"labels: {', '.join(config.id2label)}"] if config.id2label else []),
    ]
    return "\n".join(lines) + "\n"


def head_row(weights: Weights) -> Row:
    """The row of what stands on top of the blocks."""
    if weights.lm_head is None:
        return row(f"(score): {linear(weights.score, weights.score_bias)}", weights.score, weights.score_bias)
    head = f"(lm_head): {linear(weights.lm_head)}"
    return (
        row(f"{head}, tied: it is embed_tokens")
        if weights.lm_head is weights.embed_tokens
        else row(head, weights.lm_head)
    )


def rms_norm(config: Config) -> str:
    """The norm of the models of today."""
    return f"RMSNorm({config.hidden_size}, eps={config.rms_norm_eps:g})"


def layer_norm(config: Config) -> str:
    """GPT-2's norm."""
    return f"LayerNorm({config.hidden_size}, eps={config.layer_norm_epsilon:g})"


def attention(config: Config) -> str:
    """The heads of an attention layer."""
    return f"heads={config.num_attention_heads}, kv_heads={config.num_key_value_heads}, head_dim={config.head_dim}"


def gpt2_block_rows(weights: GPT2BlockWeights, config: Config, layer: int) -> list[Row]:
    """The rows of one of GPT-2's blocks; `layer` tells nothing here."""
    w = weights
    return [
        row(f"(ln_1): {layer_norm(config)}", w.ln_1, w.ln_1_bias),
        row(f"(self_attn): Attention({attention(config)})"),
        row(f"  (qkv_proj): {linear(w.qkv_proj, w.qkv_proj_bias)}", w.qkv_proj, w.qkv_proj_bias),
        row(f"  (o_proj): {linear(w.o_proj, w.o_proj_bias)}", w.o_proj, w.o_proj_bias),
        row(f"(ln_2): {layer_norm(config)}", w.ln_2, w.ln_2_bias),
        row("(mlp): MLP"),
        row(f"  (c_fc): {linear(w.c_fc, w.c_fc_bias)}", w.c_fc, w.c_fc_bias),
        row("  (activation_fn): GELU(tanh)"),
        row(f"  (c_proj): {linear(w.c_proj, w.c_proj_bias)}", w.c_proj, w.c_proj_bias),
    ]


def block_rows(weights: BlockWeights, config: Config, layer: int) -> list[Row]:
    """The rows of one Transformer block; equal for equal blocks."""
    window = config.window(layer)
    scaling = config.rope_scaling
    rope = f"dim={config.rotary_dim}, theta={config.rope_theta:g}" + (f", {scaling['rope_type']}" if scaling else "")
    w = weights
    return [
        row(f"(input_layernorm): {rms_norm(config)}", w.input_layernorm),
        row(f"(self_attn): Attention({attention(config)}{f', sliding_window={window}' if window else ''})"),
        row(f"  (qkv_proj): {linear(w.qkv_proj, w.qkv_proj_bias)}", w.qkv_proj, w.qkv_proj_bias),
        row(f"  (rotary_emb): RotaryEmbedding({rope})"),
        row(f"  (o_proj): {linear(w.o_proj, w.o_proj_bias)}", w.o_proj, w.o_proj_bias),
        row(f"(post_attention_layernorm): {rms_norm(config)}", w.post_attention_layernorm),
        row("(mlp): SwiGLU"),
        row(f"  (gate_up_proj): {linear(w.gate_up_proj, w.gate_up_proj_bias)}", w.gate_up_proj, w.gate_up_proj_bias),
        row("  (activation_fn): SiLU()"),
        row(f"  (down_proj): {linear(w.down_proj, w.down_proj_bias)}", w.down_proj, w.down_proj_bias),
    ]


def linear(weight: Weight, bias: Array | None = None) -> str:
    """A linear layer as PyTorch prints it. Its matrix is [out, in]."""
    features_out, features_in = weight.shape
    return f"Linear(in_features={features_in}, out_features={features_out}, bias={bias is not None})"


def row(text: str, *arrays: Array | None) -> Row:
    """A line of the structure: what it says, and of its arrays the number of parameters, dtypes and bytes together."""
    there = [array for array in arrays if array is not None]
    dtypes = ", ".join(sorted({str(array.dtype) for array in there}))
    return text, sum(math.prod(array.shape) for array in there), dtypes, sum(array.nbytes for array in there)
