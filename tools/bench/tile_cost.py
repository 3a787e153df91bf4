"""Measure what limits packed weights: widening, the product, and both, in weights per second.

    python tools/bench/tile_cost.py

One matrix in the shape of Phi-3-mini's gate_up_proj, and one vector. "alone" runs one part over all tiles without the
other; if the parts did not interfere, both together would take the sum of their times. float32 needs no widening and
shows the memory bandwidth.
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

import ml_dtypes
import numpy as np

from npllm.devices.workers import TILE, Workers
from npllm.storage.groups import GroupLayout, fill_groups, quantize_groups
from npllm.storage.packed import Groups, Half, widen_half

HEIGHT, WIDTH = 16384, 3072
ROUNDS = 9


def seconds(work: Callable[[], object]) -> float:
    """The median of a few runs after a warm-up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def half_parts(weight: Half, x: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: widen all tiles; multiply one tile as many times."""
    at_once = TILE // WIDTH

    def each(do: Callable[[np.ndarray, np.ndarray], object]) -> Callable[[], object]:
        def work(first: int, last: int) -> None:
            tile = np.zeros((at_once, WIDTH), dtype=np.float32)
            for start in range(first, last, at_once):
                do(weight.codes[start : min(start + at_once, last)], tile)

        return lambda: weight.workers.share(HEIGHT, weight.codes.size, work)

    return each(widen_half), each(lambda codes, tile: np.dot(x, tile[: len(codes)].T))


def groups_parts(weight: Groups, x: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: widen all blocks; multiply and scale one block as many times."""
    blocks, groups, _, rows = weight.codes.shape
    grouped = x.reshape(groups, 1, weight.group)

    def each(do: Callable[[slice, np.ndarray], object]) -> Callable[[], object]:
        def work(first: int, last: int) -> None:
            tile = np.zeros((1, groups, weight.group, rows), dtype=np.float32)
            for block in range(first, last):
                do(slice(block, block + 1), tile)

        return lambda: weight.workers.share(blocks, HEIGHT * WIDTH, work)

    def multiply(block: slice, tile: np.ndarray) -> None:
        products = grouped @ tile
        products *= weight.scale[block].astype(np.float32, copy=False)[:, :, None, :]
        products.sum(axis=1)

    return each(weight.widen), each(multiply)


def main() -> None:
    random = np.random.default_rng(0)
    numbers = random.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    x = random.standard_normal((1, WIDTH), dtype=np.float32)
    print(f"{HEIGHT} x {WIDTH}, one vector; G weights/s, medians of {ROUNDS}; NumPy {np.__version__}")
    print(f"float32, all threads of BLAS: {numbers.size / seconds(lambda: x @ numbers.T) / 1e9:.1f}\n")
    print(f"{'':10}{'threads':>8}{'widening alone':>16}{'product alone':>15}{'sum of times':>14}{'both':>8}")
    for name in ("bfloat16", "float16", "int8", "int4"):
        for threads in sorted({1, os.cpu_count() or 1}):
            workers = Workers(threads)
            weight: Half | Groups
            if name.startswith("int"):
                bits = int(name[3:])
                codes, scale, minimum = quantize_groups(numbers, bits)
                layout = GroupLayout(bits, has_minimum=minimum is not None, scale_dtype=scale.dtype.type)
                weight = layout.empty((HEIGHT, WIDTH), workers)
                fill_groups(weight, 0, codes, scale, minimum)
                widening, product = groups_parts(weight, x)
            else:
                weight = Half(numbers.astype(ml_dtypes.bfloat16 if name == "bfloat16" else np.float16), workers)
                widening, product = half_parts(weight, x)
            with workers.blas.limit(limits=1):  # also for one thread of Workers
                parts = [seconds(widening), seconds(product)]
                both = seconds(lambda weight=weight: weight.matmul(x))  # type: ignore[misc]
            speeds = [numbers.size / taken / 1e9 for taken in (*parts, sum(parts), both)]
            print(f"{name:10}{threads:>8}{speeds[0]:>16.1f}{speeds[1]:>15.1f}{speeds[2]:>14.1f}{speeds[3]:>8.1f}")


if __name__ == "__main__":
    main()
