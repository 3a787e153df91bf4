"""Trace a transformers model: write every value with the name and shape that `npllm trace` gives it.

To port a model to npllm, or npllm's math elsewhere, compare the two traces value by value:

    python tools/hf_trace.py FOLDER "The capital of France is" -o theirs.safetensors
    npllm compare theirs.safetensors FOLDER
    npllm compare theirs.safetensors ours.safetensors

The values are the model's own: hooks read the inputs and outputs of its modules, and its attention function is wrapped.
Works for Phi3, Llama, Mistral and Qwen2 ForCausalLM, models built from the same modules, and GPT2LMHeadModel. Needs
torch and transformers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def trace(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """All values of one uncached forward pass over `ids`: name -> float32 array, without the batch axis.

    In addition to npllm's names there is `layers.{i}.attention.visible` [T, S]: 1 where a query may attend to a key.
    Scores are taken before the mask; compare them only where `visible` is 1. The model is left with eager attention,
    the only implementation that has scores as an array.
    """
    model.set_attn_implementation("eager")
    config = model.config
    gpt2 = config.model_type == "gpt2"
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    seen: dict[str, np.ndarray] = {}
    handles = []

    def keep(name: str, value: torch.Tensor) -> None:
        seen[name] = np.ascontiguousarray(value[0].float().numpy())

    def keep_output(name: str, module: torch.nn.Module) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: keep(name, out)))

    def keep_input(name: str, module: torch.nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: keep(name, args[0])))

    def keep_parts(names: Sequence[str], sizes: Sequence[int], module: torch.nn.Module, split_heads: bool) -> None:
        """Record the parts of a module's output, split along the last axis."""

        def hook(_: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
            for name, part in zip(names, out.split(sizes, dim=-1), strict=True):
                keep(name, part.unflatten(-1, (-1, head_dim)).transpose(1, 2) if split_heads else part)

        handles.append(module.register_forward_hook(hook))

    modeling = sys.modules[type(model).__module__]
    eager_attention = modeling.eager_attention_forward

    def traced_attention(module, query, key, value, attention_mask, scaling, **options):
        mixed, weights = eager_attention(module, query, key, value, attention_mask, scaling=scaling, **options)
        scores = query @ key.repeat_interleave(heads // kv_heads, dim=1).mT * scaling
        # The model's function does not return its scores: recompute them and check them against its weights.
        torch.testing.assert_close(torch.softmax(scores + attention_mask, dim=-1), weights)
        attention = f"layers.{module.layer_idx}.attention"
        if not gpt2:
            keep(f"{attention}.q_rotated", query)
            keep(f"{attention}.k_rotated", key)
        keep(f"{attention}.visible", attention_mask[:, 0] == 0)
        keep(f"{attention}.scores", scores)
        keep(f"{attention}.weights", weights)
        keep(f"{attention}.mixed", mixed.transpose(1, 2))
        return mixed, weights

    if gpt2:
        keep_output("embedding", model.transformer.wte)
        keep_output("position_embedding", model.transformer.wpe)
        keep_output("residual_after_embedding", model.transformer.drop)
        keep_output("norm", model.transformer.ln_f)
    else:
        keep_output("embedding", model.model.embed_tokens)
        keep_output("norm", model.model.norm)
    for i, layer in enumerate(model.transformer.h if gpt2 else model.model.layers):
        attention, feedforward = f"layers.{i}.attention", f"layers.{i}.feedforward"
        q_k_v = [f"{attention}.q", f"{attention}.k", f"{attention}.v"]
        widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        keep_output(f"{feedforward}.output", layer.mlp)
        keep_output(f"layers.{i}.residual_after_feedforward", layer)
        if gpt2:
            keep_output(f"layers.{i}.input_layernorm", layer.ln_1)
            keep_parts(q_k_v, widths, layer.attn.c_attn, split_heads=True)
            keep_output(f"{attention}.output", layer.attn.c_proj)
            keep_input(f"layers.{i}.residual_after_attention", layer.ln_2)
            keep_output(f"layers.{i}.post_attention_layernorm", layer.ln_2)
            keep_output(f"{feedforward}.up", layer.mlp.c_fc)
            keep_input(f"{feedforward}.activation", layer.mlp.c_proj)
            continue
        gate_up = [f"{feedforward}.gate", f"{feedforward}.up"]
        ff_widths = [config.intermediate_size] * 2
        keep_output(f"layers.{i}.input_layernorm", layer.input_layernorm)
        if hasattr(layer.self_attn, "qkv_proj"):
            keep_parts(q_k_v, widths, layer.self_attn.qkv_proj, split_heads=True)
            keep_parts(gate_up, ff_widths, layer.mlp.gate_up_proj, split_heads=False)
        else:
            for name, width, part in zip(q_k_v, widths, ("q_proj", "k_proj", "v_proj"), strict=True):
                keep_parts([name], [width], getattr(layer.self_attn, part), split_heads=True)
            for name, width, part in zip(gate_up, ff_widths, ("gate_proj", "up_proj"), strict=True):
                keep_parts([name], [width], getattr(layer.mlp, part), split_heads=False)
        keep_output(f"{attention}.output", layer.self_attn.o_proj)
        keep_input(f"layers.{i}.residual_after_attention", layer.post_attention_layernorm)
        keep_output(f"layers.{i}.post_attention_layernorm", layer.post_attention_layernorm)
        keep_input(f"{feedforward}.activation", layer.mlp.down_proj)
    if hasattr(model, "lm_head"):
        keep_output("logits", model.lm_head)

    try:
        with torch.no_grad(), mock.patch.object(modeling, "eager_attention_forward", traced_attention):
            model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def metadata(names: Sequence[str], ids: Sequence[int], model: str) -> dict[str, str]:
    """The metadata of a trace file, see npllm/inspect/trace.py; the names are in the order of execution."""
    return {
        "names": json.dumps(list(names)),
        "ids": ",".join(map(str, ids)),
        "model": model,
        "dtype": "float32",
        "device": "cpu",
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder in Hugging Face layout, or Hub name")
    parser.add_argument("prompt", nargs="?", help="the text to trace")
    parser.add_argument("--ids", help="token ids instead of a prompt: 1,2,3 (no tokenizer needed)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.safetensors")
    args = parser.parse_args()
    if (args.prompt is None) == (args.ids is None):
        parser.error("expected a prompt or --ids, and not both")
    if args.ids is not None:
        ids = [int(token) for token in args.ids.split(",")]
    else:
        ids = AutoTokenizer.from_pretrained(args.model)(args.prompt).input_ids
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    values = trace(model, ids)
    save_file(values, args.output, metadata(list(values), ids, args.model))
    print(f"{args.output}: {len(values)} values of {len(ids)} tokens")


if __name__ == "__main__":
    main()
