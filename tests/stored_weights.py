"""Weights in the storage formats of npllm/storage/, for tests."""

import ml_dtypes
import numpy as np

from npllm.devices import workers
from npllm.devices.workers import Workers
from npllm.storage import groups, packed
from npllm.storage.groups import GroupLayout, fill_groups, quantize_groups
from npllm.storage.packed import Half
from npllm.storage.stored import FORMATS, Stored, read_rows

WORKERS = [Workers(1), Workers(3)]
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# The offsets of the float16 scales in a block of each format.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}
SCALES |= {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": []}


def matrix(height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)


def pack(weight, kind, workers, group=32):
    """A weight in this storage format: "float16", "bfloat16", "int8" or "int4"."""
    if kind in HALVES:
        return Half(weight.astype(HALVES[kind]), workers)
    bits = {"int8": 8, "int4": 4}[kind]
    split = quantize_groups(weight, bits, group)
    layout = GroupLayout(bits, group, has_minimum=split.minimum is not None, scale_dtype=ml_dtypes.bfloat16)
    made = layout.empty(weight.shape, workers)
    fill_groups(made, 0, *split)
    return made


def shrink_tiles(monkeypatch):
    """Use tiles and blocks of a few rows, and split every product across threads, as with large weights."""
    monkeypatch.setattr(packed, "TILE", 4096)
    monkeypatch.setattr(groups, "ROWS", 16)
    monkeypatch.setattr(workers, "SHARED_FROM", 1)


def blocks_of(dtype: str, seed: int = 0, rows: int = 7, blocks: int = 3) -> np.ndarray:
    """Valid blocks: random bytes, except for the scales."""
    rng = np.random.default_rng(seed)
    storage = FORMATS[dtype]
    raw = rng.integers(0, 256, (rows * blocks, storage.bytes), dtype=np.uint8)
    for place in SCALES[dtype]:
        raw[:, place : place + 2] = rng.standard_normal((rows * blocks, 1)).astype(np.float16).view(np.uint8)
    if dtype == "MXFP4":
        raw[:, 0] %= 252  # with larger powers of two 6.0 is infinite
    return raw.reshape(rows, -1)


def read_all(stored: Stored) -> np.ndarray:
    """A whole tensor, decoded to float32."""
    return np.concatenate(list(read_rows(stored))).reshape(stored.shape)
