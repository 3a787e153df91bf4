"""The hypothesis profiles, and the fixture that runs a test on every array library."""

import importlib.util
import os
import signal
from pathlib import Path

# pytest starts one process per core (`-n auto`), and BLAS threads would slow them down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Which tokenizer files are known to be good, and compiled loops: not in the user's cache folder.
os.environ.setdefault("NPLLM_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "npllm"))
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache"))

import jaxtyping
import pytest
from command_line import folder, npllm, start  # noqa: F401
from default_model import skip_where_missing
from emulated import cupy, emulator  # noqa: F401
from hypothesis import Phase, settings
from kernel_models import counted  # noqa: F401
from libraries import NAMES, Library, library

# derandomize: every run tries the same examples. `HYPOTHESIS_PROFILE=thorough pytest` tries others.
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True, database=None)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=25)
settings.register_profile("thorough", max_examples=500, deadline=None)
# JAX recompiles each operation for every shape, so its tests have their own marker and profile.
settings.register_profile("jax", settings.get_profile("quick"), max_examples=3)
# tools/checks/mutate.py only needs to know whether a test fails: no shrinking.
settings.register_profile("mutants", settings.get_profile("quick"), phases=[Phase.explicit, Phase.generate])
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)
FEWER_EXAMPLES = 5  # see pytest_runtest_call

# To check the shapes of a call takes as long as the call, and a test with many calls repeats the same few.
CHECKED_CALLS = 500  # the first of each test
SAMPLED_CALL = 31  # then every 31st: a prime, so that each call of a pass has its turn

INSTALLED = [name for name in NAMES if importlib.util.find_spec(name)]
MARKS = {
    "array_api_strict": pytest.mark.strict,
    "torch": pytest.mark.torch,
    "jax": pytest.mark.jax,
    "cupy": pytest.mark.cuda,
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=MARKS.get(name, [])) for name in INSTALLED],
)
def lib(request) -> Library:
    """Each installed array library, one test run per library. test_shapes.py skips once for each missing one."""
    return library(request.param)


@pytest.fixture
def usual_signals():
    """Child processes get the default actions, also where the tests run under nohup, which ignores SIGHUP."""
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
    ignored = [number for number in ignored if number != getattr(signal, "SIGPIPE", None)]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def writable_lib(lib) -> Library:
    """`lib` for tests that write to a KV cache. JAX is skipped: it does all the math, but its arrays are immutable."""
    if lib.xp.__name__ == "jax.numpy":
        pytest.skip("jax arrays cannot be written to; the KV cache is")
    return lib


def pytest_collection_modifyitems(items):
    """Skip tests that need the default model if it is not installed; mark those that are slow by their family."""
    from families import slow  # not at the top: it imports npllm, and this file loads before jaxtyping's hook

    skip_where_missing(items)
    for item in items:
        if hasattr(item, "callspec") and slow(item.callspec.params):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile loops in their own tests only: the others test NumPy, whether Numba is installed or not."""
    if importlib.import_module("npllm.compiled.jit").COMPILES:
        loops = item.path.name.startswith("test_compiled")
        for name in ("checkpoint.load", "compiled.cpu", "cli.selftest"):
            importlib.import_module(f"npllm.{name}").COMPILES = loops
        os.environ["NUMBA_DISABLE_JIT"] = "0" if loops else "1"  # of processes that a test starts


class SampledCalls(type(jaxtyping.config)):
    """jaxtyping's settings. Each annotated function reads `jaxtyping_disable` when it is called."""

    off = False
    calls = 0

    @property
    def jaxtyping_disable(self) -> bool:
        self.calls += 1
        return self.off or (self.calls > CHECKED_CALLS and self.calls % SAMPLED_CALL != 0)

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, off: bool) -> None:
        self.off = off


jaxtyping.config.__class__ = SampledCalls


@pytest.fixture(autouse=True)
def checked_shapes(request):
    """Check the shapes of the first calls of each test, but none of the default model (see default_model.py)."""
    before = jaxtyping.config.off  # already True on CuPy (see libraries.py)
    jaxtyping.config.calls = 0
    jaxtyping.config.off = before or request.node.get_closest_marker("default_model") is not None
    yield
    jaxtyping.config.off = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Try fewer examples in quick runs on libraries other than NumPy: NumPy covers the math, and CI tries more."""
    name = "_hypothesis_internal_use_settings"  # where @given stores them; a test's parameters share one function
    chosen = getattr(getattr(item, "obj", None), name, None)
    others = hasattr(item, "callspec") and item.callspec.params.get("lib", "numpy") != "numpy"
    if PROFILE != "quick" or chosen is None or not others:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item.obj, name, settings(chosen, max_examples=min(chosen.max_examples, FEWER_EXAMPLES)))
        return (yield)
