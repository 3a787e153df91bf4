"""Choosing a device, and its free memory."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import npllm
from npllm.devices.device import free_bytes, pick, to_host
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
    """Assert that `pick` raises this error in one line, and "auto" falls back to the CPU with the same reason."""
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
    """The part of CuPy that `pick` needs, built on NumPy. driver, product : the errors they raise."""

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
    with pytest.raises(UnavailableError, match=r"^device cuda:2: expected an index below 2, the number of GPUs$"):
        pick("cuda:2")
    fake_cupy(monkeypatch, count=0)
    fails("^device cuda:0: expected an index below 0, the number of GPUs$")


class CUDARuntimeError(RuntimeError):
    """Stands in for the CuPy error of the same name."""


def test_a_driver_that_is_missing(monkeypatch):
    text = (
        "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version\nand pages of more"
    )
    fake_cupy(monkeypatch, driver=CUDARuntimeError(text))
    fails(r"^device cuda:0: CuPy found no GPU with a working driver \(cudaErrorInsufficientDriver: .* version\);.*smi")


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
    what = f"{type(error).__name__}: {first}"
    fails(rf"^device cuda:0: the driver works, but a CUDA library does not \({what}\); {INSTALL}$")


@pytest.mark.parametrize(
    "error",
    [MemoryError("Out of memory allocating 512 bytes"), CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")],
)
def test_a_gpu_whose_memory_others_have(monkeypatch, error):
    fake_cupy(monkeypatch, product=error)
    fails(rf"^device cuda:0: other programs hold its memory \({error}\);", error=NotEnoughMemoryError)


def test_a_cupy_that_cannot_be_imported(monkeypatch, tmp_path):
    """CuPy's own message is a page long; its cause gives the reason."""
    page = "\\n" + 60 * "=" + "\\nFailed to import CuPy.\\n"
    (tmp_path / "cupy.py").write_text(
        f'try:\n    raise ImportError("libcudart.so.12: cannot open")\nexcept ImportError as e:\n'
        f'    raise ImportError("{page}") from e\n'
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    fails(rf"^device cuda:0: CuPy is installed, but cannot be imported \(libcudart.so.12: cannot open\); {INSTALL}$")


def test_weights_that_a_gpu_has_no_room_for(monkeypatch, tmp_path):
    """Refused with the arithmetic, before anything is sent."""
    from checkpoints import write_folder

    write_folder(tmp_path / "m", tokenizer=False)
    cupy = fake_cupy(monkeypatch)
    cupy.zeros = np.zeros
    monkeypatch.setattr("npllm.checkpoint.weights.free_bytes", lambda array: 1_000_000)
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
    """The free memory of the GPU and the pool. The pool holds 300 and may have a limit (CUPY_GPU_MEMORY_LIMIT)."""
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
