"""How fast the loop is, and how fast it could be: the time per token compared with the bytes it must read.

Decoding one token reads every weight and all cached keys and values once, and reuses none of them. So its time is
bounded by the memory bandwidth,

    seconds per token >= (bytes of the weights + bytes of the KV cache) / memory bandwidth in bytes per second

and the fraction of the bandwidth that is reached shows how much can still be gained. Prefill is different: each weight
serves all tokens of the prompt, and the limit is arithmetic, here that of a bare `np.matmul`.

A machine's speed varies from minute to minute with its other load. So the sides of a comparison alternate, the
bandwidth is measured in the same rounds, and the median over the rounds is reported.

A function that reads a clock takes it as an argument (except `load_once`, which runs in its own process).

Source: "Speeding Up Generation by Caching Keys and Values"; Williams, Waterman and Patterson 2009, "Roofline: an
insightful visual performance model for multicore architectures".
"""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from array_api_compat import device

from ..arrays import Array, array_namespace
from ..cache import CACHE_DTYPES, Cache, empty_cache, kv_cache_bytes
from ..checkpoint.gguf_parts import parts_of
from ..checkpoint.hub import find
from ..checkpoint.load import load
from ..devices.device import free_bytes, to_host
from ..devices.dtypes import dtype_like
from ..devices.memory import check_memory, peak_bytes, read_numbers
from ..devices.threads import set_threads, threads
from ..errors import UsageError
from ..families import family_of
from ..families.work import arrays_in, read_by
from ..inspect.cost import costs, total
from ..lm import LM
from ..loop import steps
from .bench import endless

T = TypeVar("T")
Clock = Callable[[], float]


class Read(NamedTuple):
    """The bytes read for one token."""

    weights: float
    kv_cache: float


def in_turn(sides: Mapping[str, Callable[[], T]], rounds: int) -> Iterator[tuple[str, T]]:
    """The results of all sides called once, then all of them again, and so on: a slow minute affects all alike.

    >>> list(in_turn({"a": lambda: 1, "b": lambda: 2}, rounds=2))
    [('a', 1), ('b', 2), ('a', 1), ('b', 2)]
    """
    return ((name, run()) for _ in range(rounds) for name, run in sides.items())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median, minimum and maximum of the rounds, and the rounds themselves.

    >>> spread([3.0, 1.0, 2.0, 9.0])
    {'median': 2.5, 'least': 1.0, 'most': 9.0, 'rounds': [3.0, 1.0, 2.0, 9.0]}
    """
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": list(values)}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bandwidth_buffer(like: Array) -> Array:
    """The buffer that `read_bandwidth` reads: 1 GiB or an eighth of the free memory, to exceed a processor's caches."""
    size = min(2**30, (free_bytes(like) or 2**33) // 8)
    xp = array_namespace(like)
    return xp.ones(max(size // 4, 1), dtype=xp.float32, device=device(like))


def read_bandwidth(buffer: Array, threads: int, repeat: int = 3, clock: Clock = time.perf_counter) -> float:
    """The read bandwidth in bytes per second: an array reduced by a plain `max`, the best of several runs.

    It is NumPy's `max`, with one thread for each core: the cheapest operation on an element once it is read. On a GPU
    it is CuPy's, which needs no threads.
    """
    parts = np.array_split(buffer, threads) if isinstance(buffer, np.ndarray) else [buffer]
    largest = array_namespace(buffer).max
    best = float("inf")
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(repeat):
            started = clock()
            for found in list(pool.map(largest, parts)):
                to_host(found)  # a GPU is done only when its result has arrived
            best = min(best, clock() - started)
    return 4 * prod(buffer.shape) / best


def random_ids(lm: LM, tokens: int) -> list[int]:
    """A prompt for timing, always the same."""
    return [int(i) for i in np.random.default_rng(0).integers(0, lm.config.vocab_size, tokens)]


def check_context(lm: LM, tokens: int, new_tokens: int) -> None:
    """Raise UsageError unless the prompt, the untimed token and the timed tokens fit into the context."""
    limit = lm.config.max_position_embeddings - 1
    if tokens + new_tokens > limit:
        raise UsageError(
            f"--context and --new-tokens: expected at most {limit} together, one less than the model's context, got"
            f" {tokens} and {new_tokens}"
        )


def filled_cache(lm: LM, ids: Sequence[int], new_tokens: int, dtype: str = "float32") -> Cache:
    """A KV cache that holds the ids, with capacity for the tokens to be timed."""
    like, capacity = lm.weights.norm, len(ids) + new_tokens
    check_memory({"KV cache": kv_cache_bytes(lm.config, capacity, CACHE_DTYPES[dtype])}, free_bytes(like))
    cache = empty_cache(lm.config, capacity, like=like, dtype=dtype_like(dtype, like))
    for _ in steps(endless(lm), ids, max_new_tokens=1, cache=cache):
        pass
    return cache


def decode(
    lm: LM, ids: Sequence[int], cache: Cache, new_tokens: int, clock: Clock = time.perf_counter
) -> tuple[float, list[int]]:
    """Seconds per token for `new_tokens` tokens after `ids`, which the cache holds; and the tokens.

    One untimed token is made first, to wake the threads. End tokens are ignored.
    """
    cache["length"] = len(ids)  # forgets what the last round added
    made = steps(endless(lm), ids, max_new_tokens=new_tokens + 1, cache=cache)
    tokens = [next(made).id]
    started = clock()
    tokens += [step.id for step in made]
    return (clock() - started) / new_tokens, tokens


def decode_read(lm: LM, context: int, new_tokens: int, cache_dtype: str = "float32") -> Read:
    """The bytes read per token, averaged over `new_tokens` tokens made as in `decode`.

    Every matrix and norm is read once, one row of the embeddings, and all keys and values of the preceding tokens. The
    first timed token has `context` preceding tokens, each further one has one more.
    """
    first, last = (total(costs(lm.config, lm.weights, 1, past)) for past in (context, context + new_tokens - 1))
    cached = (first.cache_bytes + last.cache_bytes) / 2  # as if they were float32
    return Read((first.weight_bytes + last.weight_bytes) / 2, cached * CACHE_DTYPES[cache_dtype] / 4)


def decode_row(lm: LM, seconds: Sequence[float], read: Read, bandwidth: float) -> dict[str, Any]:
    """The figures for one dtype of the weights.

    seconds : per token, of each round
    bandwidth : of the memory, in bytes per second
    """
    row = spread(seconds)
    per_second = (read.weights + read.kv_cache) / row["median"]
    return {
        "seconds_per_token": row,
        "tokens_per_second": 1 / row["median"],
        "weight_bytes_per_token": read.weights,
        "kv_cache_bytes_per_token": read.kv_cache,
        "read_bytes_per_second": per_second,
        "bandwidth_share": per_second / bandwidth,
        **sizes(lm),
    }


def sizes(lm: LM) -> dict[str, Any]:
    """The number of parameters, and their bytes in memory by storage dtype; each matrix is counted once."""
    # By identity, because with tied embeddings the LM head is the embedding matrix.
    arrays = {id(array): array for array in arrays_in(lm.weights)}
    storages: dict[str, int] = {}
    for array in arrays.values():
        storages[str(array.dtype)] = storages.get(str(array.dtype), 0) + array.nbytes
    parameters = sum(prod(array.shape) for array in arrays.values())
    return {
        "parameters": parameters,
        "weight_bytes": sum(storages.values()),
        "bytes_per_weight": sum(storages.values()) / parameters,
        "storages": storages,
    }


def prefill(lm: LM, ids: Sequence[int], clock: Clock = time.perf_counter) -> float:
    """Seconds from a prompt to the first token after it."""
    made = steps(endless(lm), ids, max_new_tokens=1)
    started = clock()
    for _ in made:
        pass
    return clock() - started


def product_flops(lm: LM, tokens: int) -> int:
    """The FLOPs of the matrix products in a prefill, two for each multiply-add.

    They are every weight matrix of the blocks for every token (of the experts only the chosen ones), the LM head for
    the last token, and in attention two products for each pair of a query and a key that it can see.
    """
    c, w = lm.config, lm.weights
    parts = [(part, block) for i, block in enumerate(w.layers) for part in family_of(c).work(c, i, block, 1, 1)]
    arrays = [array for part, block in parts for array in read_by(part, block)]
    matrices = sum(prod(array.shape) for array in arrays if len(array.shape) == 2)
    windows = [c.window(layer) or tokens for layer in range(c.num_hidden_layers)]
    pairs = sum(min(seen, window) for window in windows for seen in range(1, tokens + 1))
    width = c.num_attention_heads * c.head_dim
    return 2 * tokens * matrices + 2 * c.vocab_size * c.hidden_size + 4 * width * pairs


def bare_matmul(lm: LM, tokens: int, flops: int, clock: Clock = time.perf_counter) -> float:
    """FLOP/s of a bare `np.matmul` in float32, measured over about `flops` FLOPs.

    It repeatedly multiplies [tokens, D] by a matrix of the shape of a block's largest.
    """
    xp = array_namespace(lm.weights.norm)
    height, width = max((array.shape for array in arrays_in(lm.weights.layers[0])), key=prod)
    place = device(lm.weights.norm)
    x, matrix = (xp.ones(shape, dtype=xp.float32, device=place) for shape in ((tokens, width), (height, width)))
    one = 2 * tokens * height * width
    times = max(1, round(flops / one))
    to_host((x @ matrix.T)[0, 0])  # warm-up
    started = clock()
    for _ in range(times):
        y = x @ matrix.T
    to_host(y[0, 0])
    return times * one / (clock() - started)


def prefill_row(lm: LM, tokens: int, seconds: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """The figures for one dtype of the weights.

    seconds : of each round
    bare : FLOP/s of a bare matrix product, in the same rounds
    """
    flops = product_flops(lm, tokens)
    row = spread(seconds)
    return {
        "seconds": row,
        "tokens_per_second": tokens / row["median"],
        "flops": flops,
        "flops_per_second": flops / row["median"],
        "matmul_flops_per_second": statistics.median(bare),
        "matmul_share": statistics.median(flops / s / b for s, b in zip(seconds, bare, strict=True)),
        **sizes(lm),
    }


def load_once(options: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The time and memory of loading a model and making one token. Meant for a fresh process, whose peak it reports.

    options : the arguments of `load`
    tokens : of the prompt
    """
    before = resident_bytes()
    started = time.perf_counter()
    lm = load(**options)
    loaded = time.perf_counter()
    for _ in steps(endless(lm), random_ids(lm, tokens), max_new_tokens=1):
        pass
    finished = time.perf_counter()
    return {
        "load_seconds": loaded - started,
        "first_token_seconds": finished - started,
        "resident_bytes_before": before,
        "resident_bytes": resident_bytes(),
        "peak_bytes": peak_bytes(),
        **sizes(lm),
    }


def load_in_new_process(options: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """`load_once` in a fresh process; its errors are raised here."""
    with ProcessPoolExecutor(1, get_context("spawn"), prepare, (threads(),)) as pool:
        return pool.submit(load_once, options, tokens).result()


def prepare(threads: int) -> None:
    """Leave Ctrl-C to the parent process, which reports it once, and compute with as many threads as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_threads(threads)


def load_row(rounds: Sequence[Mapping[str, Any]], file_bytes: int) -> dict[str, Any]:
    """The figures of several loads: the spread of the times, the maximum of the memory."""
    last = rounds[-1]
    row: dict[str, Any] = {name: spread([r[name] for r in rounds]) for name in ("load_seconds", "first_token_seconds")}
    for name in ("resident_bytes_before", "resident_bytes", "peak_bytes"):
        known = [r[name] for r in rounds if r[name] is not None]
        row[name] = max(known) if known else None
    row["file_bytes"] = file_bytes
    row["peak_share_of_file"] = None if row["peak_bytes"] is None else row["peak_bytes"] / file_bytes
    return row | {name: last[name] for name in ("parameters", "weight_bytes", "bytes_per_weight", "storages")}


def resident_bytes() -> int | None:
    """The resident memory of this process; None if the system does not report it."""
    status = read_numbers("/proc/self/status")
    return status["VmRSS:"] * 1024 if "VmRSS:" in status else None


def model_file_bytes(name: str | None, revision: str | None, cache_dir: str | None, offline: bool) -> int:
    """The size of a model's weight files on disk."""
    path = find(name, revision, cache_dir, offline)
    files: list[Path] = sorted(path.glob("*.safetensors")) if path.is_dir() else parts_of(path)
    return sum(file.stat().st_size for file in files)
