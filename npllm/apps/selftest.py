"""Whether a device computes what the CPU computes in float32, and how close it comes to its memory bandwidth.

It is meant for hardware that the tests do not have: a GPU. Both sides process the same text. The CPU does so in one
pass, with the weights as stored in the file and no KV cache, the case that the tests cover. The device computes as in
generation, with the cache.

Source: "Speeding Up Generation by Caching Keys and Values" (Figure 3-10). The tolerances are in inspect/compare.py.
"""

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from ..arrays import array_namespace
from ..cache import empty_cache
from ..devices.device import Device, gpu_name, to_host
from ..inspect.compare import TOLERANCES, Difference, compare
from ..inspect.runs import Run, from_run
from ..lm import LM, forward, lm_head, transform
from ..version import __version__
from .bench import endless
from .calls import generate
from .chat import common_prefix
from .speed import bandwidth_buffer, cores, decode, decode_read, decode_row, filled_cache, read_bandwidth

PROMPT = "The capital of France is"
# The continuation of SmolLM2-135M-Instruct in transformers, in float32: " Paris.\n\nThe answer is: 2018". The best two
# logits are at least 0.2 apart, more than rounding the weights to float16 can change.
GOLDEN_IDS = (504, 3575, 282, 4649, 314)
GOLDEN = (7042, 30, 198, 198, 504, 2988, 314, 42)
STEP = "logits of a step"  # without taps, as generation computes them
MARGIN = 4.0  # rounding may swap two tokens whose logits are up to this multiple of the largest logit error apart


class Side(NamedTuple):
    """What one device computed."""

    values: dict[str, np.ndarray]  # every tapped value, and the logits of a step
    made: list[int]  # the generated tokens
    gaps: list[float]  # for each of them, the difference of the best two logits


class Tokens(NamedTuple):
    """How far the generated tokens of two sides agree."""

    same: int  # the length of their common prefix
    gap: float | None  # the difference of the reference's best two logits at the first mismatch; None: no mismatch
    margin: float  # up to this difference, rounding decides

    @property
    def passed(self) -> bool:
        """Whether the tokens agree, except where rounding decides."""
        return self.gap is None or self.gap <= self.margin


def compute(lm: LM, ids: Sequence[int], new_tokens: int, use_cache: bool) -> Side:
    """One side: all values of the pass over the text, and the tokens generated after it."""
    values = from_run(lm, Run(use_cache=use_cache), ids).values
    values[STEP] = step_logits(lm, ids) if use_cache else values["logits"][-1:]
    made = generate(endless(lm), ids, max_new_tokens=new_tokens, use_cache=use_cache).ids
    on_device = array_namespace(lm.weights.norm).asarray([*ids, *made[:-1]], device=device(lm.weights.norm))
    logits = to_host(forward(on_device, lm)[0])[len(ids) - 1 :]
    best = np.sort(logits, axis=-1)[:, -2:]
    return Side(values, made, (best[:, 1] - best[:, 0]).tolist())


def step_logits(lm: LM, ids: Sequence[int]) -> np.ndarray:
    """The logits after the last token, computed in a step of its own, as in generation."""
    like = lm.weights.norm
    on_device = array_namespace(like).asarray(list(ids), device=device(like))
    cache = empty_cache(lm.config, len(ids), like=like)
    for part in (on_device[:-1], on_device[-1:]):
        hidden, _ = transform(part, lm, cache, total_length=len(ids))
    return to_host(lm_head(hidden[-1:, :], lm))


def differences(reference: Side, side: Side, dtype: str) -> list[Difference]:
    """The differences at every step of the pass, in order."""
    return compare(reference.values, side.values, TOLERANCES[dtype])


def same_tokens(reference: Side, side: Side, rows: Sequence[Difference]) -> Tokens:
    """How far the generated tokens agree."""
    same = common_prefix(reference.made, side.made)
    largest = max(row.max_abs for row in rows if row.name in ("logits", STEP))
    return Tokens(same, None if same == len(side.made) else reference.gaps[same], MARGIN * largest)


def golden(side: Side) -> bool:
    """Whether the default model generates its known tokens."""
    return tuple(side.made[: len(GOLDEN)]) == GOLDEN


def speed(lm: LM, ids: Sequence[int], new_tokens: int, rounds: int = 3) -> dict[str, Any]:
    """Seconds per token, compared with the memory bandwidth; see `apps.speed.decode_row`."""
    cache = filled_cache(lm, ids, new_tokens + 1)
    decode(lm, ids, cache, new_tokens)  # warm-up: kernels are compiled
    seconds = [decode(lm, ids, cache, new_tokens)[0] for _ in range(rounds)]
    bandwidth = read_bandwidth(bandwidth_buffer(lm.weights.norm), cores())
    row = decode_row(lm, seconds, decode_read(lm, len(ids), new_tokens), bandwidth)
    return row | {"bandwidth": bandwidth}


def versions(place: Device) -> dict[str, str]:
    """The versions of the software and hardware in use."""
    found = {
        "npllm": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "device": place.name,
    }
    if place.name != "cpu":
        runtime = place.xp.cuda.runtime
        capability = place.xp.cuda.Device().compute_capability
        found["device"] = f"{place.name}: {gpu_name(place)}, compute capability {capability[:-1]}.{capability[-1:]}"
        found["cupy"] = place.xp.__version__
        found["cuda"] = f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}"
    return found
