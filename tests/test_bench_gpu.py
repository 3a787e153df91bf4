"""tools/bench/bench_gpu.py: its output, and a clear refusal without a GPU."""

import sys

import pytest
from bridge import tool

from npllm.apps.bench import Run

bench_gpu = tool("bench_gpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "bench_gpu: device cuda:0: CuPy is not installed"),
        ("auto", "bench_gpu: expected a GPU, got the CPU; npllm bench cache times that"),
        ("cpu", "bench_gpu: expected a GPU, got the CPU; npllm bench cache times that"),
    ],
)
def test_without_a_gpu_it_says_what_is_missing(monkeypatch, capsys, device, message):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--device", device])
    assert bench_gpu.main() == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_line_has_means_deviations_and_milliseconds_per_token():
    runs = [Run(True, 4.0, 0, [1] * 100), Run(False, 21.8, 0, [1] * 100), Run(True, 5.0, 0, [1] * 100)]
    line = bench_gpu.row("npllm", runs).split()
    assert line == ["npllm", "4.50", "s", "±", "0.50", "45.0", "ms", "21.80", "s", "±", "0.00", "218.0", "ms"]
