"""Phi-3-small, which transformers does not have, against a whole model of loops that reads the published files' layout.

The loops read config.json's keys and the tensors by the names and in the layout of the published files. They follow
configuration_phi3_small.py, modeling_phi3_small.py and tokenization_phi3_small.py there, and share nothing with npllm.
"""

import json
import warnings
from math import cos, exp, inf, sin, sqrt

import loops
import numpy as np
import pytest
from checkpoints import DTYPES, write_files
from tolerance import assert_close, assert_same_ids

import npllm
from npllm.cache import empty_cache
from npllm.config import Config
from npllm.errors import ModelFileError
from npllm.families import read_config
from npllm.families.activations import bounded_glu
from npllm.families.phi3small import UNUSED
from npllm.masks import causal

KEYS = {
    "architectures": ["Phi3SmallForCausalLM"],
    "model_type": "phi3small",
    "attention_dropout_prob": 0.0,
    "blocksparse_block_size": 2,
    "blocksparse_homo_head_pattern": False,
    "blocksparse_num_local_blocks": 2,
    "blocksparse_triton_kernel_block_size": 64,
    "blocksparse_vert_stride": 3,
    "bos_token_id": 1,
    "dense_attention_every_n_layers": 2,
    "embedding_dropout_prob": 0.1,
    "eos_token_id": 1,
    "ff_dim_multiplier": None,
    "ff_intermediate_size": 10,
    "ffn_dropout_prob": 0.1,
    "gegelu_limit": 1.5,
    "gegelu_pad_to_256": True,
    "hidden_act": "gegelu",
    "hidden_size": 24,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-3,
    "max_position_embeddings": 64,
    "mup_attn_multiplier": 1.3,
    "mup_embedding_multiplier": 3.0,
    "mup_use_scaling": True,
    "mup_width_multiplier": 2.0,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_sequence_to_multiple_of_64": True,
    "reorder_and_upcast_attn": False,
    "rope_embedding_base": 100,
    "rope_position_scale": 1.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 40,
}
LONGROPE = {
    "type": "su",
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [1.5, 3.0, 7.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 10,
}
IDS = np.random.default_rng(5).integers(2, 40, 17).tolist()  # nine blocks of two, the last one not full


def random_tensors(keys, dtype="float32", seed=0):
    """Tensors under the published names, with norms, biases and multipliers that show."""
    rng = np.random.default_rng(seed)
    width, inner, heads, kv = (
        keys[name] for name in ("hidden_size", "ff_intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    tensors = {"model.embed_tokens.weight": 0.5 * rng.standard_normal((keys["vocab_size"], width))}

    def layer(name, rows, columns):
        tensors[f"{name}.weight"] = 1.5 * columns**-0.5 * rng.standard_normal((rows, columns))
        tensors[f"{name}.bias"] = 0.3 * rng.standard_normal(rows)

    def norm(name):
        tensors[f"{name}.weight"] = 1 + 0.3 * rng.standard_normal(width)
        tensors[f"{name}.bias"] = 0.3 * rng.standard_normal(width)

    for i in range(keys["num_hidden_layers"]):
        norm(f"model.layers.{i}.input_layernorm")
        layer(f"model.layers.{i}.self_attn.query_key_value", (heads + 2 * kv) * (width // heads), width)
        layer(f"model.layers.{i}.self_attn.dense", width, width)
        norm(f"model.layers.{i}.post_attention_layernorm")
        layer(f"model.layers.{i}.mlp.up_proj", 2 * inner, width)
        layer(f"model.layers.{i}.mlp.down_proj", width, inner)
    norm("model.final_layernorm")
    if keys.get("tie_word_embeddings") is False:
        tensors["lm_head.weight"] = width**-0.5 * rng.standard_normal((keys["vocab_size"], width))
    return {name: value.astype(DTYPES[dtype]) for name, value in tensors.items()}


# The model as loops: t is a query token, s a key token, n a query head, k a key/value head


def rotated(x, position, length, keys):
    """x [H], rotated; LongRoPE's factors are chosen by the length of the whole text."""
    pairs, scaling = len(x) // 2, keys.get("rope_scaling")
    factors, scale = [1.0] * pairs, 1.0
    if scaling is not None:
        kind = "long" if length > scaling["original_max_position_embeddings"] else "short"
        factors, scale = scaling[f"{kind}_factor"], scaling[f"{kind}_mscale"]
    out = np.zeros(len(x))
    for i in range(pairs):
        angle = position / (factors[i] * keys["rope_embedding_base"] ** (2 * i / len(x)))
        out[i] = scale * (x[i] * cos(angle) - x[i + pairs] * sin(angle))
        out[i + pairs] = scale * (x[i + pairs] * cos(angle) + x[i] * sin(angle))
    return out


def seen(t, n, layer, keys):
    """The tokens that token t sees in head n of a layer."""
    every = keys["dense_attention_every_n_layers"]
    if every and (layer + 1) % every == 0:
        return range(t + 1)
    size, near, stride = (keys[f"blocksparse_{key}"] for key in ("block_size", "num_local_blocks", "vert_stride"))
    step = max(1, int(stride / keys["num_attention_heads"]))
    moved = 0 if keys["blocksparse_homo_head_pattern"] else n * step

    def kept(block):
        return t // size - block < near or (block + moved + 1) % stride == 0

    return [s for s in range(t + 1) if kept(s // size)]


def gated(gate, up, limit):
    """One neuron: a rough GELU of the clamped gate, times the clamped other half plus 1."""
    gate, up = min(float(gate), limit), max(min(float(up), limit), -limit)
    return gate / (1 + exp(-1.702 * gate)) * (up + 1)


def attended(x, layer, tensors, keys):
    """x [T, D], normalized. What the attention layer adds."""
    prefix, heads, kv = f"model.layers.{layer}.self_attn", keys["num_attention_heads"], keys["num_key_value_heads"]
    width, group = keys["hidden_size"] // heads, heads // kv
    scale = keys["mup_attn_multiplier"] / width if keys["mup_use_scaling"] else 1 / sqrt(width)
    q, k, v = {}, {}, {}
    for t, row in enumerate(x):
        flat = loops.linear(row, tensors[f"{prefix}.query_key_value.weight"], tensors[f"{prefix}.query_key_value.bias"])
        rows = iter(np.split(flat, len(flat) // width))
        for i in range(kv):
            for j in range(group):
                q[i * group + j, t] = rotated(next(rows), t, len(x), keys)
            k[i, t] = rotated(next(rows), t, len(x), keys)
            v[i, t] = next(rows)
    out = []
    for t in range(len(x)):
        mixed = []
        for n in range(heads):
            places = seen(t, n, layer, keys)
            shares = [exp(loops.dot(q[n, t], k[n // group, s]) * scale) for s in places]
            mixed.append(sum(share * v[n // group, s] for share, s in zip(shares, places, strict=True)) / sum(shares))
        out.append(
            loops.linear(np.concatenate(mixed), tensors[f"{prefix}.dense.weight"], tensors[f"{prefix}.dense.bias"])
        )
    return np.array(out)


def expected_values(ids, tensors, keys):
    """The residual stream after each layer, and the logits."""
    values = {}
    norm = {key: tensors[f"model.final_layernorm.{key}"] for key in ("weight", "bias")} | {
        "eps": keys["layer_norm_epsilon"]
    }
    embedding = keys["mup_embedding_multiplier"] or 1.0
    x = np.array([tensors["model.embed_tokens.weight"][id].astype(float) * embedding for id in ids])

    def normed(x, name):
        return np.array(
            [loops.layer_norm(row, tensors[f"{name}.weight"], tensors[f"{name}.bias"], norm["eps"]) for row in x]
        )

    for layer in range(keys["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        x = x + attended(normed(x, f"{prefix}.input_layernorm"), layer, tensors, keys)
        values[f"layers.{layer}.residual_after_attention"] = x
        out = []
        for row in normed(x, f"{prefix}.post_attention_layernorm"):
            both = loops.linear(row, *(tensors[f"{prefix}.mlp.up_proj.{key}"] for key in ("weight", "bias")))
            limit = inf if keys["gegelu_limit"] is None else keys["gegelu_limit"]
            neurons = [gated(both[i], both[i + 1], limit) for i in range(0, len(both), 2)]
            out.append(loops.linear(neurons, *(tensors[f"{prefix}.mlp.down_proj.{key}"] for key in ("weight", "bias"))))
        x = x + np.array(out)
        values[f"layers.{layer}.residual_after_feedforward"] = x
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    logits = [loops.linear(row, head) for row in normed(x, "model.final_layernorm")]
    values["logits"] = np.array(logits) / (keys["mup_width_multiplier"] or 1.0)
    return values


def write(folder, keys, dtype="float32", shards=1, seed=0):
    """Write a checkpoint, and return its tensors."""
    tensors = random_tensors(keys, dtype, seed)
    write_files(folder, keys, tensors, dtype, shards, tokenizer=False)
    return tensors


def values_of(lm, ids, **options):
    got = {}
    npllm.forward(np.asarray(ids), lm, tap=npllm.record(got), **options)
    return got


def assert_agrees(got, expected):
    for name, value in expected.items():
        assert_close(name, got[name], value.astype(np.float32))


def test_every_layer_is_that_of_the_loops(tmp_path):
    tensors = write(tmp_path / "model", KEYS, "bfloat16", shards=3)
    lm = npllm.load(tmp_path / "model")
    assert lm.tokenizer is None
    assert_agrees(values_of(lm, IDS), expected_values(IDS, tensors, KEYS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"dense_attention_every_n_layers": None},
        {"dense_attention_every_n_layers": 1},
        {"dense_attention_every_n_layers": 3},
        {"blocksparse_homo_head_pattern": True},
        {"blocksparse_vert_stride": 8, "blocksparse_num_local_blocks": 1, "blocksparse_block_size": 1},
        {"mup_use_scaling": False},
        {"mup_embedding_multiplier": None, "mup_width_multiplier": None, "gegelu_limit": None},
        {"tie_word_embeddings": False},
        {"rope_scaling": LONGROPE},
        {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 17}},
        {"num_key_value_heads": 4, "num_attention_heads": 4},
        {"num_key_value_heads": 1, "num_attention_heads": 12, "hidden_size": 24},
    ],
    ids=str,
)
def test_a_changed_key_is_computed(tmp_path, changed):
    keys = KEYS | changed
    tensors = write(tmp_path / "model", keys)
    expected = expected_values(IDS, tensors, keys)
    lm = npllm.load(tmp_path / "model")
    assert_agrees(values_of(lm, IDS), expected)
    cache, rows = empty_cache(lm.config, len(IDS), like=lm.weights.norm), []
    for start in range(0, len(IDS), 5):
        rows.append(npllm.forward(np.array(IDS[start : start + 5]), lm, cache, total_length=len(IDS))[0])
    assert_close("logits in chunks", np.concatenate(rows), expected["logits"].astype(np.float32))


@pytest.mark.slow
def test_a_chunk_is_rotated_as_a_part_of_the_whole_text(tmp_path):
    write(tmp_path / "model", KEYS | {"rope_scaling": LONGROPE})
    lm = npllm.load(tmp_path / "model")
    cache = empty_cache(lm.config, len(IDS), like=lm.weights.norm)
    parts = [npllm.forward(np.array(part), lm, cache, total_length=len(IDS))[0] for part in (IDS[:5], IDS[5:])]
    assert_close("logits", np.concatenate(parts), npllm.forward(np.array(IDS), lm)[0])


@pytest.mark.slow
def test_a_mask_of_the_caller_also_hides(tmp_path):
    write(tmp_path / "model", KEYS)
    lm, padded = npllm.load(tmp_path / "model"), [7, *IDS]
    places = np.arange(len(padded))
    visible = causal(places, places) & (places > 0)
    one_mask, one_each = (values_of(lm, padded, visible=each) for each in (visible, [visible] * 3))
    for i in range(3):
        weights = one_mask[f"layers.{i}.attention.weights"]
        assert not weights[:, :, 0].any()
        np.testing.assert_array_equal(weights, one_each[f"layers.{i}.attention.weights"])
    sparse = values_of(lm, padded, visible=[None] * 3)
    np.testing.assert_array_equal(
        sparse["layers.0.attention.weights"], values_of(lm, padded)["layers.0.attention.weights"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_models_are_those_of_the_loops(tmp_path, seed):
    rng = np.random.default_rng(seed)
    kv, group, width = rng.choice([1, 2, 3]), rng.choice([1, 2]), 2 * rng.choice([1, 2, 3])
    keys = KEYS | {
        "num_key_value_heads": int(kv),
        "num_attention_heads": int(kv * group),
        "hidden_size": int(kv * group * width),
        "num_hidden_layers": 2,
        "ff_intermediate_size": int(rng.integers(1, 12)),
        "dense_attention_every_n_layers": int(rng.integers(0, 3)),
        "blocksparse_block_size": int(rng.integers(1, 4)),
        "blocksparse_num_local_blocks": int(rng.integers(1, 3)),
        "blocksparse_vert_stride": int(rng.integers(1, 9)),
        "gegelu_limit": float(rng.uniform(0.3, 3)),
        "mup_attn_multiplier": float(rng.uniform(0.3, 3)),
        "mup_embedding_multiplier": float(rng.uniform(0.3, 10)),
        "mup_width_multiplier": float(rng.uniform(0.3, 10)),
        "rope_embedding_base": float(10 ** rng.uniform(1, 6)),
        "tie_word_embeddings": bool(rng.integers(2)),
    }
    if rng.integers(2):
        factors = {f"{name}_factor": rng.uniform(1, 4, width // 2).tolist() for name in ("short", "long")}
        keys["rope_scaling"] = LONGROPE | factors
    ids = rng.integers(0, 40, rng.integers(2, 14)).tolist()
    tensors = write(tmp_path / "model", keys, ["float32", "float16", "bfloat16"][seed % 3], 1 + seed % 2, seed)
    assert_agrees(values_of(npllm.load(tmp_path / "model"), ids), expected_values(ids, tensors, keys))


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_that_of_the_loops_even_where_it_crosses_the_original_context(tmp_path, use_cache):
    keys = KEYS | {"rope_scaling": LONGROPE, "num_hidden_layers": 2}
    tensors = write(tmp_path / "model", keys)
    ids, gaps = IDS[:7], []
    for _ in range(6):  # to 13 tokens; the original context is 10
        logits = expected_values(ids, tensors, keys)["logits"][-1]
        ids = [*ids, int(np.argmax(logits))]
        gaps.append(float(np.diff(np.sort(logits)[-2:])[0]))
    with warnings.catch_warnings(action="ignore"):
        made = npllm.generate(npllm.load(tmp_path / "model"), IDS[:7], max_new_tokens=6, use_cache=use_cache).ids
    assert_same_ids("greedy", made, ids[7 : 7 + len(made)], gaps)


def test_an_infinite_activation_is_not_clamped():
    values = np.array([np.inf, 30.0, -np.inf], dtype=np.float32)
    with np.errstate(all="ignore"):
        assert np.isinf(bounded_glu(values, np.ones(3, np.float32), 20.0)[0])
        assert np.isinf(bounded_glu(np.ones(3, np.float32), values, 20.0)[[0, 2]]).all()


@pytest.mark.slow
def test_ids_that_no_text_has_are_never_chosen(tmp_path):
    keys = KEYS | {"vocab_size": 100352, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    write(tmp_path / "model", keys | {"num_key_value_heads": 1})
    logits = npllm.forward(np.array([3, 4]), npllm.load(tmp_path / "model"))[0]
    unused = np.flatnonzero(logits[1] == np.finfo(np.float32).min)
    assert unused.tolist() == [i for first, end in UNUSED for i in range(first, end)]
    # The published tokenizer's pieces from 100,256 on: <|endoftext|>, <|system|>, <|user|>, <|assistant|>, <|end|>.
    assert {*range(100256, 100352)} - {*unused.tolist()} == {100257, 100261, 100262, 100263, 100266}


# config.json


def test_the_published_file_is_read():
    published = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "vocab_size": 100352}
    read = read_config(
        {"model_type": "phi3small", "ff_intermediate_size": 14336, "max_position_embeddings": 8192} | published
    )
    assert (read.num_key_value_heads, read.head_dim, read.rope_theta, read.tie_word_embeddings) == (8, 128, 1e6, True)
    assert [read.is_sparse(layer) for layer in range(4)] == [True, False, True, False]
    assert read.score_scale == 1 / 128
    assert (read.gegelu_limit, read.mup_embedding_multiplier, read.mup_width_multiplier) == (20.0, 10.0, 8.0)
    assert (read.blocksparse_block_size, read.blocksparse_num_local_blocks, read.blocksparse_vert_stride) == (64, 16, 8)


def test_null_is_not_the_default():
    nulls = ("dense_attention_every_n_layers", "gegelu_limit", "mup_embedding_multiplier", "mup_width_multiplier")
    config = read_config(KEYS | dict.fromkeys(nulls))
    assert [config.is_sparse(layer) for layer in range(3)] == [True] * 3
    assert (config.gegelu_limit, config.mup_embedding_multiplier, config.mup_width_multiplier) == (inf, 1.0, 1.0)


def test_both_factors_on_cos_and_sin_are_those_of_the_file():
    scaling = read_config(KEYS | {"rope_scaling": LONGROPE}).rope_scaling
    assert (scaling.attention_factor, scaling.long_attention_factor) == (1.1, 1.3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "silu"),
        ("rope_position_scale", 2.0),
        ("ff_dim_multiplier", 4),
        ("ff_intermediate_size", None),
        ("head_dim", 8),
        ("sliding_window", 4),
        ("layer_types", ["full_attention"] * 3),
        ("rope_parameters", {"rope_type": "default"}),
        ("rope_scaling", {key: value for key, value in LONGROPE.items() if key != "long_mscale"}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("mup_width_multiplier", 0),
        ("blocksparse_vert_stride", 0),
    ],
)
def test_what_is_not_computed_is_refused_by_name(key, value):
    with pytest.raises(ModelFileError, match=key):
        read_config(KEYS | {key: value})


def test_every_key_of_the_published_configuration_is_read_or_harmless():
    with warnings.catch_warnings(action="error"):
        config = read_config(json.loads(json.dumps(KEYS)))
    assert isinstance(config, Config)
