"""The product with many vectors is `linear`, for each form that a weight is stored in. Also runs as plain Python."""

import numpy as np
import pytest
from test_compiled_products import FORMS, WORKERS, from_file, random

from npllm.compiled import many
from npllm.compiled.jit import COMPILES
from npllm.compiled.records import WEIGHT, describe
from npllm.compiled.team import Team
from npllm.devices.threads import threads
from npllm.linear import linear
from npllm.storage.gguf_blocks import BLOCK_FORMATS
from npllm.storage.packed import Half

KINDS = BLOCK_FORMATS if COMPILES else ["Q4_0", "Q4_1", "MXFP4"]  # offset, minimum, values


def product(weight, x, bias=None, team=1):
    record = np.zeros(1, WEIGHT)
    kept = describe(record[0], weight)
    y = np.full((len(x), weight.shape[0]), np.nan, np.float32)
    with many.one_thread():
        Team(team).run(many.multiply, 1, x, weight, record[0], bias, y)
    del kept
    return y


def check(weight, vectors=20, bias=None, team=1):
    wide = weight if isinstance(weight, np.ndarray) else weight.rows(np.arange(weight.shape[0]))
    x = random(vectors, wide.shape[1], seed=1)
    expected = linear(x.astype(np.float64), wide.astype(np.float64), bias)
    terms = np.abs(x).astype(np.float64) @ np.abs(wide).astype(np.float64).T  # rounding is relative to these
    assert (np.abs(product(weight, x, bias, team) - expected) <= 2e-6 * terms + 1e-30).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("team", [1, 2])
def test_it_is_linear(form, team):
    check(FORMS[form](random(130, 64)), bias=random(130, seed=2), team=team)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_gguf(kind):
    check(from_file(kind, 10, 256))


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("vectors", [19, 20])
def test_in_many_pieces(form, vectors, monkeypatch):
    for name, value in {"LEAST": 5, "TILE": 9 * 32, "SMALL_TILE": 5 * 32, "FEW": 20}.items():
        monkeypatch.setattr(many, name, value)
    check(FORMS[form](random(99, 32)), vectors, random(99, seed=2), team=2)


@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_widened_exactly(form):
    codes = np.arange(0, 2**16, 1 if COMPILES else 31, dtype=np.uint16).view(FORMS[form](random(1, 1)).dtype)
    with np.errstate(invalid="ignore"):
        weight = Half(codes[np.isfinite(codes)][None], WORKERS)
    record, out = np.zeros(1, WEIGHT), np.empty(weight.shape, np.float32)
    describe(record[0], weight)
    many.widen_rows(record[0], 0, 1, out)
    assert np.array_equal(out.view(np.uint32), weight.codes.astype(np.float32).view(np.uint32))


def test_blas_has_its_threads_again_afterwards():
    expected = threads()
    with many.one_thread():
        assert {library.num_threads for library in many.blas().lib_controllers} == {1}
    assert {library.num_threads for library in many.blas().lib_controllers} == {expected}
