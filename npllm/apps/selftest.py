"""Does a device compute what the CPU computes in float32, and how near is it to the speed of its memory?

For the machine that the tests do not have: a GPU. Both sides see the same text. The CPU goes through it in one pass,
with the weights as they are in the file and without a KV cache, which is what all tests are about; the device computes
as in generation, with the cache.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10). How near is near enough: inspect/compare.py.
"""

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, is_cupy_array

from ..arrays import array_namespace
from ..cache import empty_cache
from ..devices.device import Device, gpu_name, to_host
from ..inspect.compare import TOLERANCES, Difference, compare
from ..inspect.runs import Run, from_run
from ..lm import LM, forward, lm_head, transform
from ..loop import generate
from ..version import __version__
from .bench import endless
from .chat import common_prefix
from .speed import cores, decode, decode_read, decode_row, filled_cache, numbers_to_read, read_bandwidth

PROMPT = "The capital of France is"
# SmolLM2-135M-Instruct's answer by transformers, in float32: " Paris.\n\nThe answer is: 2018". The best two logits are
# nowhere nearer than 0.2, which no rounding of the weights to float16 makes up for.
GOLDEN_IDS = (504, 3575, 282, 4649, 314)
GOLDEN = (7042, 30, 198, 198, 504, 2988, 314, 42)
STEP = "logits of a step"  # without taps, as generation computes them
DOUBT = 4.0  # so many times the logits' largest difference may lie between two tokens that are taken for one another


class Side(NamedTuple):
    """What one device computed."""

    values: dict[str, np.ndarray]  # every tapped value, and the logits of a step
    made: list[int]  # the tokens that it goes on with
    gaps: list[float]  # for each of them, how far the best two logits are apart


class Tokens(NamedTuple):
    """How two sides go on."""

    same: int  # so many tokens are the same, from the first on
    gap: float | None  # at the first that differs, how far the reference's best two logits are apart; None: all same
    doubt: float  # up to this distance, rounding decides

    @property
    def passed(self) -> bool:
        """Whether they are the same, up to where rounding decides."""
        return self.gap is None or self.gap <= self.doubt


def compute(lm: LM, ids: Sequence[int], new_tokens: int, use_cache: bool) -> Side:
    """One side: all values of the text, and how it goes on."""
    values = from_run(lm, Run(use_cache=use_cache), ids).values
    values[STEP] = step_logits(lm, ids) if use_cache else values["logits"][-1:]
    made = generate(endless(lm), ids, max_new_tokens=new_tokens, use_cache=use_cache).ids
    on_device = array_namespace(lm.weights.norm).asarray([*ids, *made[:-1]], device=device(lm.weights.norm))
    logits = to_host(forward(on_device, lm)[0])[len(ids) - 1 :]
    best = np.sort(logits, axis=-1)[:, -2:]
    return Side(values, made, (best[:, 1] - best[:, 0]).tolist())


def step_logits(lm: LM, ids: Sequence[int]) -> np.ndarray:
    """The logits after the last token, which comes in by itself, as every one does in generation."""
    like = lm.weights.norm
    on_device = array_namespace(like).asarray(list(ids), device=device(like))
    cache = empty_cache(lm.config, len(ids), like=like)
    for part in (on_device[:-1], on_device[-1:]):
        hidden, _ = transform(part, lm, cache)
    return to_host(lm_head(hidden[-1:, :], lm))


def differences(reference: Side, side: Side, dtype: str) -> list[Difference]:
    """The table: every step of the pass, in order."""
    return compare(reference.values, side.values, TOLERANCES[dtype])


def same_tokens(reference: Side, side: Side, rows: Sequence[Difference]) -> Tokens:
    """Compare how they go on."""
    same = common_prefix(reference.made, side.made)
    largest = max(row.max_abs for row in rows if row.name in ("logits", STEP))
    return Tokens(same, None if same == len(side.made) else reference.gaps[same], DOUBT * largest)


def golden(side: Side) -> bool:
    """Whether the default model goes on as it does elsewhere."""
    return tuple(side.made[: len(GOLDEN)]) == GOLDEN


def speed(lm: LM, ids: Sequence[int], new_tokens: int, rounds: int = 3) -> dict[str, Any]:
    """Seconds per token beside what the memory gives; see `apps.speed.decode_row`."""
    cache = filled_cache(lm, ids, new_tokens + 1)
    decode(lm, ids, cache, new_tokens)  # not counted: kernels are compiled
    seconds = [decode(lm, ids, cache, new_tokens)[0] for _ in range(rounds)]
    bandwidth = read_bandwidth(numbers_to_read(lm.weights.norm), cores())
    row = decode_row(lm, seconds, decode_read(lm, len(ids), new_tokens), bandwidth)
    return row | {"bandwidth": bandwidth}


def versions(lm: LM, place: Device) -> dict[str, str]:
    """What it was run with."""
    told = {
        "npllm": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "device": place.name,
    }
    if is_cupy_array(lm.weights.norm):
        runtime = place.xp.cuda.runtime
        capability = place.xp.cuda.Device().compute_capability
        told["device"] = f"{place.name}: {gpu_name(place)}, compute capability {capability[:-1]}.{capability[-1:]}"
        told["cupy"] = place.xp.__version__
        told["cuda"] = f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}"
    return told
