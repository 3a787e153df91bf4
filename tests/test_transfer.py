"""Copying weights to a GPU, tested on the host: NumPy with a log stands in for CuPy. test_cuda.py uses CuPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.devices import transfer
from npllm.devices.device import Device
from npllm.devices.transfer import FLOAT16_OVERFLOW, FLOAT16_SMALLEST, Staging


class DeviceArray(np.ndarray):
    """A stand-in for an array on the device."""

    @property
    def data(self):
        """Memory that can be copied to, as in CuPy."""
        return SimpleNamespace(copy_from_host_async=lambda pointer, size, stream: stream.copy(self, pointer, size))


class Stream:
    """A stream that copies immediately and logs its calls in order."""

    def __init__(self):
        self.log = []

    def copy(self, array, pointer, size):
        source = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * (size // 4)).from_address(pointer))
        self.log.append("copy")
        array[...] = source


class Event:
    """An event that logs when it is recorded and waited for."""

    def __init__(self, stream):
        self.stream, self.recorded = stream, 0

    def record(self, stream):
        self.recorded += 1
        self.stream.log.append(f"record {id(self)}")

    def synchronize(self):
        self.stream.log.append(f"wait {id(self)}")


def numpy_device():
    """The part of CuPy that `Staging` needs."""
    stream = Stream()
    cuda = SimpleNamespace(
        alloc_pinned_memory=lambda size: bytearray(size),
        Event=lambda disable_timing: Event(stream),
        get_current_stream=lambda: stream,
    )
    xp = SimpleNamespace(
        cuda=cuda,
        empty=lambda shape, dtype: np.empty(shape, dtype=dtype).view(DeviceArray),
        zeros=np.zeros,
        abs=np.abs,
        stack=np.stack,
    )
    return Device("cuda:0", xp), stream


@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8), stage=st.integers(1, 50))
def test_all_numbers_arrive_in_their_order(pieces, stage):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "STAGE", stage)
        staging = Staging(numpy_device()[0])
        numbers = np.arange(sum(pieces), dtype=np.float32)
        parts = iter(np.split(numbers, np.cumsum(pieces)[:-1]))
        np.testing.assert_array_equal(staging.send(parts, (1, len(numbers)), "float32"), numbers[None])
        np.testing.assert_array_equal(staging.send(iter([numbers[:1]]), (1,), "float32"), [0.0])


def test_a_buffer_is_written_to_only_after_it_was_read(monkeypatch):
    """Before filling a buffer, staging waits for the event recorded after the buffer's last copy."""
    monkeypatch.setattr(transfer, "STAGE", 4)
    device, stream = numpy_device()
    staging = Staging(device)
    staging.send(iter([np.zeros(20, dtype=np.float32)]), (20,), "float32")
    one, other = (f"{id(event)}" for event in (staging.read[1], staging.read[0]))
    order = (one, other, one, other, one)
    assert stream.log == [text for name in order for text in (f"wait {name}", "copy", f"record {name}")]


def test_while_one_buffer_is_read_the_other_is_filled(monkeypatch):
    monkeypatch.setattr(transfer, "STAGE", 4)
    staging = Staging(numpy_device()[0])
    staging.send(iter([np.zeros(16, dtype=np.float32)]), (16,), "float32")
    assert [event.recorded for event in staging.read] == [2, 2]


def test_numbers_that_are_missing_are_noticed():
    with pytest.raises(AssertionError, match="expected 5 elements, got 0"):
        Staging(numpy_device()[0]).send(iter([np.zeros(4, dtype=np.float32)]), (5,), "float32")


def test_from_65520_on_float16_overflows():
    below = np.nextafter(np.float32(FLOAT16_OVERFLOW), np.float32(0))
    with np.errstate(over="ignore"):
        assert np.isfinite(below.astype(np.float16))
        assert np.isinf(np.float32(FLOAT16_OVERFLOW).astype(np.float16))
    assert np.finfo(np.float16).smallest_normal == FLOAT16_SMALLEST


def test_what_float16_loses_is_counted():
    staging = Staging(numpy_device()[0])
    numbers = np.array([1.0, 2.0**-14, -3e-5, 1e-9, 0.0, -2e-8], dtype=np.float32)
    staging.send(iter([numbers]), (2, 3), "float16")
    assert staging.finish() == (
        "float16: 3 of 6 weights (50.00%) are below 6.1e-05, where it has fewer digits (off by 3e-8 at most);"
        " 2 of them became 0"
    )


def test_nothing_is_said_where_nothing_is_lost():
    staging = Staging(numpy_device()[0])
    staging.send(iter([np.ones(6, dtype=np.float32)]), (2, 3), "float16")
    staging.send(iter([np.full(2, 1e-9, dtype=np.float32)]), (2,), "float32")
    assert staging.finish() == ""
    assert Staging(numpy_device()[0]).finish() == ""
