"""npllm agrees with transformers on random configurations, saved by transformers itself.

test_golden.py covers a few carefully chosen models. This file covers 30 random ones of each kind.
"""

import json
import math
import warnings

import numpy as np
import pytest
import sweep
from bridge import tool
from tolerance import assert_close, assert_same_ids

import npllm
from npllm import sampling
from npllm.cache import empty_cache

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # transformers issues warnings of its own
CLASSES = ["phi3", "llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "mixtral", "phimoe", "granite", "olmo3"]
CLASSES += ["gemma", "gemma2", "gemma3_text", "qwen3_moe", "olmoe", "gpt_oss", "gemma3"]

EXPERTS = {
    "mixtral": "num_local_experts",
    "gpt_oss": "num_local_experts",
    "qwen3_moe": "num_experts",
    "olmoe": "num_experts",
}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def golden(transformers):
    """tools/golden/make_golden.py, which randomizes a model's weights and runs transformers."""
    return tool("make_golden")


def random_config_keys(model_type, rng):
    """Random configuration keys, all of which pass transformers' own checks."""
    if model_type == "gemma3":
        text = random_config_keys("gemma3_text", rng) | {"final_logit_softcapping": None}
        more = {"tie_word_embeddings": text["tie_word_embeddings"], "mm_tokens_per_image": 1}
        return {"text_config": text, "vision_config": sweep.VISION_PART} | more

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    kv_heads, head_dim = pick(1, 2, 3), pick(4, 6, 8, 16)
    heads = kv_heads * pick(1, 2, 3)
    rope = {"rope_type": "default", "rope_theta": 10 ** rng.uniform(1, 6)}
    keys = {
        "vocab_size": int(rng.integers(5, 90)),
        "hidden_size": heads * pick(2, 5, 8),
        "intermediate_size": int(rng.integers(1, 60)),
        "num_hidden_layers": pick(1, 2, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 64,
        "rms_norm_eps": 10 ** rng.uniform(-6, -1),
        "tie_word_embeddings": pick(True, False),
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": pick(0, [0, 1]),
        "pad_token_id": 0,
    }
    window = int(rng.integers(2, 20))  # with 1, the cache of transformers keeps what it should drop (-1 + 1 is 0)
    if model_type == "phi3":
        keys["sliding_window"] = pick(None, window)
        rope["partial_rotary_factor"] = pick(1.0, 0.5) if head_dim % 4 == 0 else 1.0
        if pick(True, False):  # transformers checks the number of factors against this width of a head
            keys |= {"hidden_size": heads * head_dim, "original_max_position_embeddings": pick(6, 12, 25)}
            rope |= longrope(rng, int(head_dim * rope["partial_rotary_factor"]) // 2)
    else:
        original = pick(8, 16, 32)
        llama3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.5}
        linear = {"rope_type": "linear", "factor": rng.uniform(1, 8)}
        yarn = {"rope_type": "yarn", "factor": rng.uniform(1, 8), "original_max_position_embeddings": original}
        more = pick({}, {"beta_fast": 4.0, "beta_slow": 0.5}, {"attention_factor": 0.8}, {"truncate": False})
        scales = pick({}, {"mscale": 0.7, "mscale_all_dim": 1.3})
        # Not a length that the text crosses: transformers then keeps the keys of the short factors in its cache.
        long = {"original_max_position_embeddings": pick(2, 64), "factor": 3.0} | longrope(rng, head_dim // 2)
        rope |= pick(
            {},
            linear,
            {"rope_type": "llama3", "original_max_position_embeddings": original} | llama3,
            yarn | more | scales,
            long,
            {"rope_type": "dynamic", "factor": 2.0},
        )
    if model_type == "olmo3":  # scaled positions only in layers with full attention
        if rope["rope_type"] in ("longrope", "dynamic"):
            rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        rope.pop("truncate", None)  # transformers does not look for it there
        local = {"rope_type": "default", "rope_theta": 10 ** rng.uniform(1, 6)}
        kinds = [pick("full_attention", "sliding_attention") for _ in range(keys["num_hidden_layers"])]
        keys |= {"layer_types": kinds, "sliding_window": window}
        keys["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if model_type.startswith("gemma"):
        # With fewer elements the norms after the layers amplify rounding.
        keys |= {"hidden_size": heads * pick(8, 10), "intermediate_size": int(rng.integers(20, 60))}
        keys["attention_bias"] = pick(True, False)
    if model_type in ("gemma2", "gemma3_text"):
        keys |= {
            "sliding_window": window,
            "query_pre_attn_scalar": pick(5, 24),
            "final_logit_softcapping": pick(None, 5.0),
        }
    if model_type == "gemma2":
        keys["attn_logit_softcapping"] = pick(None, 2.0)
    if model_type == "gemma3_text":
        keys["layer_types"] = [pick("full_attention", "sliding_attention") for _ in range(keys["num_hidden_layers"])]
        local = {"rope_type": "default", "rope_theta": 10 ** rng.uniform(1, 3)}
        rope.pop("truncate", None)  # transformers ignores it here, and npllm refuses it
        keys["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if model_type in ("qwen3", "olmo2", "olmo3", "qwen3_moe", "olmoe"):
        keys["attention_bias"] = pick(True, False)
    if model_type == "smollm3":
        keys |= {"no_rope_layers": [pick(0, 1) for _ in range(3)], "use_sliding_window": pick(True, False)}
        keys["sliding_window"] = window
    if model_type == "granite":
        names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
        keys |= {name: 10 ** rng.uniform(-0.5, 0.5) for name in names}
        keys["attention_multiplier"] /= head_dim**0.5  # larger scores would magnify the rounding of what is before
    if model_type in ("llama", "smollm3", "granite"):
        keys |= {"attention_bias": pick(True, False), "mlp_bias": pick(True, False)}
    if model_type in ("mistral", "mixtral"):
        keys["sliding_window"] = pick(None, window)
    if model_type == "gpt_oss":
        kinds = [pick("sliding_attention", "full_attention") for _ in range(keys["num_hidden_layers"])]
        keys |= {"sliding_window": window, "attention_bias": pick(True, False), "layer_types": pick(None, kinds)}
        keys |= {"swiglu_limit": rng.uniform(0.3, 3.0), "swiglu_alpha": rng.uniform(0.5, 2.0)}
    if model_type in EXPERTS:
        count = pick(1, 3, 5)
        keys |= {EXPERTS[model_type]: count, "num_experts_per_tok": int(rng.integers(1, count + 1))}
        keys |= {"norm_topk_prob": pick(True, False)} if model_type in ("qwen3_moe", "olmoe") else {}
        if model_type == "qwen3_moe":
            keys |= {"moe_intermediate_size": int(rng.integers(1, 60)), "use_sliding_window": pick(True, False)}
            keys["sliding_window"] = window
        if model_type == "olmoe":  # its norms are as wide as the model
            keys["hidden_size"] = heads * head_dim
    if model_type == "phimoe":
        keys |= {"attention_bias": pick(True, False), "lm_head_bias": pick(True, False)}
        keys |= {"sliding_window": pick(None, window), "num_local_experts": pick(2, 3, 5)}
        keys["router_jitter_noise"] = 10 ** rng.uniform(-2, 0)
        same = longrope(rng, head_dim // 2)["short_factor"]  # test_phimoe.py has other long factors
        mscales = {"short_mscale": rng.uniform(0.5, 2), "long_mscale": rng.uniform(0.5, 2)}
        long = {"rope_type": "longrope", "short_factor": same, "long_factor": same} | mscales
        original = {"original_max_position_embeddings": pick(6, 12, 25)}
        keys["rope_parameters"] = {"rope_theta": rope["rope_theta"]} | pick({"rope_type": "default"}, long | original)
    if model_type in ("qwen2", "qwen3"):
        first = int(rng.integers(0, 4))
        keys |= {"use_sliding_window": pick(True, False), "sliding_window": window, "max_window_layers": first}
    return keys


def longrope(rng, pairs):
    """LongRoPE with random factors."""
    short, long = (rng.uniform(low, 4 * low, pairs).tolist() for low in (0.5, 2.0))
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long}


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("model_type", CLASSES)
def test_random_model_agrees_with_transformers(transformers, golden, tmp_path, model_type, seed):
    rng = np.random.default_rng([CLASSES.index(model_type), seed])
    torch = golden.torch
    config = transformers.AutoConfig.for_model(model_type, **random_config_keys(model_type, rng))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    golden.randomize(model, seed)
    dtype = [torch.float32, torch.float16, torch.bfloat16][seed % 3]
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=["1GB", "4KB"][seed % 2])
    if seed % 5 == 0 and model_type != "gemma3":
        file = tmp_path / "config.json"
        golden.write_json(file, golden.as_published(json.loads(file.read_text())))
    # Load from the files: casting a model to 16 bits and back also rounds its RoPE frequencies.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **golden.EAGER)

    lm = npllm.load(tmp_path)
    scaling = lm.config.rope_scaling
    shortest = 3 if scaling is not None and scaling.kind == "longrope" else 1  # beyond an original context of 2
    ids = rng.integers(0, lm.config.vocab_size, max(shortest, rng.integers(1, 25))).tolist()
    seen = {}
    npllm.forward(np.asarray(ids), lm, tap=npllm.record(seen))
    expected = golden.trace(model, ids)
    assert {*seen} == {name for name in expected if not name.endswith(".visible")}
    for name, value in seen.items():
        visible = expected[name.replace(".scores", ".visible")] == 1 if name.endswith(".scores") else None
        assert_close(name, value, expected[name], where=visible)

    [run] = golden.greedy(model, [ids], 8)
    with warnings.catch_warnings(action="ignore"):  # a text that crosses the original context
        made = [step.id for step in npllm.steps(lm, ids, max_new_tokens=8)]
    assert_same_ids(str(ids), made, run["greedy_ids"], run["gaps"])


def random_gpt2_keys(rng):
    """Random configuration keys for GPT-2."""

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    heads = pick(1, 2, 3, 4)
    return {
        "vocab_size": int(rng.integers(5, 90)),
        "n_embd": heads * pick(1, 3, 4, 8),
        "n_inner": pick(None, 1, 17, 40),
        "n_layer": pick(1, 2, 3),
        "n_head": heads,
        "n_positions": 40,
        "layer_norm_epsilon": 10 ** rng.uniform(-6, -1),
        "activation_function": pick("gelu_new", "gelu_pytorch_tanh"),
        "reorder_and_upcast_attn": pick(True, False),
        "tie_word_embeddings": pick(True, False),
        "bos_token_id": None,
        "eos_token_id": pick(0, [0, 1]),
        "pad_token_id": 0,
    }


@pytest.mark.parametrize("seed", range(10))
def test_random_gpt2_agrees_with_transformers(transformers, golden, tmp_path, seed):
    rng = np.random.default_rng(seed)
    torch = golden.torch
    config = transformers.GPT2Config(**random_gpt2_keys(rng))
    model = transformers.GPT2LMHeadModel(config)
    golden.randomize(model, seed)
    dtype = [torch.float32, torch.float16, torch.bfloat16][seed % 3]
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=["1GB", "4KB"][seed % 2])
    if seed % 4 == 0 and config.tie_word_embeddings:
        golden.as_published_by_openai(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    lm = npllm.load(tmp_path)
    ids = rng.integers(0, config.vocab_size, rng.integers(2, 25)).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    seen, in_chunks = {}, {}
    npllm.forward(np.asarray(ids), lm, tap=npllm.record(seen))
    assert_close("logits", seen["logits"], logits)
    cache, half = empty_cache(lm.config, len(ids), like=lm.weights.norm), len(ids) // 2
    for part in (ids[:half], ids[half:]):
        tap = npllm.record(in_chunks)
        npllm.forward(np.asarray(part), lm, cache, tap=tap)
    expected = {} if config.reorder_and_upcast_attn else golden.trace(model, ids)  # a different function then
    for values in (seen, in_chunks) if expected else ():
        assert {*values} == {name for name in expected if not name.endswith(".visible")}
        for name, value in values.items():
            visible = expected[name.replace(".scores", ".visible")] == 1 if name.endswith(".scores") else None
            assert_close(name, value, expected[name], where=visible)

    [run] = golden.greedy(model, [ids], 8)
    for use_cache in (True, False):
        made = [step.id for step in npllm.steps(lm, ids, max_new_tokens=8, use_cache=use_cache)]
        assert_same_ids(str(ids), made, run["greedy_ids"], run["gaps"])


FILTERS = {
    "RepetitionPenaltyLogitsProcessor": (sampling.penalize_repetition, [1.3, 0.7]),
    "TemperatureLogitsWarper": (sampling.scale_by_temperature, [0.1, 0.7, 3.0]),
    "TopKLogitsWarper": (sampling.keep_top_k, [1, 5, 200]),
    "TopPLogitsWarper": (sampling.keep_top_p, [0.05, 0.5, 0.95]),
    "MinPLogitsWarper": (sampling.keep_min_p, [0.01, 0.2, 1.0]),
}


def random_logits(seed, spread):
    return (spread * np.random.default_rng(seed).standard_normal(100)).astype(np.float32)


def assert_same_filtered(name, got, expected):
    ruled_out = expected == -math.inf
    np.testing.assert_array_equal(got == -math.inf, ruled_out)
    assert_close(name, got[~ruled_out], expected[~ruled_out])


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_is_that_of_transformers(transformers, golden, name, spread):
    ours, values = FILTERS[name]
    for seed in range(10):
        logits = random_logits(seed, spread)
        text = np.random.default_rng(seed).integers(0, 100, 20)
        for value in values:
            theirs = getattr(transformers, name)(value)
            expected = theirs(golden.torch.tensor(text[None]), golden.torch.tensor(logits[None]))[0].numpy()
            seen = (np.isin(np.arange(100), text),) if ours is sampling.penalize_repetition else ()
            assert_same_filtered(f"{name}({value})", ours(logits, *seen, value), expected)


def test_top_k_keeps_ties_as_transformers_does(transformers, golden):
    logits = np.array([1.0, 3.0, 2.0, 2.0, 0.0], dtype=np.float32)
    expected = transformers.TopKLogitsWarper(2)(None, golden.torch.tensor(logits[None]))[0].numpy()
    assert_same_filtered("top-k", sampling.keep_top_k(logits, 2), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "top_k": 7, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.4},
        {"temperature": 0.7, "top_k": 30, "top_p": 0.6, "min_p": 0.3, "repetition_penalty": 0.8},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.5},
        {"temperature": 3.0, "top_k": 0, "min_p": 0.4},
    ],
)
def test_filters_together_leave_the_distribution_that_transformers_draws_from(transformers, golden, options):
    """The order matters: each filter sees what the earlier ones left."""
    model = transformers.AutoModelForCausalLM.from_pretrained(golden.GOLDEN / "llama-biases-tied")
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(0, 80, (1, 30))
        out = model.generate(
            golden.torch.tensor(ids),
            attention_mask=golden.torch.ones(1, 30),
            do_sample=True,
            max_new_tokens=1,
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        expected = golden.torch.softmax(out.scores[0][0], dim=-1).numpy()
        logits, seen = out.logits[0][0].numpy(), np.isin(np.arange(80), ids)
        uniforms = (np.arange(300) + 0.5) / 300
        drawn = [int(sampling.choose(logits, uniform=u, seen=seen, **options)) for u in uniforms]
        shares = np.bincount(drawn, minlength=80) / len(drawn)
        assert set(drawn) <= set(np.flatnonzero(expected))
        np.testing.assert_allclose(shares, expected, atol=1.5 / len(drawn))
