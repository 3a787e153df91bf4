"""Copying weights to a GPU, through two small buffers however large the weights are.

A GPU can read page-locked ("pinned") host memory by DMA, without the processor. There are two such buffers: while the
GPU reads one, the host fills the other. Elements are sent in float32. The GPU rounds them to float16 at no cost.

float16 ends at 65,504; larger elements are refused before they are sent. Below 6.1e-5 its values are 6e-8 apart:
smaller elements are rounded to a multiple of that, and to 0 below 3e-8. Both cases are counted, because the file's
bfloat16 or float32 loses digits there.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from ..arrays import Array, Float
from .device import Device, to_host

STAGE = 2**21  # elements in a buffer: 8 MB
SCRATCH = 2**26  # bytes on the GPU: for a buffer in float32; later for the temporaries of a decode step
FLOAT16_OVERFLOW = 65520.0  # float32 from here on is rounded to infinity
FLOAT16_SMALLEST = 2.0**-14  # the smallest normal float16


def reserve(device: Device) -> None:
    """Grow CuPy's memory pool by SCRATCH bytes, once. Later temporaries come from the pool.

    The scores grow with the text. Without this the pool would ask the driver for a larger block every few tokens, and
    the GPU would wait.
    """
    device.xp.empty(SCRATCH, dtype=np.uint8)  # freed at once: it stays in the pool


class Staging:
    """The buffers for copies to one GPU, and counts of what float16 has lost.

    sent : the number of elements rounded to float16
    """

    def __init__(self, device: Device) -> None:
        self.device, self.cupy, self.sent = device, device.xp, 0
        memory = [self.cupy.cuda.alloc_pinned_memory(4 * STAGE) for _ in range(2)]
        self.buffers = [np.frombuffer(pinned, dtype=np.float32, count=STAGE) for pinned in memory]
        # Each is recorded after the GPU has read its buffer.
        self.read = [self.cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self.turn = 0
        self.small = self.cupy.zeros(2, dtype=np.int64)  # elements below FLOAT16_SMALLEST; those that became 0

    def send(self, pieces: Iterator[Float[np.ndarray, "..."]], shape: tuple[int, ...], dtype: str) -> Array:
        """An array on the GPU, with the float32 elements of all pieces in order."""
        array = self.cupy.empty(shape, dtype=dtype)
        place, size, start, filled = array.reshape(-1), prod(shape), 0, 0
        for piece in pieces:
            rest = piece.reshape(-1)
            while len(rest):
                if filled == 0:
                    self.turn = 1 - self.turn
                    self.read[self.turn].synchronize()
                part, rest = rest[: STAGE - filled], rest[STAGE - filled :]
                self.buffers[self.turn][filled : filled + len(part)] = part
                filled += len(part)
                if filled == STAGE or start + filled == size:
                    self.copy_buffer(place[start : start + filled])
                    start, filled = start + filled, 0
        assert start == size, f"expected {size} elements, got {start}"
        return array

    def copy_buffer(self, place: Array) -> None:
        """Start the copy of the current buffer to its place on the GPU, and the rounding."""
        wide = self.cupy.empty(place.shape, dtype=np.float32)
        stream = self.cupy.cuda.get_current_stream()
        wide.data.copy_from_host_async(self.buffers[self.turn].ctypes.data, wide.nbytes, stream)
        self.read[self.turn].record(stream)
        place[...] = wide
        if place.dtype == np.float16:
            self.sent += place.size
            small = (wide != 0) & (self.cupy.abs(wide) < FLOAT16_SMALLEST)
            self.small += self.cupy.stack([small.sum(), (small & (place == 0)).sum()])

    def finish(self) -> str:
        """Wait for all copies. Returns what float16 has lost, in one line; "" if nothing."""
        small, zeros = (int(count) for count in to_host(self.small))
        reserve(self.device)
        if small == 0:
            return ""
        return (
            f"float16: {small:,} of {self.sent:,} weights ({small / self.sent:.2%}) are below {FLOAT16_SMALLEST:.1e},"
            f" where it has fewer digits (off by 3e-8 at most); {zeros:,} of them became 0"
        )
