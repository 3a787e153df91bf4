"""Trace a transformers model: write every value with the name and shape that `npllm trace` gives it.

To port a model to npllm, or npllm's math elsewhere, compare the two traces value by value:

    python tools/hf_trace.py FOLDER "The capital of France is" -o theirs.safetensors
    npllm compare theirs.safetensors FOLDER
    npllm compare theirs.safetensors ours.safetensors

The values are the model's own: hooks read the inputs and outputs of its modules, and its attention function is wrapped.
Works for Phi3, Llama, Mistral and Qwen2 ForCausalLM, models built from the same modules, GPT2LMHeadModel and
BertForMaskedLM. Needs torch and transformers.
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
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from npllm.families import FAMILIES

# Plain implementations: this attention has all scores, and this mixture takes experts of any width.
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
HEADS = ("q", "k", "v", "q_normed", "k_normed")  # values of attention that are split into heads


def trace(model: PreTrainedModel, ids: Sequence[int], **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """All values of one uncached forward pass over `ids`: name -> float32 array, without the batch axis.

    In addition to npllm's names there is `layers.{i}.attention.visible` [T, S]: 1 where a query may attend to a key.
    Scores are taken before the mask; compare them only where `visible` is 1. The model is left with eager attention,
    the only implementation that has scores as an array. `inputs` are passed to the model, such as token_type_ids.
    """
    model.set_attn_implementation("eager")
    config = model.config.get_text_config()
    rotates = "attention.q_rotated" in FAMILIES[model.config.model_type].parts
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    seen: dict[str, np.ndarray] = {}
    handles = []

    def keep(name: str, value: torch.Tensor) -> None:
        seen[name] = np.ascontiguousarray(value[0].float().numpy())

    def keep_output(names: Sequence[str], output: torch.Tensor, factor: float = 1.0, heads_first: bool = False) -> None:
        """Record a module's output times a factor: one value, or several side by side along the last axis."""
        output = output * factor
        widths = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        leaves = [name.rsplit(".", 1)[-1] for name in names]
        sizes = [widths.get(leaf, output.shape[-1] // len(names)) for leaf in leaves] if len(names) > 1 else [-1]
        parts = output.split(sizes, dim=-1) if len(names) > 1 else [output]
        for name, leaf, part in zip(names, leaves, parts, strict=True):
            of_heads = ".attention." in name and leaf in HEADS and not heads_first
            keep(name, part.reshape(*part.shape[:2], -1, head_dim).transpose(1, 2) if of_heads else part)

    def keep_one(names: Sequence[str], outputs: tuple[torch.Tensor, ...], index: int) -> None:
        """Record one output of a module that has several: a router, whose outputs have no batch axis; or a network."""
        keep_output(names, outputs[index] if outputs[index].ndim == 3 else outputs[index][None])

    for path, names in modules(model).items():
        key, _, path = path.rpartition(" · ")
        path, _, index = path.removesuffix("]").partition("[")
        heads_first = path.startswith("^")
        module, factor = model.get_submodule(path.lstrip(">^")), getattr(config, key) if key else 1.0
        if path.startswith(">"):
            hook = module.register_forward_pre_hook(lambda _, args, names=names: keep(names[0], args[0]))
        elif index:
            hook = module.register_forward_hook(lambda *got, names=names, at=int(index): keep_one(names, got[-1], at))
        else:
            hook = module.register_forward_hook(
                lambda _, args, output, names=names, how=(factor, heads_first): keep_output(names, output, *how)
            )
        handles.append(hook)

    modeling = sys.modules[type(model).__module__]
    eager_attention = modeling.eager_attention_forward

    def traced_attention(module, query, key, value, attention_mask, scaling, **options):
        if attention_mask is None:  # BERT: nothing is hidden
            attention_mask = query.new_zeros(1, 1, query.shape[-2], key.shape[-2])
        mixed, weights = eager_attention(module, query, key, value, attention_mask, scaling=scaling, **options)
        scores = query @ key.repeat_interleave(heads // kv_heads, dim=1).mT * scaling
        if (cap := options.get("softcap")) is not None:  # Gemma 2
            scores = cap * torch.tanh(scores / cap)
        # The model's function does not return its scores: recompute them and check them against its weights.
        masked = scores + attention_mask
        if (sinks := options.get("s_aux")) is not None:  # gpt-oss: one more score in each row
            masked = torch.cat([masked, sinks[:, None, None].expand(*masked.shape[:-1], 1)], dim=-1)
        torch.testing.assert_close(torch.softmax(masked, dim=-1)[..., : scores.shape[-1]], weights)
        attention = f"layers.{module.layer_idx}.attention"
        if rotates and getattr(module, "use_rope", True):  # not in all layers of SmolLM3
            keep(f"{attention}.q_rotated", query)
            keep(f"{attention}.k_rotated", key)
        keep(f"{attention}.visible", attention_mask[:, 0] == 0)
        keep(f"{attention}.scores", scores)
        keep(f"{attention}.weights", weights)
        keep(f"{attention}.mixed", mixed.transpose(1, 2))
        return mixed, weights

    try:
        with torch.no_grad(), mock.patch.object(modeling, "eager_attention_forward", traced_attention):
            output = model(torch.tensor([list(ids)]), use_cache=False, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    if model.get_output_embeddings() is not None:
        keep("logits", output.logits)
    return seen


def modules(model: PreTrainedModel) -> dict[str, list[str]]:
    """The modules whose outputs (or inputs, >; ^: with the heads' axis first) are tapped values, and their names.

    npllm's own family says where transformers computes each value: `Family.traced`.
    """
    table = FAMILIES[model.config.model_type].traced
    found: dict[str, list[str]] = {}
    for name, path in table.items():
        if name != "logits":
            for layer in range(model.config.get_text_config().num_hidden_layers) if "*" in name else [0]:
                found.setdefault(path.replace("*", str(layer)), []).append(name.replace("*", str(layer)))
    return found


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
    model_class = getattr(transformers, FAMILIES[AutoConfig.from_pretrained(args.model).model_type].lm_class)
    model = model_class.from_pretrained(args.model, dtype=torch.float32, **EAGER)
    values = trace(model, ids)
    save_file(values, args.output, metadata(list(values), ids, args.model))
    print(f"{args.output}: {len(values)} values of {len(ids)} tokens")


if __name__ == "__main__":
    main()
