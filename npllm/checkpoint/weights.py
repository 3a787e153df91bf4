"""Loading the weights: how each is stored in memory, whether all of them fit, and reading them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from math import prod
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..devices.device import Device, free_bytes
from ..devices.memory import check_memory
from ..devices.transfer import SCRATCH, Staging
from ..devices.workers import Workers
from ..storage.columns import by_columns, has_short_rows, in_one_buffer
from ..storage.read_ahead import READERS, read_ahead
from ..storage.rows import row_groups
from ..storage.stored import PIECE, Stored, not_finite, read_rows, read_unchanged
from ..text.stderr import note
from .narrow import HALVES, QUANTIZED, Layout, destination, layout_for, narrowed, read_narrow, row_order
from .plan import Part
from .to_device import read_to_device

# With --dtype auto, a model with fewer elements becomes float32 (1 GB at most): BLAS needs 5 µs to distribute a small
# matrix over the cores, `Workers` 50.
NARROW_FROM = 2**28
ALONE_FROM = 2**23  # elements: smaller float32 matrices share a buffer, so that all of them are in large pages
BUFFERS = 8 * 4 * PIECE  # bytes: a piece as read, widened, and the temporaries in between


class Target(NamedTuple):
    """A weight: its parts in the files, and how it is stored in memory."""

    parts: Sequence[Part]
    shape: tuple[int, ...]
    layout: Layout | None  # None: a plain array
    by_columns: bool
    embeds: bool

    @property
    def nbytes(self) -> int:
        """Its size in memory; plain arrays count as float32."""
        return self.layout.nbytes(self.shape) if self.layout else 4 * prod(self.shape)

    def file_bytes(self, tensors: Mapping[str, Stored]) -> int:
        """The bytes that are read."""
        return sum(tensors[part.name].nbytes for part in self.parts)


def read_weights(
    plans: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    progress: bool,
    loops: bool = False,
) -> dict[str, Any]:
    """All weights by name, in the device's memory. `loops`: products on the CPU will be compiled loops.

    Raises
    ------
    ModelFileError : a weight has a NaN or an infinity, or gets one by rounding to float16
    NotEnoughMemoryError : they do not fit; detected before allocating
    """
    targets = targets_for(plans, tensors, device, dtype, loops)
    workers = Workers() if any(target.layout for target in targets.values()) else None
    check_fit(targets, device, dtype, workers)
    total = sum(target.file_bytes(tensors) for target in targets.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not progress, leave=False) as bar:
        if device.name == "cpu":
            return read_to_host(targets, tensors, dtype, workers, bar)
        return read_to_gpu(targets, tensors, device, dtype, workers, bar)


def targets_for(
    plans: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    loops: bool = False,
) -> dict[str, Target]:
    """How each weight is stored. Only on a CPU can it have the file's own width, or be stored by columns.

    The loops read row after row, and narrow weights faster than wide ones. Without them, BLAS is fastest for a small
    model, with float32 by columns.
    """
    on_cpu = device.name == "cpu"
    shapes = {name: weight_shape(parts) for name, parts in plans.items()}
    if dtype == "auto" and not loops and sum(prod(shape) for shape in shapes.values()) < NARROW_FROM:
        dtype = "float32"
    tied = "lm_head" not in plans and "score" not in plans
    targets = {}
    for name, parts in plans.items():
        shape, layout = shapes[name], None
        # The [in, out] matrices of GPT-2 cannot be read row by row.
        if (on_cpu or dtype in QUANTIZED) and not (parts[0].transposed and dtype == "auto"):
            layout = layout_for(shape, [tensors[part.name].dtype for part in parts], dtype, name)
        only_looked_up = name == "embed_positions" or (name == "embed_tokens" and not tied)
        columns = on_cpu and not loops and layout is None and has_short_rows(shape) and not only_looked_up
        targets[name] = Target(parts, shape, layout, columns, embeds=name == "embed_tokens")
    return targets


def check_fit(targets: Mapping[str, Target], device: Device, dtype: str, workers: Workers | None) -> None:
    """Refuse weights that do not fit, before they are allocated.

    The CPU holds READERS weights at a time in float32 besides the result. A GPU gets plain weights in pieces; weights
    in groups are read, laid out row by row, and sent.
    """
    weights = sum(target.nbytes for target in targets.values())
    copies, scratch = float32_copies(targets), workers.nbytes if workers else 0
    if device.name == "cpu":
        check_memory({"weights": weights, "buffers": READERS * BUFFERS + sum(copies[:READERS]) + scratch})
        return
    largest = max((target.nbytes for target in targets.values() if target.layout), default=0)
    check_memory({"buffers": BUFFERS + sum(copies[:1]) + scratch + 3 * largest})
    needed = {f"weights on {device.name}": weights // (2 if dtype == "float16" else 1), "buffers": SCRATCH}
    check_memory(needed, free_bytes(device.xp.zeros(1)), "take a smaller model, or --device cpu")


def float32_copies(targets: Mapping[str, Target]) -> list[int]:
    """The bytes of each temporary float32 copy of a tensor that is reordered while it is read, the largest first."""
    parts = [part for target in targets.values() for part in target.parts]
    shapes = [part.shape for part in parts if part.transposed or part.interleaved_heads]
    shapes += [target.shape for target in targets.values() if target.by_columns]
    return sorted((4 * prod(shape) for shape in shapes), reverse=True)


def read_to_host(
    targets: Mapping[str, Target],
    tensors: Mapping[str, Stored],
    dtype: str,
    workers: Workers | None,
    bar: "tqdm[Any]",
) -> dict[str, Any]:
    """All weights in the host's memory, read by several threads."""
    plain = {name: target.shape for name, target in targets.items() if target.layout is None}
    small = {name: shape for name, shape in plain.items() if len(shape) == 2 and prod(shape) < ALONE_FROM}
    buffers = in_one_buffer(small)

    def read(name: str) -> Any:
        return read_target(targets[name], tensors, dtype, workers, buffers.get(name))

    weights = {}
    with closing(read_ahead(read, targets, waiting=len(targets))) as arrays:
        for (name, target), array in zip(targets.items(), arrays, strict=True):
            weights[name] = array
            bar.update(target.file_bytes(tensors))
    return weights


def read_to_gpu(
    targets: Mapping[str, Target],
    tensors: Mapping[str, Stored],
    device: Device,
    dtype: str,
    workers: Workers | None,
    bar: "tqdm[Any]",
) -> dict[str, Any]:
    """All weights in the GPU's memory, read one by one; float16's losses are reported on stderr."""
    staging = Staging(device)
    plain = "float16" if dtype == "float16" else "float32"
    weights = {}
    for name, target in targets.items():
        if target.layout is None:
            weights[name] = read_to_device(target.shape, target.parts, tensors, staging, plain, bar)
        else:
            weights[name] = row_groups(read_target(target, tensors, dtype, workers), device.xp)
            bar.update(target.file_bytes(tensors))
    if lost := staging.finish():
        note(lost)
    return weights


def read_target(
    target: Target,
    tensors: Mapping[str, Stored],
    dtype: str,
    workers: Workers | None,
    out: np.ndarray | None = None,
) -> Any:
    """One weight in the host's memory.

    workers : required for a weight with a layout
    out : a float32 buffer for a plain weight; None to allocate one
    """
    if target.layout is None:
        if target.by_columns:
            return by_columns(read_weight(target.parts, tensors, dtype), target.embeds, out)
        return read_weight(target.parts, tensors, dtype, out)
    assert workers is not None
    if target.parts[0].transposed:
        return narrowed(read_weight(target.parts, tensors, dtype), target.layout, workers)
    return read_narrow(target.shape, target.parts, tensors, target.layout, workers)


def weight_shape(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of a weight: its parts are stacked along the rows."""
    if parts[0].transposed:
        return parts[0].shape[::-1]
    return (parts[-1].first + parts[-1].shape[0], *parts[0].shape[1:])


def read_weight(
    parts: Sequence[Part], tensors: Mapping[str, Stored], dtype: str, out: np.ndarray | None = None
) -> np.ndarray:
    """One weight in float32. Each part is read in pieces, which are widened, rounded to dtype, and put into their rows.

    out : the array to fill; None to allocate one

    Raises
    ------
    ModelFileError : it has a NaN or an infinity, or gets one by rounding to float16
    """
    weight = np.empty(weight_shape(parts), dtype=np.float32) if out is None else out
    for part in parts:
        stored, count = tensors[part.name], part.shape[0]
        place = weight.T if part.transposed else weight[part.first : part.first + count]
        order, row = row_order(part), 0
        if stored.dtype == "F32" and dtype not in HALVES and order is None and not part.transposed:
            read_unchanged(place, stored)
            continue
        for piece in read_rows(stored):
            with np.errstate(over="ignore"):  # infinities are detected below
                rounded = piece.astype(HALVES[dtype]).astype(np.float32) if dtype in HALVES else piece
            if not (np.isfinite(rounded.min()) and np.isfinite(rounded.max())):
                raise not_finite(stored, dtype if np.isfinite(piece).all() else "")
            place[destination(part, order, row, len(rounded))] = rounded.reshape(-1, *place.shape[1:])
            row += len(rounded)
    return weight
