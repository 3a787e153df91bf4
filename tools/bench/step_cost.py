"""Profile a decoding step: the time from each tapped value to the next, summed over the layers.

    python tools/bench/step_cost.py [-m MODEL] [--dtype DTYPE] [--context 64] [--tokens 1] [--steps 50]

A tap records when each value is computed, so each line is the time to compute that value: "attention.q" is the fused
product for queries, keys and values, "feedforward.gate" that for gate and up. A product's line also shows the size of
its weights and how fast they are read. Times are medians over the steps; the first line is their sum. --tokens 17 is a
pass that verifies 16 drafted tokens. CPU only: a GPU computes asynchronously.
"""

import argparse
import re
import statistics
import time
from collections.abc import Sequence

import numpy as np

import npllm
from npllm.arrays import Array
from npllm.attention import attention
from npllm.cache import empty_cache
from npllm.errors import NpllmError
from npllm.flash import flash_attention
from npllm.lm import LM
from npllm.loop import next_logits

PRODUCTS = {
    "attention.q": "qkv_proj",
    "attention.output": "o_proj",
    "feedforward.gate": "gate_up_proj",
    "feedforward.output": "down_proj",
    "feedforward.up": "c_fc",  # GPT-2
}


def moments(lm: LM, ids: Sequence[int], context: int, steps: int) -> dict[str, list[float]]:
    """Seconds from the previous value to each value, by name, for every step."""
    cache = empty_cache(lm.config, len(ids), like=lm.weights.norm)
    next_logits(lm, ids[:context], cache)
    how = flash_attention if len(ids) - context > 1 else attention  # as the loop does
    taken: dict[str, list[float]] = {}
    new, last = np.asarray(ids[context:]), 0.0

    def note(name: str, value: Array) -> Array:
        nonlocal last
        now = time.perf_counter()
        taken.setdefault(name, []).append(now - last)
        last = time.perf_counter()
        return value

    for _ in range(steps):
        cache["length"] = context
        last = time.perf_counter()
        npllm.forward(new, lm, cache, attention=how, tap=note)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="folder, .gguf file or Hub name")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=64, help="cached tokens (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens per pass (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    if min(args.context, args.tokens, args.steps) < 1:
        parser.error("--context, --tokens and --steps: expected at least 1")
    try:
        lm = npllm.load(args.model, dtype=args.dtype)
    except NpllmError as error:
        raise SystemExit(f"step_cost: {error}") from None
    ids = np.random.default_rng(0).integers(0, lm.config.vocab_size, args.context + args.tokens).tolist()

    summed: dict[str, float] = {}
    layers: dict[str, int] = {}
    for name, seconds in moments(lm, ids, args.context, args.steps).items():
        name = re.sub(r"layers\.\d+\.", "", name)
        summed[name] = summed.get(name, 0.0) + statistics.median(seconds)
        layers[name] = layers.get(name, 0) + 1
    whole = sum(summed.values())
    blocks = lm.weights.layers
    sizes = {
        value: sum(getattr(block, name).nbytes for block in blocks)
        for value, name in PRODUCTS.items()
        if hasattr(blocks[0], name)
    }
    sizes["logits"] = lm.weights.lm_head.nbytes
    print(f"{args.tokens} new after {args.context} in the cache: {1e3 * whole:.1f} ms")
    print(f"{'':28}{'layers':>7}{'ms':>8}{'share':>8}{'MB':>7}{'GB/s':>7}")
    for name, seconds in sorted(summed.items(), key=lambda item: -item[1]):
        read = f"{sizes[name] / 1e6:7.0f}{sizes[name] / 1e9 / seconds:7.1f}" if name in sizes else ""
        print(f"{name:28}{layers[name]:>7}{1e3 * seconds:>8.2f}{seconds / whole:>8.1%}{read}")


if __name__ == "__main__":
    main()
