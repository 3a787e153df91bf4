"""Choosing a device, and knowing how much memory there is."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import npllm
from npllm.devices import memory
from npllm.devices.device import free_bytes, pick, to_host
from npllm.devices.memory import available_bytes, check_memory, control_group_bytes, format_bytes, peak_bytes
from npllm.errors import NotEnoughMemoryError, UnavailableError, UsageError


def test_cpu_is_numpy():
    device = pick("cpu")
    assert (device.name, device.xp, device.why) == ("cpu", np, "")


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:99999", "", "cuda :0", "mps"])
def test_an_unknown_device(name):
    with pytest.raises(UsageError, match="device: expected auto, cpu, cuda or cuda:<index>"):
        pick(name)


INSTALL = r"pip install 'cupy-cuda12x\[ctk\]'"


def fails(pattern, name="cuda", error=UnavailableError):
    """`pick` ends with this error, in one line; "auto" takes the CPU, and says why in the same words."""
    with pytest.raises(error, match=pattern) as raised:
        pick(name)
    assert "\n" not in str(raised.value)
    auto = pick("auto")
    assert (auto.name, auto.xp) == ("cpu", np)
    if name == "cuda":
        assert auto.why == f"device: cpu, because there is no usable GPU ({raised.value})"


def test_cuda_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy then raises ModuleNotFoundError
    fails(f"^device cuda:0: CuPy is not installed .*; {INSTALL}$")


def fake_cupy(monkeypatch, count=1, driver=None, product=None):
    """As much of CuPy as `pick` needs: NumPy, and a runtime that counts devices. driver, product : what they raise."""

    def get_device_count():
        if driver is not None:
            raise driver
        return count

    def ones(*arguments, **options):
        if product is not None:
            raise product
        return np.ones(*arguments, **options)

    def device(index):
        return SimpleNamespace(use=lambda: cupy.used.append(range(count)[index]))

    cupy = ModuleType("cupy")
    cupy.used = []
    runtime = SimpleNamespace(
        getDeviceCount=get_device_count,
        getDeviceProperties=lambda index: {"name": b"Tesla T4", "totalGlobalMem": 15_800_000_000},
    )
    cupy.cuda = SimpleNamespace(runtime=runtime, Device=device)
    cupy.ones, cupy.float16 = ones, np.float16
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_a_device_that_works(monkeypatch):
    cupy = fake_cupy(monkeypatch, count=2)
    assert pick("cuda").name == "cuda:0"
    assert pick("cuda:1").xp is cupy
    assert cupy.used == [0, 1]
    assert pick("auto").why == "device: cuda:0, because CuPy found a GPU that works (Tesla T4, 15.8 GB)"


def test_an_index_that_there_is_not(monkeypatch):
    fake_cupy(monkeypatch, count=2)
    with pytest.raises(UnavailableError, match=r"^device cuda:2: expected an index below 2, the number of GPUs here$"):
        pick("cuda:2")
    fake_cupy(monkeypatch, count=0)
    fails("^device cuda:0: expected an index below 0, the number of GPUs here$")


class CUDARuntimeError(RuntimeError):
    """CuPy's error of that name."""


def test_a_driver_that_is_missing(monkeypatch):
    text = (
        "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version\nand pages of more"
    )
    fake_cupy(monkeypatch, driver=CUDARuntimeError(text))
    fails(
        r"^device cuda:0: CuPy found no GPU with a driver that works \(cudaErrorInsufficientDriver: .* version\);.*smi"
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object file"),
        ImportError("libcublas.so.12: cannot open shared object file: No such file or directory"),
        OSError("Failed to find CUDA headers\nSet CUDA_PATH"),
    ],
)
def test_a_library_that_is_missing(monkeypatch, error):
    fake_cupy(monkeypatch, product=error)
    first = str(error).splitlines()[0]
    fails(rf"^device cuda:0: the driver works, but not a CUDA library \({type(error).__name__}: {first}\); {INSTALL}$")


@pytest.mark.parametrize(
    "error",
    [MemoryError("Out of memory allocating 512 bytes"), CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")],
)
def test_a_gpu_whose_memory_others_have(monkeypatch, error):
    fake_cupy(monkeypatch, product=error)
    fails(rf"^device cuda:0: its memory is taken by other programs \({error}\);", error=NotEnoughMemoryError)


def test_a_cupy_that_cannot_be_imported(monkeypatch, tmp_path):
    """Its own message is a page; the reason is the cause below it."""
    page = "\\n" + 60 * "=" + "\\nFailed to import CuPy.\\n"
    (tmp_path / "cupy.py").write_text(
        f'try:\n    raise ImportError("libcudart.so.12: cannot open")\nexcept ImportError as e:\n'
        f'    raise ImportError("{page}") from e\n'
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    fails(rf"^device cuda:0: CuPy is installed, but cannot be imported \(libcudart.so.12: cannot open\); {INSTALL}$")


def test_weights_that_a_gpu_has_no_room_for(monkeypatch, tmp_path):
    """The arithmetic, before anything is sent."""
    from checkpoints import write_folder

    write_folder(tmp_path / "m", tokenizer=False)
    cupy = fake_cupy(monkeypatch)
    cupy.zeros = np.zeros
    monkeypatch.setattr("npllm.checkpoint.load.free_bytes", lambda array: 1_000_000)
    with pytest.raises(
        NotEnoughMemoryError, match=r"kB weights on cuda:0 \+ .* buffers = .*, available 1.0 MB; take a small"
    ):
        npllm.load(tmp_path / "m", device="cuda")


def test_a_dtype_that_a_gpu_does_not_take(monkeypatch, tmp_path):
    fake_cupy(monkeypatch)
    with pytest.raises(UsageError, match="dtype: expected float16, float32, int8 or int4 on cuda:0, got bfloat16"):
        npllm.load(tmp_path / "m", device="cuda", dtype="bfloat16")


@pytest.mark.parametrize(("limit", "free"), [(0, 1000 + 70), (500, 200 + 70), (200, 70)])
def test_free_memory_of_a_gpu(monkeypatch, limit, free):
    """What nobody has, and what the pool keeps; the pool may have a limit (CUPY_GPU_MEMORY_LIMIT), and holds 300."""
    cupy = fake_cupy(monkeypatch)
    cupy.cuda.runtime.memGetInfo = lambda: (1000, 2000)
    pool = SimpleNamespace(get_limit=lambda: limit, total_bytes=lambda: 300, free_bytes=lambda: 70)
    cupy.get_default_memory_pool = lambda: pool
    monkeypatch.setattr("npllm.devices.device.is_cupy_array", lambda array: True)
    assert free_bytes(np.zeros(1)) == free


def test_load_never_falls_back_by_itself_and_auto_says_what_it_took(monkeypatch, tmp_path, capsys):
    from checkpoints import write_folder

    write_folder(tmp_path / "m", tokenizer=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UnavailableError):
        npllm.load(tmp_path / "m", device="cuda")
    npllm.load(tmp_path / "m", device="auto")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("device: cpu, because there is no usable GPU")
    assert err.count("\n") == 1


def test_to_host(lib):
    array = lib.array([[1.5, 2.5]])
    host = to_host(array)
    assert type(host) is np.ndarray
    np.testing.assert_array_equal(host, [[1.5, 2.5]])


def test_to_host_of_a_numpy_scalar():
    assert to_host(np.float32(3)).shape == ()


# Memory


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
    """As on Windows: no /proc, no resource limits."""
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
    """The path is the host's and does not exist here; the limit stands at the top."""
    top = tmp_path / "top" / "memory"
    top.mkdir(parents=True)
    (tmp_path / "own").write_text("9:cpu,cpuacct:/\n4:memory:/docker/0123\n0::/\n")
    (top / "memory.limit_in_bytes").write_text("2000\n")
    (top / "memory.usage_in_bytes").write_text("900\n")
    (top / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 0\n")
    assert list(control_group_bytes(tmp_path / "top", tmp_path / "own")) == [2000 - 900 + 100]


def test_no_control_groups(tmp_path):
    assert list(control_group_bytes(tmp_path, tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_bytes():
    """In a process of its own: 400 MB that were held for a moment, and are free again."""
    program = (
        "import numpy as np\n"
        "from npllm.devices.memory import peak_bytes\n"
        "before = peak_bytes()\n"
        "np.ones(5 * 10**7)\n"
        "print(peak_bytes() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 300e6 < int(grown) < 450e6


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
