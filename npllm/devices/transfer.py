"""Weights on their way to a GPU: through two small buffers, however large they are.

A GPU reads the host's memory by itself, without the processor, where that memory is page-locked ("pinned"). So there
are two such buffers: while the GPU reads one, the next numbers are written to the other. They are sent in float32 and
rounded to float16 over there, where that takes no time.

float16 goes up to 65,504, which is checked before. Below 6.1e-5 its numbers lie 6e-8 apart: what is smaller is rounded
to such a step, and to 0 below 3e-8. Both are counted, since it is the file's bfloat16 or float32 that loses.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from ..arrays import Array, Float
from .device import Device, to_host

STAGE = 2**21  # numbers in a buffer: 8 MB
SCRATCH = 2**26  # bytes on the GPU: for a buffer's numbers as they come; later for the temporaries of a decode step
FLOAT16_OVERFLOW = 65520.0  # from here on a number is rounded to infinity
FLOAT16_SMALLEST = 2.0**-14  # its smallest normal number


def reserve(device: Device) -> None:
    """Have CuPy's pool ask the driver for SCRATCH once. Temporaries are parts of it, from then on.

    The scores grow with the text, and the pool would ask for a larger piece every few tokens, for which a GPU waits.
    """
    device.xp.empty(SCRATCH, dtype=np.uint8)  # free again at once, and the pool's


class Staging:
    """The way to one GPU: the buffers, and what was lost on it.

    sent : how many numbers were rounded to float16
    """

    def __init__(self, device: Device) -> None:
        self.device, self.cupy, self.sent = device, device.xp, 0
        memory = [self.cupy.cuda.alloc_pinned_memory(4 * STAGE) for _ in range(2)]
        self.buffers = [np.frombuffer(pinned, dtype=np.float32, count=STAGE) for pinned in memory]
        self.read = [self.cupy.cuda.Event(disable_timing=True) for _ in range(2)]  # the GPU has read the buffer
        self.turn = 0
        self.small = self.cupy.zeros(2, dtype=np.int64)  # less exact, and 0, of those sent

    def send(self, pieces: Iterator[Float[np.ndarray, "..."]], shape: tuple[int, ...], dtype: str) -> Array:
        """An array on the GPU, of the float32 numbers that the pieces together hold, one after the other."""
        array = self.cupy.empty(shape, dtype=dtype)
        place, size, start, filled = array.reshape(-1), prod(shape), 0, 0
        for piece in pieces:
            numbers = piece.reshape(-1)
            while len(numbers):
                if filled == 0:
                    self.turn = 1 - self.turn
                    self.read[self.turn].synchronize()
                some, numbers = numbers[: STAGE - filled], numbers[STAGE - filled :]
                self.buffers[self.turn][filled : filled + len(some)] = some
                filled += len(some)
                if filled == STAGE or start + filled == size:
                    self.pass_on(place[start : start + filled])
                    start, filled = start + filled, 0
        assert start == size, f"expected {size} numbers, got {start}"
        return array

    def pass_on(self, place: Array) -> None:
        """What is in the buffer goes to its place, when the GPU comes to it."""
        wide = self.cupy.empty(place.shape, dtype=np.float32)
        stream = self.cupy.cuda.get_current_stream()
        wide.data.copy_from_host_async(self.buffers[self.turn].ctypes.data, wide.nbytes, stream)
        self.read[self.turn].record(stream)
        place[...] = wide
        if place.dtype == np.float16:
            self.sent += place.size
            rounded = (wide != 0) & (self.cupy.abs(wide) < FLOAT16_SMALLEST)
            self.small += self.cupy.stack([rounded.sum(), (rounded & (place == 0)).sum()])

    def finish(self) -> str:
        """Wait until all is there, and say what float16 cost, in one line; "" where nothing."""
        small, zeros = (int(count) for count in to_host(self.small))
        reserve(self.device)
        if small == 0:
            return ""
        return (
            f"float16: {small:,} of {self.sent:,} weights ({small / self.sent:.2%}) are below {FLOAT16_SMALLEST:.1e},"
            f" where it has fewer digits (off by 3e-8 at most); {zeros:,} of them became 0"
        )
