"""Measure the overhead of unused taps: the tap calls of one decoding step.

    python tools/bench/tap_cost.py [-m MODEL] [--rounds N]

Counts the tap calls of a step after 16 cached tokens, and times an untapped call and a step; both are the minimum over
the rounds, to exclude other programs. Prints one line.
"""

import argparse
import time
import timeit

import numpy as np

import npllm
from npllm.arrays import Array
from npllm.cache import empty_cache
from npllm.errors import NpllmError
from npllm.tap import under, untapped

CACHED = 16  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="folder, .gguf file or Hub name")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    try:
        lm = npllm.load(args.model)
    except NpllmError as error:
        raise SystemExit(f"tap_cost: {error}") from None
    ids = np.arange(CACHED + 1) % lm.config.vocab_size
    cache = empty_cache(lm.config, len(ids), like=lm.weights.norm)
    npllm.forward(ids[:-1], lm, cache)

    calls = []

    def counting(name: str, value: Array) -> Array:
        calls.append(name)
        return value

    def step(**options: object) -> float:
        cache["length"] = CACHED
        began = time.perf_counter()
        npllm.forward(ids[-1:], lm, cache, **options)
        return time.perf_counter() - began

    step(tap=counting)
    seconds = min(step() for _ in range(args.rounds))
    value, many = np.zeros(1), 10_000
    per_call = min(timeit.repeat(lambda: untapped("name", value), number=many, repeat=args.rounds)) / many
    # Each part of a block makes its own tap and formats its name: three per layer.
    per_part = min(timeit.repeat(lambda: under(untapped, f"layers.{7}"), number=many, repeat=args.rounds)) / many
    parts = 3 * lm.config.num_hidden_layers
    cost = len(calls) * per_call + parts * per_part
    print(
        f"{len(calls)} tap calls x {1e9 * per_call:.0f} ns + {parts} parts x {1e9 * per_part:.0f} ns"
        f" = {1e3 * cost:.3f} ms of a step of {1e3 * seconds:.1f} ms: {cost / seconds:.2%}"
    )


if __name__ == "__main__":
    main()
