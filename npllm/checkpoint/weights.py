"""The weights of a model from its files into memory: what storage each gets, whether all fit, and reading them."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from math import prod
from typing import Any

import numpy as np
from tqdm import tqdm

from ..devices.device import Device, free_bytes
from ..devices.memory import check_memory
from ..devices.threads import Workers
from ..devices.transfer import SCRATCH, Staging
from ..storage.packed import by_columns, has_short_rows, rooms
from ..storage.rows import row_groups
from ..storage.stored import PIECE, READERS, Stored, not_finite, read_ahead, read_as_it_is, read_rows
from .narrow import HALVES, NARROW_FROM, QUANTIZED, Storage, narrowed, read_narrow, row_order, storage_for
from .plan import Part
from .to_device import read_to_device

ALONE_FROM = 2**23  # numbers: smaller float32 matrices share a piece of memory, so that their ends have large pages too


def read_weights(
    plans: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    progress: bool,
) -> dict[str, Any]:
    """All weights by name, read into memory that is known to be there: on the CPU a few at a time, by threads."""
    shapes = {ours: weight_shape(parts) for ours, parts in plans.items()}
    if dtype == "auto" and sum(prod(shape) for shape in shapes.values()) < NARROW_FROM:
        dtype = "float32"
    storages: dict[str, Storage | None] = {}
    for ours, parts in plans.items():
        formats = [tensors[part.name].dtype for part in parts]
        storages[ours] = (
            storage_for(shapes[ours], formats, dtype) if device.name == "cpu" or dtype in QUANTIZED else None
        )
        if parts[0].transposed and dtype == "auto":  # GPT-2's [in, out] cannot be read row by row
            storages[ours] = None
    sizes = {name: kept.nbytes(shapes[name]) if kept else 4 * prod(shapes[name]) for name, kept in storages.items()}
    workers = Workers() if any(storages.values()) else None
    buffers = 8 * 4 * PIECE  # a piece as read, widened, and what is in between
    together = [part.shape for parts in plans.values() for part in parts if part.transposed or part.interleaved_heads]
    if device.name == "cpu":
        together += [shapes[name] for name, kept in storages.items() if kept is None and has_short_rows(shapes[name])]
    twice = sorted((4 * prod(shape) for shape in together), reverse=True)  # a second time, in another order
    if device.name == "cpu":
        buffers = READERS * buffers + sum(twice[:READERS]) + (workers.nbytes if workers else 0)
        check_memory({"weights": sum(sizes.values()), "buffers": buffers})
    else:  # a weight goes there in pieces
        narrower = 2 if dtype == "float16" else 1
        there = {f"weights on {device.name}": sum(sizes.values()) // narrower, "buffers": SCRATCH}
        largest = max((sizes[name] for name, kept in storages.items() if kept), default=0)  # read, by rows, and sent
        check_memory({"buffers": buffers + sum(twice[:1]) + (workers.nbytes if workers else 0) + 3 * largest})
        check_memory(there, free_bytes(device.xp.zeros(1)), "take a smaller model, or --device cpu")

    tied = "lm_head" not in plans and "score" not in plans
    wide = {name: shape for name, shape in shapes.items() if storages[name] is None and len(shape) == 2}
    small = {name: shape for name, shape in wide.items() if prod(shape) < ALONE_FROM}
    room = rooms(small) if device.name == "cpu" else {}

    def read(ours: str) -> Any:
        parts, storage = plans[ours], storages[ours]
        if storage is None or workers is None:
            only_looked_up = ours == "embed_positions" or (ours == "embed_tokens" and not tied)
            if only_looked_up or not has_short_rows(shapes[ours]):
                return read_weight(parts, tensors, dtype, room.get(ours))
            return by_columns(read_weight(parts, tensors, dtype), ours == "embed_tokens", room.get(ours))
        if parts[0].transposed:
            return narrowed(read_weight(parts, tensors, dtype), storage, workers)
        return read_narrow(shapes[ours], parts, tensors, storage, workers)

    file_bytes = {ours: sum(tensors[part.name].nbytes for part in parts) for ours, parts in plans.items()}
    total = sum(file_bytes.values())
    arrays: dict[str, Any] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress) as bar:
        if device.name == "cpu":
            with closing(read_ahead(read, plans, waiting=len(plans))) as weights:
                for ours, weight in zip(plans, weights, strict=True):
                    arrays[ours] = weight
                    bar.update(file_bytes[ours])
        else:
            staging = Staging(device)
            for ours, parts in plans.items():
                if storages[ours] is not None:
                    arrays[ours] = row_groups(read(ours), device.xp)
                    bar.update(file_bytes[ours])
                    continue
                plain = "float16" if dtype == "float16" else "float32"
                arrays[ours] = read_to_device(shapes[ours], parts, tensors, staging, plain, bar)
            if lost := staging.finish():
                print(lost, file=sys.stderr)
    return arrays


def weight_shape(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a weight: its parts, one below the other."""
    if parts[0].transposed:
        return parts[0].shape[::-1]
    return (parts[-1].first + parts[-1].shape[0], *parts[0].shape[1:])


def read_weight(
    parts: Sequence[Part], tensors: Mapping[str, Stored], dtype: str, room: np.ndarray | None = None
) -> np.ndarray:
    """One weight in float32: each part is read, widened, rounded to dtype, and put into its rows, a piece at a time.

    room : where to put it; None for memory of its own

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    weight = np.empty(weight_shape(parts), dtype=np.float32) if room is None else room
    for part in parts:
        stored, count = tensors[part.name], part.shape[0]
        place = weight.T if part.transposed else weight[part.first : part.first + count]
        order, row = row_order(part), 0
        if stored.dtype == "F32" and dtype not in HALVES and order is None and not part.transposed:
            read_as_it_is(place, stored)
            continue
        for piece in read_rows(stored):
            with np.errstate(over="ignore"):  # an infinity is found below
                rounded = piece.astype(HALVES[dtype]).astype(np.float32) if dtype in HALVES else piece
            if not (np.isfinite(rounded.min()) and np.isfinite(rounded.max())):
                raise not_finite(stored, dtype if np.isfinite(piece).all() else "")
            rows = slice(row, row + len(rounded))
            place[rows if order is None else order[rows]] = rounded.reshape(-1, *place.shape[1:])
            row += len(rounded)
    return weight
