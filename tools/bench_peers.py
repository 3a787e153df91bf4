"""Decoding speed beside transformers, measured in turn within one run.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python tools/bench_peers.py [--model FOLDER] [--tokens 64] [--rounds 7]

Needs the [oracle] extra. Both sides decode the same prompt greedily with a KV cache, compute in float32, and use all
cores. npllm runs as its users run it, through `npllm.steps`, with its matrices in float32 and as `--dtype auto` keeps
them; transformers with the same numbers in float32, through its `generate`, as its users run it, and as its bare
forward pass in a loop, which is the fastest it can be. Only the time after the first new
token is counted. A machine's speed changes from minute to minute with its neighbours: what counts is the ratio within a
round.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

import npllm

SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)


def in_transformers(lm: npllm.LM) -> PreTrainedModel:
    """The model as transformers has it: a Phi3ForCausalLM, or a LlamaForCausalLM, whose projections are kept apart.

    The weights are npllm's, shared and not copied.
    """
    c, w = lm.config, lm.weights
    fused = c.model_type == "phi3"
    inner, q_rows, k_rows = c.intermediate_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    arrays = {"model.embed_tokens": w.embed_tokens, "model.norm": w.norm, "lm_head": w.lm_head}
    for i, block in enumerate(w.layers):
        arrays |= {
            f"model.layers.{i}.input_layernorm": block.input_layernorm,
            f"model.layers.{i}.post_attention_layernorm": block.post_attention_layernorm,
            f"model.layers.{i}.self_attn.o_proj": block.o_proj,
            f"model.layers.{i}.mlp.down_proj": block.down_proj,
        }
        if fused:
            arrays[f"model.layers.{i}.self_attn.qkv_proj"] = block.qkv_proj
            arrays[f"model.layers.{i}.mlp.gate_up_proj"] = block.gate_up_proj
        else:
            q, k, v = np.split(block.qkv_proj, [q_rows, q_rows + k_rows])
            arrays |= {f"model.layers.{i}.self_attn.{name}_proj": x for name, x in zip("qkv", (q, k, v), strict=True)}
            arrays[f"model.layers.{i}.mlp.gate_proj"] = block.gate_up_proj[:inner]
            arrays[f"model.layers.{i}.mlp.up_proj"] = block.gate_up_proj[inner:]
    keys = {key: getattr(c, key) for key in SHARED_KEYS}
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    config = (Phi3Config if fused else LlamaConfig)(**keys, rope_parameters=rope, pad_token_id=0)
    with torch.device("meta"):
        model = (Phi3ForCausalLM if fused else LlamaForCausalLM)(config)
    model.load_state_dict({f"{name}.weight": torch.from_numpy(x) for name, x in arrays.items()}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its tables are no weights: made again off "meta"
    return model.eval()


def decode_npllm(lm: npllm.LM, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds for `tokens` tokens after the first, and the ids."""
    endless = npllm.config.Config(**(vars(lm.config) | {"eos_token_id": ()}))
    lm = lm._replace(config=endless, generation_config={}, tokenizer=None)
    steps = npllm.steps(lm, prompt, max_new_tokens=tokens + 1)
    ids = [next(steps).id]
    begin = time.perf_counter()
    ids += [step.id for step in steps]
    return time.perf_counter() - begin, ids


@torch.inference_mode()
def decode_transformers(model: PreTrainedModel, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """The same by transformers."""
    cache = DynamicCache()
    logits = model(torch.tensor([prompt]), past_key_values=cache).logits
    ids = [int(logits[0, -1].argmax())]
    begin = time.perf_counter()
    for _ in range(tokens):
        logits = model(torch.tensor([[ids[-1]]]), past_key_values=cache).logits
        ids.append(int(logits[0, -1].argmax()))
    return time.perf_counter() - begin, ids


class Clock:
    """A streamer for `generate` that notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: torch.Tensor) -> None:
        """The prompt's ids first, then each new one."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """After the last token."""


def generate_transformers(model: PreTrainedModel, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """The same by `generate` of transformers."""
    clock = Clock()
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=tokens + 1, do_sample=False, eos_token_id=None, streamer=clock
    )
    return clock.times[-1] - clock.times[1], ids[0, len(prompt) :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; by default the embedded model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    lm, auto = npllm.load(args.model, dtype="float32"), npllm.load(args.model)
    prompt = [int(i) for i in np.random.default_rng(0).integers(100, 200, 8)]
    if args.model is None:
        prompt = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    model = in_transformers(lm)
    sides: dict[str, Callable[[], tuple[float, list[int]]]] = {
        "npllm": lambda: decode_npllm(lm, prompt, args.tokens),
        "npllm, dtype auto": lambda: decode_npllm(auto, prompt, args.tokens),
        "transformers, generate": lambda: generate_transformers(model, prompt, args.tokens),
        "transformers, bare loop": lambda: decode_transformers(model, prompt, args.tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        ids = {}
        for name, run in sides.items():
            time_taken, ids[name] = run()
            if number:  # the first round warms up
                seconds[name].append(time_taken)
        if any(other != ids["npllm"] for other in ids.values()):
            print("note: the sides generated different ids")

    print(
        f"npllm {npllm.__version__}, numpy {np.__version__}; transformers {transformers.__version__}, torch"
        f" {torch.__version__} with {torch.get_num_threads()} threads; {type(model).__name__}; {platform.machine()}"
    )
    print(f"float32, decoding {args.tokens} tokens after a prompt of {len(prompt)}, {args.rounds} rounds in turn")
    print(f"{'':24}{'tokens/s: median':>18}{'least':>8}{'most':>8}   npllm's ratio in a round: median, least, most")
    for name, times in seconds.items():
        rates = [args.tokens / s for s in times]
        ratios = [theirs / ours for ours, theirs in zip(seconds["npllm"], times, strict=True)]
        print(
            f"{name:24}{statistics.median(rates):18.1f}{min(rates):8.1f}{max(rates):8.1f}"
            f"   {statistics.median(ratios):25.2f}{min(ratios):8.2f}{max(ratios):8.2f}"
        )


if __name__ == "__main__":
    main()
