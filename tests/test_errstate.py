"""The math under any `np.errstate`, and under `python -W error`: the same bits, and no error of NumPy's."""

import subprocess
import sys

import numpy as np
import pytest
from checkpoints import write_folder
from families import WRITERS, random_lm

import npllm
from npllm.apps.ablate import without_layers
from npllm.apps.classify import classify, classify_tokens
from npllm.apps.evaluate import evaluate, joined, reference, summary
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.devices import workers
from npllm.flash import flash_attention
from npllm.inspect.funnel import funnel
from npllm.inspect.look import given, look, norms
from npllm.inspect.look import lens as lens_of
from npllm.inspect.trace import trace

IDS = [1, 2, 3, 1, 2, 3, 1, 2, 9, 4]
SAMPLED = {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 1}


def sharpened(name):
    """A model whose attention is sharp: the exp of most scores underflows."""
    lm = random_lm(name)
    weight = "q_norm" if "q_norm" in lm.weights.layers[0]._fields else "qkv_proj"
    layers = tuple(block._replace(**{weight: 400 * getattr(block, weight)}) for block in lm.weights.layers)
    return lm._replace(weights=lm.weights._replace(layers=layers, lm_head=60 * lm.weights.lm_head))


def results(lm):
    """What every call of the math returns, as a dict of arrays."""
    few = {"max_new_tokens": 6}
    found = {
        "forward": npllm.forward(IDS, lm)[0],
        "flash": npllm.transform(IDS, lm, attention=flash_attention)[0],
        "head": npllm.lm_head(npllm.transform(IDS, lm)[0], lm),
        "greedy": npllm.generate(lm, IDS, **few).ids,
        "sampled": npllm.generate(lm, IDS, **few, **SAMPLED).ids,
        "no cache": npllm.generate(lm, IDS, **few, use_cache=False).ids,
        "lookup": npllm.generate(lm, IDS, **few, tokens=prompt_lookup(4)).ids,
        "draft": npllm.generate(lm, IDS, **few, **SAMPLED, tokens=draft_model(random_lm("llama"))).ids,
        "losses": joined(evaluate(lm, IDS, 8, 4)).losses,
        "divergence": [*summary(joined(evaluate(lm, IDS, 8, 4, [*reference(lm, IDS, 8, 4)][-1]))).values()][-4:],
        "ablation": without_layers(lm, IDS).without,
        "funnel": [
            s.probabilities for s in funnel(npllm.forward(IDS, lm)[0][-1], temperature=0.01, top_p=0.9, min_p=0.1)
        ],
    }
    for dtype in ("float16", "bfloat16"):
        found[dtype] = npllm.generate(lm, IDS, **few, cache_dtype=dtype).ids
    seen = look(lm, IDS)
    found |= {"lens": lens_of(seen, [3, 9], 5).probabilities, "given": given(seen)[0], "norms": norms(seen).residual}
    return {name: np.asarray(value) for name, value in (trace(lm, IDS) | found).items()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_pass_and_its_tokens(name):
    lm = sharpened(name)
    expected = npllm.generate(lm, IDS, max_new_tokens=2, **SAMPLED)
    with np.errstate(all="raise"):
        if name != "gemma2":  # its scores are capped
            with pytest.raises(FloatingPointError, match="underflow"):  # the family's own functions
                lm.transform(np.array(IDS), lm.weights, lm.config)
        assert npllm.generate(lm, IDS, max_new_tokens=2, **SAMPLED) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_every_call_of_every_family(name):
    lm = sharpened(name)
    expected = results(lm)
    with np.errstate(all="raise"):
        found = results(lm)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_every_storage_of_the_weights_in_threads_of_their_own(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(workers, "SHARED_FROM", 0)
    write_folder(tmp_path / "model")
    monkeypatch.setattr(workers.Workers.__init__, "__defaults__", (2,))  # two threads, whatever the machine has
    expected = npllm.load(tmp_path / "model", dtype=dtype)
    ids = npllm.generate(expected, "and the 12", max_new_tokens=8, **SAMPLED)
    with np.errstate(all="raise"):
        lm = npllm.load(tmp_path / "model", dtype=dtype)
        assert npllm.generate(lm, "and the 12", max_new_tokens=8, **SAMPLED) == ids
        np.testing.assert_array_equal(npllm.forward(ids.ids, lm)[0], npllm.forward(ids.ids, expected)[0])


def test_a_thread_of_the_pool_is_quiet_whatever_the_caller_asks_for():
    two = workers.Workers(2)
    with np.errstate(all="raise"):
        assert set(two.pool.submit(np.geterr).result().values()) == {"ignore"}


def test_an_overflow_is_our_error_and_not_numpys():
    lm = sharpened("llama")
    layers = (lm.weights.layers[0]._replace(down_proj=1e30 * lm.weights.layers[0].down_proj), *lm.weights.layers[1:])
    lm = lm._replace(weights=lm.weights._replace(layers=layers))
    for state in ("raise", "ignore", "warn"):
        with np.errstate(all=state), pytest.raises(npllm.errors.ModelFileError, match="expected finite numbers"):
            npllm.generate(lm, IDS, max_new_tokens=3)


def test_a_classifier(tmp_path):
    for head, call in (("Sequence", classify), ("Token", classify_tokens)):
        keys = {"architectures": [f"Phi3For{head}Classification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
        write_folder(tmp_path / head, **keys)
        lm = npllm.load(tmp_path / head)
        lm = lm._replace(weights=lm.weights._replace(score=100 * lm.weights.score))
        expected = call(lm, "and the 12")
        with np.errstate(all="raise"):
            assert call(lm, "and the 12") == expected


def test_the_callers_own_state_is_as_before():
    lm, made = random_lm("llama"), npllm.steps(random_lm("llama"), IDS, max_new_tokens=3)
    with np.errstate(all="raise"):
        for _ in made:
            assert set(np.geterr().values()) == {"raise"}
        npllm.forward(IDS, lm)
        assert set(np.geterr().values()) == {"raise"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--temperature", "1", "--seed", "1"], ["--cache-dtype", "float16"]])
def test_the_command_line_with_warnings_as_errors(tmp_path, options):
    write_folder(tmp_path / "model")
    command = ["-m", "npllm", "generate", "-m", str(tmp_path / "model"), "-n", "5", *options, "Hello"]
    plain, strict = (
        subprocess.run([sys.executable, *warn, *command], capture_output=True, text=True, timeout=120)
        for warn in ([], ["-W", "error"])
    )
    assert strict.returncode == 0, strict.stderr
    assert strict.stdout == plain.stdout
