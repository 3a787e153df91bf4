"""Networks of which each token passes through a few: which are chosen, their sum, and tensors of all experts."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import families
import llamacpp
import numpy as np
import pytest
from checkpoints import write_files
from libraries import Library
from tolerance import assert_close

import npllm
from npllm.arrays import is_packed
from npllm.cache import empty_cache
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.gguf_config import read_gguf_config
from npllm.checkpoint.load import gguf_of, plan_gguf
from npllm.checkpoint.plan import cut_experts, later_layers
from npllm.checkpoint.write import convert
from npllm.devices.device import to_host
from npllm.errors import ModelFileError
from npllm.families import FAMILIES, read_config
from npllm.families.experts import ExpertWeights, mixture, route
from npllm.feedforward import feedforward
from npllm.inspect.cost import costs
from npllm.inspect.structure import structure
from npllm.storage.stored import Stored

GOLDEN = Path(__file__).parent / "golden"
IDS = np.random.default_rng(1).integers(0, 23, 9)


def random_layer(tokens=7, experts=5, active=2, width=6, inner=4, seed=0):
    """Inputs, the chosen experts and shares of each token, and the experts' weights."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    weights = tuple(
        ExpertWeights(normal(2 * inner, width), normal(width, inner), normal(2 * inner), normal(width))
        for _ in range(experts)
    )
    chosen = np.stack([random.permutation(experts)[:active] for _ in range(tokens)])
    return normal(tokens, width), chosen, random.uniform(0, 1, chosen.shape).astype(np.float32), weights


def loop(x, chosen, shares, experts):
    """The mixture, token by token and expert by expert."""
    y = np.zeros_like(x)
    for t, token in enumerate(x):
        for number, share in zip(chosen[t], shares[t], strict=True):
            y[t] += share * feedforward(token[None], experts[number])[0]
    return y


def test_it_is_the_loop(lib: Library):
    layer = random_layer(tokens=3, experts=3)
    assert_close("mixture", to_host(mixture(*lib.tree(layer))), loop(*layer))


@pytest.mark.parametrize("sizes", [{}, {"tokens": 1}, {"active": 1}, {"experts": 1, "active": 1}, {"active": 5}])
def test_it_is_the_loop_for_any_number_of_experts(sizes):
    layer = random_layer(**sizes)
    assert_close("mixture", mixture(*layer), loop(*layer))


def test_a_batch_is_its_sequences_one_by_one():
    x, chosen, shares, experts = random_layer(tokens=6)
    pairs = (array.reshape(2, 3, -1) for array in (x, chosen, shares))
    assert_close("batch", mixture(*pairs, experts).reshape(6, -1), loop(x, chosen, shares, experts))


class Unread:
    """A matrix that must not be used."""

    shape, dtype, nbytes = (8, 6), np.float32, 0

    def matmul(self, x2d):
        raise AssertionError("this expert was not chosen")

    rows = matmul


def test_only_the_chosen_experts_are_read():
    x, chosen, shares, experts = random_layer(tokens=2, active=2)
    guarded = tuple(
        one if number in chosen else ExpertWeights(Unread(), Unread()) for number, one in enumerate(experts)
    )
    assert any(isinstance(one.down_proj, Unread) for one in guarded)
    np.testing.assert_array_equal(mixture(x, chosen, shares, guarded), mixture(x, chosen, shares, experts))
    with pytest.raises(AssertionError, match="not chosen"):
        mixture(x, np.full_like(chosen, int(np.setdiff1d(range(5), chosen)[0])), shares, guarded)


def test_a_decode_step_reads_only_the_experts_that_the_router_chose():
    lm = families.random_lm("mixtral")
    cache, seen = empty_cache(lm.config, len(IDS), like=lm.weights.norm), {}
    npllm.forward(IDS[:-1], lm, cache)
    expected, _ = npllm.forward(IDS[-1:], lm, cache | {"length": len(IDS) - 1}, tap=npllm.record(seen, "*.chosen"))
    layers = tuple(
        block._replace(
            experts=tuple(
                one if number in seen[f"layers.{i}.feedforward.chosen"] else ExpertWeights(Unread(), Unread())
                for number, one in enumerate(block.experts)
            )
        )
        for i, block in enumerate(lm.weights.layers)
    )
    guarded = lm._replace(weights=lm.weights._replace(layers=layers))
    np.testing.assert_array_equal(npllm.forward(IDS[-1:], guarded, cache)[0], expected)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_best_experts_get_their_shares_of_the_softmax(normalized):
    config = replace(families.random_lm("mixtral").config, norm_topk_prob=normalized)
    router = np.array([[1.0], [3.0], [2.0], [-1.0], [0.0]], np.float32)
    chosen, shares = route(np.ones((1, 1), np.float32), SimpleNamespace(router=router), config)
    exponentials = np.exp(router[:, 0])
    expected = exponentials[[1, 2]] / (exponentials[[1, 2]].sum() if normalized else exponentials.sum())
    assert chosen.tolist() == [[1, 2]]
    assert_close("shares", shares[0], expected)


@pytest.mark.parametrize(("tokens", "read"), [(1, 2), (2, 4), (3, 5), (9, 5)])
def test_the_cost_is_that_of_the_experts_that_run(tokens, read):
    lm = families.random_lm("mixtral")
    parts = {cost.part: cost for cost in costs(lm.config, lm.weights, tokens)}
    matrix = 12 * 16  # elements of down_proj
    assert parts["down_proj"].flops == 4 * tokens * 2 * 2 * matrix  # layers, tokens, experts of each, FLOPs
    assert parts["down_proj"].weight_bytes == 4 * read * 4 * matrix


def test_show_adds_up_the_experts():
    lines = structure(families.random_lm("mixtral"))
    [line] = [line for line in lines if "(down_proj)" in line]
    assert re.sub(" +", " ", line.strip()) == (
        "(down_proj): Linear(in_features=12, out_features=16, bias=False) 960 float32 3.8 kB"
    )


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_routers_are_not_quantized(tmp_path, dtype):
    keys = families.KEYS["mixtral"] | {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 32}
    lm = families.random_lm("mixtral", hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    tensors = {"model.embed_tokens": lm.weights.embed_tokens, "model.norm": lm.weights.norm}
    tensors |= {"lm_head": lm.weights.lm_head}
    block, prefix = lm.weights.layers[0], "model.layers.0"
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}.{name}"] = getattr(block, name)
    tensors |= {f"{prefix}.self_attn.qkv_proj": block.qkv_proj, f"{prefix}.self_attn.o_proj": block.o_proj}
    tensors[f"{prefix}.block_sparse_moe.gate"] = block.router
    for number, expert in enumerate(block.experts):
        w1, w3 = np.split(expert.gate_up_proj, 2)
        of_expert = {"w1": w1, "w2": expert.down_proj, "w3": w3}
        tensors |= {f"{prefix}.block_sparse_moe.experts.{number}.{name}": w for name, w in of_expert.items()}
    tensors = {f"{name}.weight": np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_files(tmp_path / "m", keys | {"num_hidden_layers": 1}, tensors, "float32", 1, tokenizer=False)
    convert(tmp_path / "m", tmp_path / dtype, dtype)
    for got in (npllm.load(tmp_path / "m", dtype=dtype), npllm.load(tmp_path / dtype, dtype=dtype)):
        np.testing.assert_array_equal(got.weights.layers[0].router, block.router)
        assert is_packed(got.weights.layers[0].experts[4].down_proj)


# Tensors that hold all experts


def expert_tensors(names, experts=5, layers=4, inner=12, width=16):
    """Located tensors of the blocks of a .gguf file, with all experts in one tensor."""
    located = {}
    for layer in range(layers):
        for name, shape in names.items():
            full = f"blk.{layer}.{name}"
            located[full] = Stored(Path("m.gguf"), full, "F16", (experts, *shape), 1000)
    return located


def test_a_tensor_of_all_experts_is_one_of_each():
    config = families.random_lm("mixtral").config
    names = {"a": "blk.*.ffn_up_exps.#", "b": "blk.*.experts.#.down_proj", "c": "blk.*.ffn_norm"}
    tensors = expert_tensors(
        {"ffn_up_exps.weight": (12, 16), "ffn_up_exps.bias": (12,), "experts.down_proj.weight": (16, 12)}
    )
    cut = cut_experts(config, tensors, names)
    assert len(cut) == 4 * 3 * 5
    for name, shape in {
        "ffn_up_exps.3.weight": (12, 16),
        "ffn_up_exps.3.bias": (12,),
        "experts.3.down_proj.weight": (16, 12),
    }.items():
        one = cut[f"blk.2.{name}"]
        assert (one.shape, one.dtype, one.offset) == (shape, "F16", 1000 + 3 * 2 * int(np.prod(shape)))


@pytest.mark.parametrize("shape", [(), (4, 12, 16), (5, 12), (5, 2, 12, 16), (60, 16)])
def test_a_tensor_of_another_shape_is_left_to_the_plan(shape):
    config = families.random_lm("mixtral").config
    stored = {"blk.0.ffn_up_exps.weight": Stored(Path("m.gguf"), "x", "F16", shape, 0)}
    assert cut_experts(config, stored, {"a": "blk.*.ffn_up_exps.#"}) == stored


def test_experts_of_blocks_that_are_not_used_are_not_unknown():
    config, names = families.random_lm("mixtral").config, FAMILIES["mixtral"].names
    found = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight" for i in range(6) for e in range(2)]
    tensors = {name: Stored(Path("m"), name, "F32", (12, 16), 0) for name in found}
    assert later_layers(config, tensors, names) == found[8:]
    tensors = expert_tensors({"ffn_up_exps.weight": (12, 16)}, layers=5)
    cut, names = cut_experts(config, tensors, {"a": "blk.*.ffn_up_exps.#"}), {"a": "blk.*.ffn_up_exps.#"}
    assert len(cut) == 4 * 5 + 1
    assert later_layers(config, cut, names) == ["blk.4.ffn_up_exps.weight"]


def test_a_gguf_file_with_a_tensor_for_each_expert_has_the_same_weights(tmp_path):
    """As llama.cpp's converter wrote them in 2023."""
    path = tmp_path / "m.gguf"
    llamacpp.write_gguf(path, GOLDEN / "mixtral")
    metadata, tensors = read_gguf(path)
    config = read_gguf_config(path, metadata, tensors)
    cut = cut_experts(config, tensors, gguf_of(config).names)
    older = {name.replace("_exps.", "."): tensor for name, tensor in cut.items()}
    assert "blk.1.ffn_up.4.weight" in older
    plans = plan_gguf(config, cut, path)
    read = {name: [cut[part.name] for part in parts] for name, parts in plans.items()}
    plans = plan_gguf(config, older, path)
    assert {name: [older[part.name] for part in parts] for name, parts in plans.items()} == read


@pytest.mark.slow
def test_a_gguf_file_of_experts_converts_to_the_same_model(tmp_path):
    path = tmp_path / "m.gguf"
    texts = [*map(chr, range(33, 112)), "ab"]
    metadata = {"model": "gpt2", "pre": "smollm", "tokens": texts, "token_type": [1] * 80, "merges": ["a b"]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    llamacpp.write_gguf(path, GOLDEN / "qwen3_moe", metadata=metadata)
    convert(path, tmp_path / "m", "float32")
    expected, got = npllm.load(path), npllm.load(tmp_path / "m")
    np.testing.assert_array_equal(npllm.forward(IDS, got)[0], npllm.forward(IDS, expected)[0])


DEFAULTS = {
    "mixtral": {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "sliding_window": None}
    | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    "qwen3_moe": {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": False, "sliding_window": None}
    | {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "intermediate_size": 768},
    "olmoe": {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "sliding_window": None}
    | {"rope_theta": 1e4, "rms_norm_eps": 1e-5, "num_key_value_heads": 16, "intermediate_size": 12},
}
SIZES = {name: families.SMALL[name] for name in ("vocab_size", "intermediate_size", "max_position_embeddings")}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 16, "hidden_size": 32}


@pytest.mark.parametrize(("name", "expected"), DEFAULTS.items())
def test_each_family_has_its_defaults(name, expected):
    config = read_config({"model_type": name} | SIZES)
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("qwen3_moe", "decoder_sparse_step", 2), ("qwen3_moe", "mlp_only_layers", [1]), ("olmoe", "clip_qkv", 8.0)],
)
def test_what_is_not_computed_is_refused(name, key, value):
    with pytest.raises(ModelFileError, match=f"{key}: expected "):
        read_config({"model_type": name} | SIZES | {key: value})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 6}, "num_experts_per_tok: expected at most the number of experts, 5, got 6"),
        ({"num_local_experts": 2**13}, "num_local_experts: expected a whole number"),
        ({"num_local_experts": 2**12, "num_hidden_layers": 17}, "num_local_experts: expected at most 65536 experts in"),
        ({"num_experts": 4}, "num_experts: expected the number of experts in num_local_experts, 5, got 4"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types: expected sliding_attention alone"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(ModelFileError, match=message):
        read_config({"model_type": "mixtral"} | families.KEYS["mixtral"] | keys)
