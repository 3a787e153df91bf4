"""Absolute positions: GPT-2's block, the original block, and the pass that adds a vector for each position."""

import math
import sys
from functools import partial

import loops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import gpt2_keys, random_gpt2_weights, random_ids, random_weights, tiny_config, tiny_gpt2_config
from tolerance import assert_close

import npllm
from npllm.apps.calls import generate
from npllm.attention import attention
from npllm.block import original_block
from npllm.cache import empty_cache
from npllm.devices.device import to_host
from npllm.families.gpt2 import ACTIVATIONS, gpt2_block, gpt2_transform
from npllm.heads import lm_head
from npllm.inspect.record import record
from npllm.lm import LM
from npllm.masks import causal, decoder_mask
from npllm.model import transform
from npllm.positions import sinusoidal_positions

original_transform = partial(gpt2_transform, block=original_block, final_norm=False)
PASSES = {"gpt2": gpt2_transform, "original": original_transform}
BLOCKS = {"gpt2": gpt2_block, "original": original_block}
BATCHES = st.sampled_from([(), (2,)])
kinds = pytest.mark.parametrize("kind", PASSES)

# Every tap of a block in execution order, with the letters of npllm/shapes.py.
ATTENTION = {
    "attention.q": "N T H",
    "attention.k": "N T H",
    "attention.v": "N T H",
    "attention.scores": "N T S",
    "attention.weights": "N T S",
    "attention.mixed": "N T H",
    "attention.output": "T D",
    "residual_after_attention": "T D",
}
FEEDFORWARD = {
    "feedforward.up": "T F",
    "feedforward.activation": "T F",
    "feedforward.output": "T D",
    "residual_after_feedforward": "T D",
}
OF_A_BLOCK = {
    "gpt2": {"input_layernorm": "T D", **ATTENTION, "post_attention_layernorm": "T D", **FEEDFORWARD},
    "original": {**ATTENTION, "post_attention_layernorm": "T D", **FEEDFORWARD, "post_feedforward_layernorm": "T D"},
}


def taps(kind):
    return {
        **dict.fromkeys(("embedding", "position_embedding", "residual_after_embedding"), "T D"),
        **{f"layers.{layer}.{name}": shape for layer in range(2) for name, shape in OF_A_BLOCK[kind].items()},
        **({"norm": "T D"} if kind == "gpt2" else {}),
        "logits": "T V",
    }


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def original_weights(config, seed=0, biases=True):
    """A tiny 2017 model, with sinusoidal positions and no norm after the last block's."""
    weights = random_gpt2_weights(config, seed, biases)
    waves = sinusoidal_positions(np.arange(config.max_position_embeddings), config.hidden_size)
    return weights._replace(embed_positions=waves, norm=weights.layers[-1].ln_2)


def weights_of(kind, config, seed=0, biases=True):
    return (random_gpt2_weights if kind == "gpt2" else original_weights)(config, seed, biases)


def logits(kind, ids, weights, config, *arguments, **options):
    return npllm.forward(ids, LM(config, weights, None, {}, PASSES[kind]), *arguments, **options)[0]


# The activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_the_function_of_its_name(lib, name):
    def expected(x):
        if name in ("gelu", "gelu_python"):
            return x * (1 + math.erf(x / math.sqrt(2))) / 2
        if name in ("silu", "swish"):
            return x / (1 + math.exp(-x))
        return max(x, 0.0) if name == "relu" else loops.gelu(x)

    x = np.linspace(-6, 6, 49, dtype=np.float32)
    y = to_host(ACTIVATIONS[name](lib.array(x)))
    np.testing.assert_allclose(y, [expected(float(one)) for one in x], rtol=0, atol=2e-6)


# The blocks


@kinds
@given(keys=gpt2_keys(), length=st.integers(1, 4), biases=st.booleans())
def test_a_block_is_the_loop(lib, kind, keys, length, biases):
    config = tiny_gpt2_config(**keys)
    weights, x = random_gpt2_weights(config, biases=biases).layers[0], random(length, config.hidden_size)
    y = BLOCKS[kind](lib.array(x), lib.tree(weights), config, decoder_mask(0, length, None, lib.array([0])))
    original = kind == "original"
    expected = loops.plain_block(x, weights, config, loops.relu if original else loops.gelu, post_norm=original)
    assert_close("block", to_host(y), expected)


def without_projections(config):
    weights = random_gpt2_weights(config, biases=False).layers[0]
    return weights._replace(o_proj=0 * weights.o_proj, c_proj=0 * weights.c_proj)


def test_with_projections_of_zero_gpt2s_residual_stream_passes_unchanged(lib):
    config = tiny_gpt2_config()
    x = 1000 * random(3, config.hidden_size)
    y = gpt2_block(lib.array(x), lib.tree(without_projections(config)), config, None)
    np.testing.assert_array_equal(to_host(y), x)


def test_with_projections_of_zero_the_original_block_still_normalizes_twice(lib):
    config = tiny_gpt2_config()
    weights, x = without_projections(config), 1000 * random(3, config.hidden_size)
    once = [loops.layer_norm(row, weights.ln_1, weights.ln_1_bias, config.layer_norm_epsilon) for row in x]
    twice = [loops.layer_norm(row, weights.ln_2, weights.ln_2_bias, config.layer_norm_epsilon) for row in once]
    assert_close("block", to_host(original_block(lib.array(x), lib.tree(weights), config, None)), twice)


def test_what_an_original_block_gives_is_normalized_and_what_gpt2s_gives_is_not(lib):
    config = tiny_gpt2_config()
    weights = random_gpt2_weights(config).layers[0]
    ones, zeros = np.ones(config.hidden_size, dtype=np.float32), np.zeros(config.hidden_size, dtype=np.float32)
    weights = lib.tree(weights._replace(ln_2=ones, ln_2_bias=zeros))
    x = lib.array(100 * random(3, config.hidden_size))
    squares = {kind: np.mean(to_host(BLOCKS[kind](x, weights, config, None)) ** 2, axis=-1) for kind in BLOCKS}
    assert_close("original", squares["original"], np.ones(3))
    assert np.all(squares["gpt2"] > 100)


@kinds
def test_neither_block_turns_queries_and_keys(kind):
    config, seen = tiny_gpt2_config(), {}
    weights, x = random_gpt2_weights(config).layers[0], random(3, config.hidden_size)

    def looking(q, k, v, visible, *, tap):
        seen["attended"] = q, k, v
        return attention(q, k, v, visible, tap=tap)

    BLOCKS[kind](x, weights, config, None, attention=looking, tap=seen.setdefault)
    for attended, name in zip(seen["attended"], "qkv", strict=True):
        np.testing.assert_array_equal(attended, seen[f"attention.{name}"])


@kinds
@given(order=st.permutations(range(4)))
def test_a_block_alone_takes_its_tokens_for_a_bag(lib, kind, order):
    """So positions must be added before the block. A block with RoPE would fail this test."""
    config = tiny_gpt2_config()
    weights, x = lib.tree(random_gpt2_weights(config).layers[0]), random(4, config.hidden_size)
    permuted, in_order = (to_host(BLOCKS[kind](lib.array(some), weights, config, None)) for some in (x[order], x))
    assert_close("permuted", permuted, in_order[order])


# The whole pass


@kinds
@given(keys=gpt2_keys(), length=st.integers(1, 4), seed=st.integers(0, 5))
def test_the_pass_is_the_loop(lib, kind, keys, length, seed):
    config = tiny_gpt2_config(**keys)
    weights, ids = weights_of(kind, config, seed, biases=seed % 2 == 1), random_ids(config, length, seed=seed)
    hidden, cache = PASSES[kind](lib.array(ids), lib.tree(weights), config)
    assert cache is None
    assert hidden.dtype == lib.xp.float32
    assert_close("hidden", to_host(hidden), loops.gpt2_hidden(ids, weights, config, original=kind == "original"))


@kinds
@given(keys=gpt2_keys(), length=st.integers(1, 7), batch=BATCHES)
def test_cache_equals_no_cache(writable_lib, kind, keys, length, batch):
    lib, config = writable_lib, tiny_gpt2_config(**keys)
    weights, ids = lib.tree(weights_of(kind, config)), random_ids(config, *batch, length)
    whole = to_host(logits(kind, lib.array(ids), weights, config))
    cache = empty_cache(config, length, batch, like=weights.norm)
    for t in range(length):  # token by token, as generation does
        row = logits(kind, lib.array(ids[..., t : t + 1]), weights, config, cache)
        assert_close("logits", to_host(row), whole[..., t : t + 1, :])
    assert cache["length"] == length


@kinds
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=BATCHES)
def test_chunked_equals_whole(writable_lib, kind, chunks, batch):
    lib, config = writable_lib, tiny_gpt2_config()
    weights, ids = lib.tree(weights_of(kind, config)), random_ids(config, *batch, sum(chunks))
    whole = to_host(logits(kind, lib.array(ids), weights, config))
    cache = empty_cache(config, sum(chunks) + 2, batch, like=weights.norm)
    ends = np.cumsum(chunks)
    for start, end in zip(ends - chunks, ends, strict=True):
        chunk = logits(kind, lib.array(ids[..., start:end]), weights, config, cache)
        assert_close("logits", to_host(chunk), whole[..., start:end, :])


@kinds
@given(batch=st.integers(1, 3), length=st.integers(1, 5))
def test_batch_equals_single(lib, kind, batch, length):
    config = tiny_gpt2_config()
    weights, ids = weights_of(kind, config), random_ids(config, batch, length)
    together = to_host(logits(kind, lib.array(ids), lib.tree(weights), config))
    for one in range(batch):
        assert_close("logits", together[one], logits(kind, ids[one], weights, config))


@kinds
@given(known=st.integers(1, 5))
def test_no_token_looks_ahead(lib, kind, known):
    config = tiny_gpt2_config()
    ids = random_ids(config, 6)
    others = np.concatenate([ids[:known], (ids[known:] + 1) % config.vocab_size])
    weights = lib.tree(weights_of(kind, config))
    before, after = (to_host(logits(kind, lib.array(text), weights, config)) for text in (ids, others))
    np.testing.assert_array_equal(before[:known], after[:known])
    assert np.any(before[known:] != after[known:])


@kinds
def test_with_all_visible_every_token_looks_ahead(lib, kind):
    config = tiny_gpt2_config()
    ids, weights = random_ids(config, 4), lib.tree(weights_of(kind, config))
    others = np.concatenate([ids[:3], (ids[3:] + 1) % config.vocab_size])
    everything = lib.array(np.ones((4, 4), dtype=bool))
    before, after = (to_host(logits(kind, lib.array(x), weights, config, visible=everything)) for x in (ids, others))
    assert np.all(np.any(before != after, axis=-1))


@kinds
def test_visible_is_one_mask_for_all_layers_or_one_for_each(kind):
    config = tiny_gpt2_config()
    weights, ids = weights_of(kind, config), random_ids(config, 4)
    mask, full = causal(np.arange(4), np.arange(4)), np.ones((4, 4), dtype=bool)
    expected = logits(kind, ids, weights, config)
    np.testing.assert_array_equal(logits(kind, ids, weights, config, visible=mask), expected)
    np.testing.assert_array_equal(logits(kind, ids, weights, config, visible=[mask, mask]), expected)
    both_ways = logits(kind, ids, weights, config, visible=full)
    np.testing.assert_array_equal(logits(kind, ids, weights, config, visible=[None, None]), both_ways)
    mixed = logits(kind, ids, weights, config, visible=[mask, full])
    assert np.any(mixed != expected)
    assert np.any(mixed != both_ways)


@kinds
@given(batch=BATCHES)
def test_positions_count_on_from_the_cache(writable_lib, kind, batch):
    lib, config = writable_lib, tiny_gpt2_config()
    weights, ids = lib.tree(weights_of(kind, config)), random_ids(config, *batch, 5)
    positions = np.broadcast_to(np.arange(5), ids.shape)
    default, given_ = (empty_cache(config, 5, batch, like=weights.norm) for _ in range(2))
    for part in (np.s_[..., :2], np.s_[..., 2:]):
        some = lib.array(ids[part])
        got = logits(kind, some, weights, config, given_, positions=lib.array(positions[part]))
        np.testing.assert_array_equal(to_host(got), to_host(logits(kind, some, weights, config, default)))


@given(shift=st.integers(1, 10))
def test_positions_are_absolute_another_place_is_another_result(lib, shift):
    config = tiny_gpt2_config()
    weights, ids = lib.tree(random_gpt2_weights(config)), lib.array(random_ids(config, 5))
    here, there = (
        to_host(logits("gpt2", ids, weights, config, positions=lib.array(np.arange(5) + by))) for by in (0, shift)
    )
    assert np.all(np.any(np.abs(there - here) > 1e-3, axis=-1))  # RoPE would make them equal


@kinds
def test_the_position_vectors_are_added_once_before_the_first_block(lib, kind):
    config, seen = tiny_gpt2_config(), {}
    weights, ids = weights_of(kind, config), random_ids(config, 2, 5)
    logits(kind, lib.array(ids), lib.tree(weights), config, tap=record(seen))
    np.testing.assert_array_equal(to_host(seen["embedding"]), weights.embed_tokens[ids])
    np.testing.assert_array_equal(to_host(seen["position_embedding"]), weights.embed_positions[:5])
    added = weights.embed_tokens[ids] + weights.embed_positions[:5]
    np.testing.assert_array_equal(to_host(seen["residual_after_embedding"]), added)
    folded = weights._replace(embed_tokens=added[0], embed_positions=0 * weights.embed_positions)
    hidden, _ = PASSES[kind](lib.array(ids[0]), lib.tree(weights), config)
    same, _ = PASSES[kind](lib.array(np.arange(5)), lib.tree(folded), config)
    np.testing.assert_array_equal(to_host(same), to_host(hidden))


def test_where_the_table_ends_there_are_no_positions():
    config = tiny_gpt2_config(n_positions=4)
    weights = random_gpt2_weights(config)
    with pytest.raises(IndexError):
        gpt2_transform(random_ids(config, 5), weights, config)


def test_the_last_norm_is_gpt2s_and_the_original_has_its_blocks(lib):
    config, seen = tiny_gpt2_config(), {}
    weights, ids = random_gpt2_weights(config), lib.array(random_ids(config, 3))
    hidden, _ = gpt2_transform(ids, lib.tree(weights), config, tap=record(seen))
    residual = to_host(seen["layers.1.residual_after_feedforward"])
    norm = weights.norm, weights.norm_bias, config.layer_norm_epsilon
    assert_close("norm", to_host(hidden), [loops.layer_norm(row, *norm) for row in residual])
    seen = {}
    hidden, _ = original_transform(ids, lib.tree(original_weights(config)), config, tap=record(seen))
    np.testing.assert_array_equal(to_host(hidden), to_host(seen["layers.1.post_feedforward_layernorm"]))


# Taps


@kinds
@pytest.mark.parametrize("batch", [(), (2,)], ids=["sequence", "batch"])
def test_every_tap_has_its_name_its_shape_and_its_turn(kind, batch):
    config = tiny_gpt2_config()
    sizes = {"T": 3, "S": 5, "D": 8, "N": 2, "H": 4, "F": 6, "V": 11}
    weights, seen = weights_of(kind, config), {}
    cache = empty_cache(config, 5, batch, like=weights.norm)
    PASSES[kind](random_ids(config, *batch, 2), weights, config, cache)
    logits(kind, random_ids(config, *batch, 3), weights, config, cache, tap=record(seen))
    assert list(seen) == list(taps(kind))
    for name, letters in taps(kind).items():
        of_batch = () if name == "position_embedding" else batch  # shared by the batch
        assert seen[name].shape == (*of_batch, *(sizes[letter] for letter in letters.split())), name


@kinds
def test_looking_changes_nothing(lib, kind):
    config = tiny_gpt2_config()
    weights, ids = lib.tree(weights_of(kind, config)), lib.array(random_ids(config, 4))
    seen = {}
    tapped = logits(kind, ids, weights, config, tap=record(seen))
    np.testing.assert_array_equal(to_host(tapped), to_host(logits(kind, ids, weights, config)))
    np.testing.assert_array_equal(to_host(seen["logits"]), to_host(tapped))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PASSES for name in taps(kind)])
def test_a_tap_that_returns_another_value_changes_the_result(kind, name):
    config = tiny_gpt2_config()
    weights, ids = weights_of(kind, config), random_ids(config, 4)

    def patching(tapped, value):
        return value[..., ::-1] if tapped == name else value

    assert np.any(logits(kind, ids, weights, config, tap=patching) != logits(kind, ids, weights, config))


# As a language model


def test_forward_takes_the_pass_as_an_argument():
    config = tiny_gpt2_config()
    weights, ids = random_gpt2_weights(config), random_ids(config, 5)
    expected = lm_head(gpt2_transform(ids, weights, config)[0], weights, config)
    np.testing.assert_array_equal(logits("gpt2", ids, weights, config), expected)


def test_a_language_model_has_the_modern_pass_unless_it_says_otherwise():
    config = tiny_config()
    assert LM(config, random_weights(config), None, {}).transform is transform
    assert LM(config, random_weights(config), None, {}, gpt2_transform).transform is gpt2_transform


@kinds
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_takes_the_best_logit_of_the_models_own_pass(writable_lib, kind, use_cache, monkeypatch):
    monkeypatch.setattr(sys.modules["npllm.loop"], "PREFILL_CHUNK", 3)
    lib, config = writable_lib, tiny_gpt2_config()
    weights, ids = weights_of(kind, config), random_ids(config, 7).tolist()
    lm = LM(config, lib.tree(weights), None, {}, PASSES[kind])
    expected = list(ids)
    for _ in range(6):
        expected.append(int(np.argmax(logits(kind, np.array(expected), weights, config)[-1])))
    assert generate(lm, ids, max_new_tokens=6, use_cache=use_cache).ids == expected[7:]


# Against torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")


def torch_layer(torch, weights, config):
    """torch's version of the original block, with our weights."""
    layer = torch.nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        dropout=0.0,
        activation="relu",
        layer_norm_eps=config.layer_norm_epsilon,
        batch_first=True,
        norm_first=False,
    )
    names = {
        "self_attn.in_proj_weight": "qkv_proj",
        "self_attn.in_proj_bias": "qkv_proj_bias",
        "self_attn.out_proj.weight": "o_proj",
        "self_attn.out_proj.bias": "o_proj_bias",
        "linear1.weight": "c_fc",
        "linear1.bias": "c_fc_bias",
        "linear2.weight": "c_proj",
        "linear2.bias": "c_proj_bias",
        "norm1.weight": "ln_1",
        "norm1.bias": "ln_1_bias",
        "norm2.weight": "ln_2",
        "norm2.bias": "ln_2_bias",
    }
    layer.load_state_dict({theirs: torch.tensor(getattr(weights, ours)) for theirs, ours in names.items()})
    return layer.eval()


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(10))
def test_the_original_stack_is_that_of_torch(torch, seed):
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    keys = {
        "n_embd": heads * 2 * int(rng.integers(1, 5)),
        "n_head": heads,
        "n_layer": int(rng.integers(1, 4)),
        "n_inner": int(rng.integers(1, 40)),
        "layer_norm_epsilon": 10 ** rng.uniform(-6, -1),
    }
    config = tiny_gpt2_config(**keys)
    weights, ids = original_weights(config, seed), random_ids(config, 2, int(rng.integers(1, 16)), seed=seed)
    for bidirectional in (False, True):
        x = torch.tensor(weights.embed_tokens[ids] + weights.embed_positions[: ids.shape[1]])
        mask = None if bidirectional else torch.triu(torch.ones(2 * ids.shape[1:], dtype=torch.bool), diagonal=1)
        with torch.no_grad():
            for block_weights in weights.layers:
                x = torch_layer(torch, block_weights, config)(x, src_mask=mask)
        visible = [None] * config.num_hidden_layers if bidirectional else None
        assert_close("hidden", original_transform(ids, weights, config, visible=visible)[0], x.numpy())
