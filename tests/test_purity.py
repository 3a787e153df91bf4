"""The math never needs a value on the host: it runs on torch's "meta" device, whose arrays hold no values.

Anything that would make a GPU wait raises there: `.item()`, int(), float(), bool(), an `if` on a value or a copy to
NumPy. Also, products with weights have two matrices as operands, which CuPy multiplies without copying.
"""

import ast
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import Library
from models import (
    config_keys,
    gpt2_keys,
    random_gpt2_weights,
    random_ids,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)

import npllm
from npllm.attention import attention
from npllm.block import original_block
from npllm.cache import empty_cache, grow
from npllm.families.gpt2 import gpt2_transform
from npllm.flash import flash_attention
from npllm.heads import lm_head, sequence_classification_head, token_classification_head
from npllm.lm import LM
from npllm.masks import alternating, bidirectional, block_local, causal, fixed, same_document, sliding_window, strided
from npllm.model import forward, transform
from npllm.norm import layer_norm, rms_norm
from npllm.positions import sinusoidal_positions

GROUND_FLOOR = sorted(Path(npllm.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module", params=[pytest.param("meta", marks=pytest.mark.torch)])
def meta(request) -> Library:
    """torch on its meta device, which only tracks shapes and dtypes."""
    pytest.importorskip("torch", reason="torch is not installed")
    return Library(import_module("array_api_compat.torch"), request.param)


def check(array, shape):
    """Assert that the array has the right shape, is float32 and stayed on the device."""
    assert tuple(array.shape) == shape
    assert str(array.dtype) == "torch.float32"
    assert array.device.type == "meta"


@pytest.mark.slow
@given(keys=config_keys(), new=st.integers(1, 5), past=st.integers(0, 4), biases=st.booleans())
def test_a_pass_never_asks_for_a_value(meta, keys, new, past, biases):
    """Without a cache, with one, and in the decode step that follows."""
    config = tiny_config(**keys)
    weights = meta.tree(random_weights(config, biases=biases))
    ids = meta.array(random_ids(config, past + new))
    check(forward(ids, weights, config)[0], (past + new, config.vocab_size))
    batch = meta.array(random_ids(config, 2, new))
    check(forward(batch, weights, config)[0], (2, new, config.vocab_size))
    cache = empty_cache(config, past + new, like=weights.norm)
    for part in (ids[:past], ids[past:]):
        if part.shape[0]:
            hidden, _ = transform(part, weights, config, cache)
    check(lm_head(hidden[-1:, :], weights, config), (1, config.vocab_size))
    assert cache["length"] == past + new
    grow(cache, past + new + 3)
    check(transform(ids[-1:], weights, config, cache)[0], (1, config.hidden_size))


@given(keys=gpt2_keys(), new=st.integers(1, 5))
def test_a_pass_of_gpt2_never_asks_for_a_value(meta, keys, new):
    config = tiny_gpt2_config(**keys)
    weights = meta.tree(random_gpt2_weights(config))
    ids = meta.array(random_ids(config, new))
    check(npllm.forward(ids, LM(config, weights, None, {}, gpt2_transform))[0], (new, config.vocab_size))
    options = {"block": original_block, "final_norm": False}
    check(gpt2_transform(ids, weights, config, **options)[0], (new, config.hidden_size))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
        {"temperature": 0.0, "repetition_penalty": 1.2},
    ],
)
def test_a_token_is_chosen_without_asking_for_a_value_and_fetched_in_16_bytes(meta, monkeypatch, options):
    """The id and what its log-probability is made of are copied to the host together, and nothing else is."""
    copies = []

    def to_host(array):
        copies.append((tuple(array.shape), array.dtype.itemsize))
        return np.array([7, 1.5, 2.0, 1.5], dtype=np.float32)

    monkeypatch.setattr(import_module("npllm.loop"), "to_host", to_host)
    config = tiny_config()
    lm = LM(config, meta.tree(random_weights(config)), None, {})
    cache = empty_cache(config, 8, like=lm.weights.norm)
    steps = list(npllm.steps(lm, [3], max_new_tokens=4, cache=cache, seed=0, **options))
    assert [step.id for step in steps] == [7] * 4
    assert copies == [((4,), 4)] * 4


def test_masks_heads_norms_and_positions_never_ask_for_a_value(meta):
    xp = meta.xp
    places = xp.arange(6, device="meta")
    masks = [
        bidirectional(places, places),
        causal(places, places),
        sliding_window(places, places, 3),
        strided(places, places, 2),
        fixed(places, places, 2),
        block_local(places, places, block=2),
        causal(places, places) & same_document(places, places),
    ]
    config = tiny_config()
    weights = meta.tree(random_weights(config))._replace(score=xp.zeros((3, 8), device="meta"))
    ids = meta.array(random_ids(config, 2, 6))
    for visible in masks:
        assert tuple(visible.shape) == (6, 6)
        hidden, _ = transform(ids, weights, config, visible=alternating(2, visible, None))
        check(hidden, (2, 6, 8))
    check(sequence_classification_head(hidden, weights, ids, 0), (2, 3))
    check(token_classification_head(hidden, weights), (2, 6, 3))
    check(rms_norm(hidden, weights.norm, 1e-5), (2, 6, 8))
    check(layer_norm(hidden, weights.norm, weights.norm, 1e-5), (2, 6, 8))
    check(sinusoidal_positions(places, 8), (6, 8))


def test_flash_attention_asks_for_one_thing_only_which_tiles_are_visible(meta):
    """Python decides which tiles to compute. A decode step has one query and uses no tiles."""
    q = meta.xp.zeros((4, 6, 4), device="meta")
    check(flash_attention(q, q, q, tile=(2, 3)), (4, 6, 4))
    places = meta.xp.arange(6, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|item"):
        flash_attention(q, q, q, causal(places, places), tile=(2, 3))


@pytest.mark.parametrize(
    "stray",
    [
        lambda q: q.max().item(),
        lambda q: float(q.max()),
        lambda q: q if q.max() > 0 else -q,
        lambda q: np.asarray(q),
        lambda q: q * np.ones(4, dtype=np.float32),
        lambda q: q[q > 0],
    ],
    ids=["item", "float", "if", "numpy", "numpy array in the path", "as many as are positive"],
)
def test_a_stray_question_raises(meta, stray):
    """A check that the tests above would notice."""

    def asking(q, k, v, visible=None, **options):
        stray(q)
        return attention(q, k, v, visible, **options)

    config = tiny_config()
    weights = meta.tree(random_weights(config))
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        forward(meta.array(random_ids(config, 3)), weights, config, attention=asking)


# Products with weights


class Watched(np.ndarray):
    """A weight that records its products. Results computed from it are plain arrays."""

    products: list = []  # noqa: RUF012

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if ufunc is np.matmul:
            Watched.products.append([np.ndim(array) for array in inputs])
        return getattr(ufunc, method)(*(np.asarray(array) for array in inputs), **options)

    def __array_function__(self, function, types, arguments, options):
        Watched.products += [["einsum"]] * (function.__name__ in ("einsum", "tensordot", "dot", "inner"))
        return super().__array_function__(function, types, arguments, options)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 1, 5)])
def test_products_with_weights_are_of_two_matrices(shape):
    """With more axes, CuPy's matmul and einsum first copy the whole weight and widen it to float32."""
    config = tiny_config()
    plain = random_weights(config, biases=True)
    layers = tuple(
        type(b)(*(array.view(Watched) if array is not None and array.ndim == 2 else array for array in b))
        for b in plain.layers
    )
    watched = plain._replace(layers=layers, lm_head=plain.lm_head.view(Watched))
    ids = random_ids(config, *shape)
    Watched.products.clear()
    logits, _ = forward(ids, watched, config)
    assert Watched.products == [[2, 2]] * (4 * config.num_hidden_layers + 1)
    np.testing.assert_array_equal(logits, forward(ids, plain, config)[0])


@pytest.mark.parametrize("path", GROUND_FLOOR, ids=lambda path: path.stem)
def test_the_ground_floor_has_no_einsum(path):
    names = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not names & {"einsum", "tensordot", "item", "tolist", "get"}
