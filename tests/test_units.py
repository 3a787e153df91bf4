"""Byte counts as text."""

import pytest

from npllm.devices.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 kB"),
        (1500, "1.5 kB"),
        (500_000_000, "500 MB"),
        (2_211_840, "2.2 MB"),
        (15_283_000_000, "15.3 GB"),
        (10**9, "1.0 GB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text
