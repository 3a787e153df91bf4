"""How much memory is available, and the refusal of models that do not fit."""

import subprocess
import sys

import numpy as np
import pytest
from families import random_lm

from npllm.devices import memory
from npllm.devices.device import free_bytes
from npllm.devices.memory import (
    available_bytes,
    check_generation,
    check_memory,
    control_group_bytes,
    peak_bytes,
)
from npllm.errors import NotEnoughMemoryError
from npllm.families import FAMILIES


def test_memory_that_is_there():
    check_memory({"weights": 5, "cache": 5}, available=10)
    available = available_bytes()
    if available is not None:
        assert 0 < available < 2**50
        assert free_bytes(np.zeros(1)) > 0
    check_memory({"weights": 1})


def test_memory_that_is_not_there():
    with pytest.raises(NotEnoughMemoryError) as raised:
        check_memory({"weights": 15_300_000_000, "largest tensor": 500_000_000}, available=7_900_000_000)
    assert str(raised.value).startswith("15.3 GB weights + 500 MB largest tensor = 15.8 GB, available 7.9 GB; ")
    assert raised.value.exit_code == 5


def test_where_nobody_can_tell_nothing_is_refused(monkeypatch):
    """As on Windows: no /proc and no resource limits."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory, "read_numbers", lambda _: {})
    monkeypatch.setattr(memory, "machine_bytes", lambda: None)
    monkeypatch.setattr(memory, "control_group_bytes", lambda: iter(()))
    assert available_bytes() is None
    assert peak_bytes() is None
    check_memory({"weights": 2**70})


def test_other_unix_without_proc(monkeypatch):
    monkeypatch.setattr(memory, "read_numbers", lambda _: {})
    size = memory.machine_bytes()
    assert size is None or size > 0
    peak = peak_bytes()
    assert peak is None or peak > 0


def test_control_groups_version_2(tmp_path):
    group = tmp_path / "top" / "user" / "job"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/user/job\n")
    for folder, limit, used in ((group, "max", 5), (group.parent, "1000", 700)):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
    (group.parent / "memory.stat").write_text("anon 300\ninactive_file 250\nactive_file 50\n")
    assert list(control_group_bytes(tmp_path / "top", tmp_path / "own")) == [1000 - 700 + 300]


def test_control_groups_version_1_seen_from_inside_a_container(tmp_path):
    """The path exists only on the host; the limit is at the top."""
    top = tmp_path / "top" / "memory"
    top.mkdir(parents=True)
    (tmp_path / "own").write_text("9:cpu,cpuacct:/\n4:memory:/docker/0123\n0::/\n")
    (top / "memory.limit_in_bytes").write_text("2000\n")
    (top / "memory.usage_in_bytes").write_text("900\n")
    (top / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 0\n")
    assert list(control_group_bytes(tmp_path / "top", tmp_path / "own")) == [2000 - 900 + 100]


def test_no_control_groups(tmp_path):
    assert list(control_group_bytes(tmp_path, tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="unknown on Windows")
def test_peak_bytes():
    """Another process allocates and frees 400 MB."""
    program = (
        "import numpy as np\n"
        "from npllm.devices.memory import peak_bytes\n"
        "before = peak_bytes()\n"
        "np.ones(5 * 10**7)\n"
        "print(peak_bytes() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 300e6 < int(grown) < 450e6


def test_a_family_that_needs_all_scores_at_once_is_counted_without_tiles(monkeypatch):
    config = random_lm("llama").config
    rows, length, room = 256, 100_000, 10**9
    check_generation(config, length, rows, None, room)
    monkeypatch.setitem(FAMILIES, "llama", FAMILIES["llama"]._replace(full_scores=True))
    with pytest.raises(NotEnoughMemoryError, match=r"GB attention"):
        check_generation(config, length, rows, None, room)
    four_of_each_score = 4 * 4 * config.num_attention_heads * rows * length
    check_generation(config, length, rows, None, round(1.1 * four_of_each_score))
