"""The products in loops are those of the array functions, for each form that a weight is stored in.

Without Numba the loops run as plain Python, on smaller matrices.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.compiled import records
from npllm.compiled.jit import COMPILES
from npllm.compiled.products import product_alone
from npllm.compiled.records import WEIGHT, Unsupported, describe
from npllm.compiled.team import Team
from npllm.devices.workers import Workers
from npllm.storage.columns import Columns
from npllm.storage.gguf_blocks import BLOCK_FORMATS
from npllm.storage.groups import GroupLayout, fill_groups, quantize_groups, regroup
from npllm.storage.packed import Half
from npllm.storage.rows import row_groups

needs_numba = pytest.mark.skipif(not COMPILES, reason="the loops need Numba (pip install -e '.[fast]')")
WORKERS = Workers(1)
ONE, TWO = Team(1), Team(2)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def in_groups(weight, bits):
    scale_dtype = ml_dtypes.bfloat16 if bits == 4 else np.float32
    groups = GroupLayout(bits, has_minimum=bits == 4, scale_dtype=scale_dtype).empty(weight.shape, WORKERS)
    fill_groups(groups, 0, *quantize_groups(weight, bits))
    return groups


FORMS = {
    "float32": lambda w: w,
    "by columns": lambda w: np.asfortranarray(w),
    "Columns": lambda w: Columns(np.ascontiguousarray(w.T)),
    "bfloat16": lambda w: Half(w.astype(ml_dtypes.bfloat16), WORKERS),
    "float16": lambda w: Half(w.astype(np.float16), WORKERS),
    "int8": lambda w: in_groups(w, 8),
    "int4": lambda w: in_groups(w, 4),
}


@np.errstate(all="ignore")  # random scales
def from_file(kind, height, width, seed=0):
    """A matrix of random blocks of a GGUF type, as it is when a file has been read."""
    block = BLOCK_FORMATS[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (height * width // block.numbers, block.bytes), dtype=np.uint8)
    finite = np.isfinite(block.widen(raw)).all(axis=1) & (np.abs(block.widen(raw)) < 1e4).all(axis=1)
    raw[~finite] = raw[np.argmax(finite)]
    layout = GroupLayout(
        bits=block.bits,
        group=block.group,
        offset=block.smallest if block.bits == 4 and not block.values else 0,
        has_minimum=block.has_minimum,
        scale_dtype=block.scale_dtype if block.bits == 4 else np.float32,
        from_file=True,
        values=block.values if block.bits == 4 else None,
    )
    groups = layout.empty((height, width), WORKERS)
    fill_groups(groups, 0, *regroup(block.split(raw), block, height, layout))
    return groups


def compiled(weight, x, bias=None, team=TWO):
    record = np.zeros(1, WEIGHT)
    kept = describe(record[0], weight, bias)
    y = np.full((len(x), weight.shape[0]), np.nan, dtype=np.float32)
    team.run(product_alone, 1, record[0], x, y)
    del kept
    return y


def check(weight, x, bias=None, team=TWO):
    wide = weight if isinstance(weight, np.ndarray) else weight.rows(np.arange(weight.shape[0]))
    expected = x.astype(np.float64) @ wide.astype(np.float64).T + (0 if bias is None else bias)
    terms = np.abs(x).astype(np.float64) @ np.abs(wide).astype(np.float64).T  # rounding is relative to these
    assert (np.abs(compiled(weight, x, bias, team) - expected) <= 2e-6 * terms + 1e-30).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vectors", [1, 2, 4, 5, 16] if COMPILES else [1, 5])
def test_it_is_linear(form, vectors):
    height, width = (200, 608) if COMPILES else (98, 64)  # more than one block of rows
    check(FORMS[form](random(height, width)), random(vectors, width, seed=1), random(height, seed=2))


@needs_numba
@pytest.mark.parametrize("form", FORMS)
@given(height=st.integers(1, 230), groups=st.integers(1, 5), vectors=st.integers(1, 9), biased=st.booleans())
def test_any_size(form, height, groups, vectors, biased):
    weight = FORMS[form](random(height, 32 * groups))
    check(weight, random(vectors, 32 * groups, seed=1), random(height, seed=2) if biased else None)


@needs_numba
@pytest.mark.parametrize("form", ["float32", "bfloat16", "float16"])
@given(height=st.integers(1, 70), width=st.integers(1, 1100), vectors=st.integers(1, 6))
def test_any_width_without_groups(form, height, width, vectors):
    check(FORMS[form](random(height, width)), random(vectors, width, seed=1))


@needs_numba
@given(height=st.integers(1, 900), eights=st.integers(1, 12), vectors=st.integers(1, 6))
def test_any_number_of_columns(height, eights, vectors):
    check(FORMS["by columns"](random(height, 8 * eights)), random(vectors, 8 * eights, seed=1))


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
@pytest.mark.parametrize("vectors", [1, 5])
def test_blocks_of_gguf(kind, vectors):
    height, width = (130, 512) if COMPILES else (5, 256)
    check(from_file(kind, height, width), random(vectors, width, seed=1))


@needs_numba
@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_threads_does_not_change_a_bit(form):
    weight, x = FORMS[form](random(777, 320)), random(3, 320, seed=1)
    assert np.array_equal(compiled(weight, x, team=ONE), compiled(weight, x, team=TWO))


@needs_numba
@pytest.mark.parametrize("form", ["float32", "by columns", "bfloat16", "float16"])
@pytest.mark.parametrize("vectors", [1, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_kept(form, vectors, bad):
    weight, x = FORMS[form](random(40, 96)), random(vectors, 96, seed=1)
    x[0, 7] = bad
    y = compiled(weight, x)
    assert not np.isfinite(y[0]).any()
    assert np.isfinite(y[1:]).all()


@needs_numba
def test_float16_is_exact_down_to_its_subnormal_numbers():
    codes = np.arange(2**16, dtype=np.uint16).view(np.float16)
    codes = codes[np.isfinite(codes)].reshape(-1, 1)
    assert np.array_equal(
        compiled(Half(codes, WORKERS), np.ones((1, 1), np.float32))[0], codes[:, 0].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (np.zeros((4, 4)), "ndarray"),
        (np.zeros((8, 8), np.float32)[::2, ::2], "contiguous"),
        (row_groups(in_groups(random(4, 32), 8)), "RowGroups"),
        (np.asfortranarray(random(8, 12)), "multiples of 8, got 12"),
    ],
)
def test_what_has_no_loop_is_refused(weight, says):
    with pytest.raises(Unsupported, match=says):
        describe(np.zeros(1, WEIGHT)[0], weight)


def test_groups_of_another_kind_are_refused():
    groups = in_groups(random(4, 32), 8)
    groups.codes = groups.codes.view(np.uint8)
    with pytest.raises(Unsupported, match="uint8"):
        describe(np.zeros(1, WEIGHT)[0], groups)


def test_a_bias_must_be_float32():
    with pytest.raises(Unsupported, match="float64"):
        describe(np.zeros(1, WEIGHT)[0], random(4, 4), np.zeros(4))


def test_the_forms_are_numbered_in_order():
    """`product` compares them."""
    assert records.FLOAT32 < records.BFLOAT16 < records.FLOAT16 < records.COLUMNS < records.BYTES < records.NIBBLES
