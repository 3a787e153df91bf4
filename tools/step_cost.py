"""Where the time of a step goes: the time between one tapped value and the next, summed over the layers.

    python tools/step_cost.py [-m MODEL] [--dtype DTYPE] [--context 64] [--tokens 1] [--steps 50]

A tap notes when each value is there, so a line is the time of what makes that value: "attention.q" is the product of
queries, keys and values in one, "feedforward.gate" that of gate and up. A product's line tells its weights, and how
fast they are read. Medians over the steps; --tokens 17 is a pass that checks 16 drafted tokens.
"""

import argparse
import re
import statistics
import time
from collections.abc import Sequence

import numpy as np

import npllm
from npllm.cache import empty_cache
from npllm.model import LM
from npllm.shapes import Array

PRODUCTS = {
    "attention.q": "qkv_proj",
    "attention.output": "o_proj",
    "feedforward.gate": "gate_up_proj",
    "feedforward.output": "down_proj",
}


def moments(lm: LM, ids: Sequence[int], context: int, steps: int) -> dict[str, list[float]]:
    """Seconds from the value before to each value, by its name, in every step."""
    cache = empty_cache(lm.config, len(ids), like=lm.weights.norm)
    ids = np.asarray(ids)
    npllm.forward(ids[:context], lm.weights, lm.config, cache, transform=lm.transform)
    taken: dict[str, list[float]] = {}
    last = 0.0

    def note(name: str, value: Array) -> Array:
        nonlocal last
        now = time.perf_counter()
        taken.setdefault(name, []).append(now - last)
        last = time.perf_counter()
        return value

    for _ in range(steps):
        cache["length"] = context
        last = time.perf_counter()
        npllm.forward(ids[context:], lm.weights, lm.config, cache, transform=lm.transform, tap=note)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="a folder, a .gguf file or a Hub name")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=64, help="tokens in the cache")
    parser.add_argument("--tokens", type=int, default=1, help="new ones, in one pass")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    lm = npllm.load(args.model, dtype=args.dtype)
    ids = np.random.default_rng(0).integers(0, lm.config.vocab_size, args.context + args.tokens).tolist()

    summed: dict[str, float] = {}
    times: dict[str, int] = {}
    for name, seconds in moments(lm, ids, args.context, args.steps).items():
        name = re.sub(r"layers\.\d+\.", "", name)
        summed[name] = summed.get(name, 0.0) + statistics.median(seconds)
        times[name] = times.get(name, 0) + 1
    whole = sum(summed.values())
    sizes = {value: sum(getattr(block, name).nbytes for block in lm.weights.layers) for value, name in PRODUCTS.items()}
    head = lm.weights.lm_head
    sizes["logits"] = 0 if head is None else head.nbytes
    print(f"{args.tokens} new after {args.context} in the cache: {1e3 * whole:.1f} ms")
    print(f"{'':28}{'times':>6}{'ms':>8}{'share':>8}{'MB':>7}{'GB/s':>7}")
    for name, seconds in sorted(summed.items(), key=lambda item: -item[1]):
        read = f"{sizes[name] / 1e6:7.0f}{sizes[name] / 1e9 / seconds:7.1f}" if name in sizes else ""
        print(f"{name:28}{times[name]:>6}{1e3 * seconds:>8.2f}{seconds / whole:>8.1%}{read}")


if __name__ == "__main__":
    main()
