"""npllm show: the model's structure."""

import argparse
import math
from itertools import groupby

from ..backend.memory import format_bytes
from ..cache import kv_cache_bytes
from ..config import Config
from ..model import LM
from ..shapes import Array, BlockWeights, Weight
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
    blocks = [block_rows(block, config, layer) for layer, block in enumerate(weights.layers)]
    rows = [
        row("(model):"),
        row(f"  (embed_tokens): Embedding({config.vocab_size}, {config.hidden_size})", weights.embed_tokens),
        row("  (layers):"),
    ]
    first = 0
    for rows_of_block, group in groupby(blocks):
        equal = len(list(group))
        which = f"({first})" if equal == 1 else f"({first}-{first + equal - 1})"
        rows.append(row(f"    {which}: {equal} x Block"))
        rows += [(f"      {text}", count, dtype, size) for text, count, dtype, size in rows_of_block]
        first += equal
    head = f"(lm_head): {linear(weights.lm_head)}"
    tied = weights.lm_head is weights.embed_tokens
    rows += [
        row(f"  (norm): RMSNorm({config.hidden_size}, eps={config.rms_norm_eps:g})", weights.norm),
        row(f"{head}, tied: it is embed_tokens") if tied else row(head, weights.lm_head),
    ]
    width = max(len(text) for text, *_ in rows)
    lines = [
        f"{text:{width}}  {count:13,}  {dtype:8} {format_bytes(size):>8}" if count else text
        for text, count, dtype, size in rows
    ]

    of_blocks = [array for block in weights.layers for array in block if array is not None]
    arrays = {id(array): array for array in (weights.embed_tokens, *of_blocks, weights.norm, weights.lm_head)}
    _, count, dtype, size = row("", *arrays.values())
    context, per_token = config.max_position_embeddings, kv_cache_bytes(config, 1)
    lines += [
        "",
        f"{config.model_type}: {count:,} parameters, {format_bytes(size)} as {dtype}",
        f"context: {context:,} tokens",
        f"KV cache: {per_token:,} bytes per token, {format_bytes(per_token * context)} for the whole context",
    ]
    return "\n".join(lines) + "\n"


def block_rows(weights: BlockWeights, config: Config, layer: int) -> list[Row]:
    """The rows of one Transformer block; equal for equal blocks."""
    norm = f"RMSNorm({config.hidden_size}, eps={config.rms_norm_eps:g})"
    heads = f"heads={config.num_attention_heads}, kv_heads={config.num_key_value_heads}, head_dim={config.head_dim}"
    window = config.window(layer)
    scaling = config.rope_scaling
    rope = f"dim={config.rotary_dim}, theta={config.rope_theta:g}" + (f", {scaling['rope_type']}" if scaling else "")
    w = weights
    return [
        row(f"(input_layernorm): {norm}", w.input_layernorm),
        row(f"(self_attn): Attention({heads}{f', sliding_window={window}' if window else ''})"),
        row(f"  (qkv_proj): {linear(w.qkv_proj, w.qkv_proj_bias)}", w.qkv_proj, w.qkv_proj_bias),
        row(f"  (rotary_emb): RotaryEmbedding({rope})"),
        row(f"  (o_proj): {linear(w.o_proj, w.o_proj_bias)}", w.o_proj, w.o_proj_bias),
        row(f"(post_attention_layernorm): {norm}", w.post_attention_layernorm),
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
