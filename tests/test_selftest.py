"""npllm selftest on the CPU: what it finds. tests/test_cuda.py runs it on a device."""

from importlib import import_module

import numpy as np
import pytest
from command_line import fails
from default_model import needs_default_model
from test_golden import DEFAULT, expected_of

from npllm.apps import selftest
from npllm.apps.selftest import GOLDEN, GOLDEN_IDS, PROMPT, STEP, Side, compute, differences, golden, same_tokens
from npllm.devices.device import pick


@pytest.fixture(autouse=True)
def little_to_read(monkeypatch):
    """Measure the bandwidth on a small array, as these tests ignore the figure."""
    monkeypatch.setattr(selftest, "bandwidth_buffer", lambda like: like)


def test_the_known_answer_is_that_of_transformers():
    (run,) = (run for run in expected_of(DEFAULT)["raw"] if run["prompt"] == PROMPT)
    assert tuple(run["ids"]) == GOLDEN_IDS
    assert tuple(run["greedy_ids"][: len(GOLDEN)]) == GOLDEN
    assert min(run["gaps"][: len(GOLDEN)]) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_a_device_that_computes_what_it_should(npllm, dtype):
    done = npllm("selftest", "--dtype", dtype)
    assert done.code == 0, done
    assert done.out.endswith("\nPASSED\n")
    for part in (
        "npllm:   ",
        "device:  cpu\n",
        "\n1. Tokens\n",
        "\n2. Steps\n",
        "\nlogits of a step",
        " ms per token (",
    ):
        assert part in done.out.replace("\n   ", "\n")
    assert len(done.out.splitlines()) < 60
    assert done.err == "computing on the CPU ...\ncomputing on cpu ...\n"


@needs_default_model
@pytest.mark.slow
def test_the_default_model_passes(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    done = npllm("selftest", "--all")
    assert done.code == 0, done
    assert "the known continuation of 'The capital of France is': yes\nequal to the CPU's: 16 of 16\n" in done.out
    assert "layers.29.feedforward.output" in done.out


def test_a_device_that_computes_something_else(npllm, monkeypatch):
    """A projection of layer 1 is off by 1 %."""
    options = import_module("npllm.cli.options")
    load_model = options.load_model

    def damaged(args):
        lm = load_model(args)
        first, second = lm.weights.layers
        layers = (first, second._replace(o_proj=np.float32(1.01) * second.o_proj))
        return lm._replace(weights=lm.weights._replace(layers=layers))

    monkeypatch.setattr(options, "load_model", damaged)
    done = npllm("selftest", "--dtype", "float32")
    assert done.code == 1, done
    assert ">> layers.1.attention.output is the first step beyond the tolerance" in done.out
    assert done.out.endswith("\nFAILED\n")


def test_only_the_step_of_generation_is_wrong(npllm, monkeypatch):
    """Like a faulty kernel that is not used when there is a tap."""
    step_logits = selftest.step_logits
    monkeypatch.setattr(selftest, "step_logits", lambda lm, ids: 1.01 * step_logits(lm, ids))
    done = npllm("selftest")
    assert done.code == 1
    assert ">> logits of a step is the first step beyond the tolerance" in done.out


def side(made, logits=0.0, gaps=(1.0, 0.5, 0.1)):
    values = {name: np.full((1, 3), logits, dtype=np.float32) for name in ("logits", STEP)}
    return Side(values, list(made), list(gaps))


@pytest.mark.parametrize(
    ("made", "logits", "same", "passed"),
    [
        ([7, 8, 9], 0.0, 3, True),
        ([7, 8, 1], 0.0, 2, False),
        ([7, 8, 1], 0.026, 2, True),  # 4 · 0.026 > 0.1
        ([7, 8, 1], 0.024, 2, False),
        ([7, 1, 9], 0.026, 1, False),
    ],
)
def test_another_token_is_no_fault_where_rounding_decides(made, logits, same, passed):
    reference, other = side([7, 8, 9]), side(made, logits)
    tokens = same_tokens(reference, other, differences(reference, other, "float16"))
    assert (tokens.same, tokens.passed) == (same, passed)


def test_the_known_tokens():
    assert golden(side([*GOLDEN, 1]))
    assert not golden(side([1, *GOLDEN]))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-n", "7"], 2, "--new-tokens: expected at least 8, got 7"),
        (["--dtype", "int4"], 2, "--dtype: expected float32, float16, bfloat16, .* got int4"),
        (["--device", "gpu"], 2, "device: expected auto, cpu, cuda"),
        (["--device", "cuda:99"], 3, "device cuda:99: "),
        (["--model", "nowhere/nothing", "--offline"], 3, "nowhere/nothing"),
    ],
)
def test_what_is_refused(npllm, words, code, message):
    done = npllm("selftest", *words)
    error = done.err.removeprefix("computing on the CPU ...\n")
    fails(done._replace(err=error), code, message)
    assert done.out == ""


def test_the_versions_of_the_cpu(folder):
    lm = import_module("npllm").load(folder)
    assert set(selftest.versions(pick("cpu"))) == {"npllm", "python", "numpy", "system", "device"}
    one_pass = compute(lm, [1, 2, 3], 2, use_cache=False)
    np.testing.assert_array_equal(one_pass.values[STEP], one_pass.values["logits"][-1:])
    assert len(one_pass.made) == len(one_pass.gaps) == 2
    assert min(one_pass.gaps) > 0
