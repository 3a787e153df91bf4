"""Gemma, Gemma 2, Gemma 3: their config.json, their .gguf metadata, and what is special about their passes."""

import json
import math
import tracemalloc
from pathlib import Path

import families
import numpy as np
import pytest
from bridge import tool
from counting import counted_flops
from families import KEYS, random_lm
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

import npllm
from npllm.checkpoint.load import gguf_tensors, plan_folder
from npllm.checkpoint.write import convert
from npllm.cli.main import main
from npllm.devices.memory import attention_bytes
from npllm.errors import ModelFileError
from npllm.families import FAMILIES, gguf_keys, read_config
from npllm.families.gemma import norm
from npllm.families.gemma2 import capped, capped_attention
from npllm.families.metadata import Metadata
from npllm.inspect.cost import costs, total
from npllm.inspect.lens import logit_lens
from npllm.storage.stored import Stored, read_rows

GEMMAS = ("gemma", "gemma2", "gemma3_text")
SIZES = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 12}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64}
NESTED = {"full_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}}
NESTED |= {"sliding_attention": {"rope_type": "default", "rope_theta": 20.0}}


def config_of(name, **keys):
    return read_config({"model_type": name} | ({} if name == "gemma3" else SIZES) | keys)


def test_the_norm_multiplies_by_one_more_than_its_weight():
    x, weight = np.array([[3.0, 4.0]], np.float32), np.array([-1.0, 1.0], np.float32)
    assert_close("norm", norm(x, weight, 0.0), np.array([[0.0, 2 * 4 / math.sqrt(12.5)]], np.float32))


def test_a_cap_bounds_what_is_large_and_keeps_what_is_small():
    x = np.array([-1e6, -0.01, 0.0, 0.01, 1e6], np.float32)
    np.testing.assert_allclose(capped(x, 5.0), [-5, -0.01, 0, 0.01, 5], rtol=1e-5)
    assert capped(x, None) is x


def test_the_scores_are_within_the_cap_and_hidden_after_it():
    """A token that is hidden gets no weight, although the cap would make minus infinity a finite score."""
    q = 9 * np.random.default_rng(0).standard_normal((4, 6, 8), dtype=np.float32)
    k, seen = q[::2], {}
    capped_attention(q, k, k, np.tri(6) > 0, cap=2.0, tap=npllm.record(seen))
    plain = np.einsum("gjth,gsh->gjts", q.reshape(2, 2, 6, 8), k).reshape(4, 6, 6) / math.sqrt(8)
    assert_close("scores", seen["scores"], 2 * np.tanh(plain / 2))
    assert np.all(seen["weights"][:, np.tri(6) == 0] == 0)


def test_the_last_norm_of_the_lens_is_that_of_the_pass():
    lm, seen = families.random_lm("gemma"), {}
    logits, _ = npllm.forward([1, 2, 3], lm, tap=npllm.record(seen))
    np.testing.assert_array_equal(logit_lens(seen["layers.3.residual_after_feedforward"], lm), logits)


def test_the_memory_of_attention_without_tiles_is_foreseen():
    rows, length = 64, 512
    config = config_of("gemma2")
    q = np.ones((4, rows, 256), np.float32)
    k, visible = np.ones((4, length, 256), np.float32), np.ones((rows, length), bool)
    tracemalloc.start()
    capped_attention(q, k, k, visible, cap=config.attn_logit_softcapping)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 < peak / attention_bytes(config, rows, length, (rows, length)) <= 1


def test_missing_keys_have_the_defaults_of_transformers():
    gemma2, gemma3 = config_of("gemma2"), config_of("gemma3_text")
    gemma = config_of("gemma", num_attention_heads=16)
    assert [config.num_key_value_heads for config in (gemma, gemma2, gemma3)] == [16, 4, 4]
    assert all(config.head_dim == 256 and config.tie_word_embeddings for config in (gemma, gemma2, gemma3))
    assert (gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping, gemma2.sliding_window) == (50.0, 30.0, 4096)
    assert (gemma3.attn_logit_softcapping, gemma3.final_logit_softcapping, gemma3.sliding_window) == (None, None, 4096)
    assert gemma2.query_pre_attn_scalar == gemma3.query_pre_attn_scalar == 256
    assert (gemma2.rope_theta, gemma3.rope_theta, gemma3.local_rope_theta) == (1e4, 1e6, 1e4)
    local, everywhere = "sliding_attention", "full_attention"
    assert gemma2.layer_types == (local, everywhere) * 6
    assert gemma3.layer_types == (*[local] * 5, everywhere) * 2


def test_the_text_part_of_a_model_with_pictures_has_the_defaults_of_transformers():
    """The published files of 4 billion have little more than these keys."""
    sizes = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    text = {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}, **sizes}
    config = read_config({"model_type": "gemma3", "text_config": text, "vision_config": {}, "eos_token_id": [1, 106]})
    assert (config.vocab_size, config.num_attention_heads, config.num_key_value_heads) == (262208, 8, 4)
    assert (config.head_dim, config.max_position_embeddings, config.eos_token_id) == (256, 131072, (1, 106))
    assert (config.tie_word_embeddings, config.layer_types.count("full_attention"), config.rope_theta) == (True, 5, 1e6)
    config = read_config({"model_type": "gemma3", "text_config": text, "tie_word_embeddings": False})
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("newer", [True, False])
def test_the_text_part_is_read_in_both_spellings_and_the_vision_part_is_not(newer):
    config = random_lm("gemma3").config
    text, vision = ("model.language_model", "model.") if newer else ("language_model.model", "")
    shapes, names = FAMILIES["gemma3"].shapes(config), FAMILIES["gemma3_text"].names
    tensors = {}
    for ours, (rows, columns) in shapes.items():
        for name, count in zip(names[ours].split(" | ")[0].split(), rows, strict=True):
            for layer in range(4) if "*" in name else [0]:
                full = name.replace("model.", f"{text}.", 1).replace("*", str(layer)) + ".weight"
                shape = (count,) if columns is None else (count, columns)
                tensors[full] = Stored(Path("m"), full, "F32", shape, 0)
    tensors.pop("lm_head.weight")
    for name in (f"{vision}vision_tower.x", f"{vision}multi_modal_projector.y"):
        tensors[name] = Stored(Path("m"), name, "F32", (5,), 0)
    parts = plan_folder(config, tensors, Path("m"))
    assert {part.name for several in parts.values() for part in several} == {
        name for name in tensors if "vision" not in name and "multi_modal" not in name
    }


def write_with_pictures(folder, prefix):
    """A tiny model with a vision encoder of one tensor, under the names of older files or of newer ones."""
    lm = random_lm("gemma3")
    shapes, names = FAMILIES["gemma3"].shapes(lm.config), FAMILIES["gemma3_text"].names
    tensors = {"vision_tower.x.weight": np.ones(5, np.float32)}
    blocks = [(f"{i}", block) for i, block in enumerate(lm.weights.layers)]
    for ours, (rows, _) in shapes.items():
        theirs = names[ours].split(" | ")[0].split()
        for layer, weights in blocks if "*" in theirs[0] else [("", lm.weights)]:
            cut = np.split(getattr(weights, ours), np.cumsum(rows)[:-1])
            for name, value in zip(theirs, cut, strict=True):
                full = name.replace("model.", prefix, 1).replace("*", layer)
                tensors |= {f"{full}.weight": np.ascontiguousarray(value)} if ours != "lm_head" else {}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    keys = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 2]}
    text = KEYS["gemma3"]["text_config"] | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(keys | {"text_config": text, "vision_config": {}}))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_model_with_pictures_the_text_part_is_written_as_what_it_is(tmp_path, capsys, prefix, dtype):
    write_with_pictures(tmp_path / "m", prefix)
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "n"), "--dtype", dtype]) == 0
    assert "npllm writes only what it computes: the text part, as Gemma3ForCausalLM\n" in capsys.readouterr().err
    lm, new, ids = npllm.load(tmp_path / "m", dtype=dtype), npllm.load(tmp_path / "n", dtype=dtype), [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(npllm.forward(ids, new)[0], npllm.forward(ids, lm)[0])
    assert (new.config.family, new.config.eos_token_id) == ("gemma3_text", (1, 2))
    names = {name.removesuffix(".codes") for name in load_file(tmp_path / "n" / "model.safetensors")}
    assert {"model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight", "model.norm.weight"} < names
    keys = json.loads((tmp_path / "n" / "config.json").read_text())
    assert keys["model_type"] == "gemma3_text"
    assert not keys.keys() & {"text_config", "vision_config"}
    convert(tmp_path / "n", tmp_path / "again", "float32")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_transformers_loads_the_text_part_that_was_written(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 8, "patch_size": 4}
    text = SIZES | {"head_dim": 4, "num_key_value_heads": 2, "sliding_window": 3, "pad_token_id": 0}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    tool("make_golden").randomize(model, 0)
    model.eval().save_pretrained(tmp_path / "m")
    done = convert(tmp_path / "m", tmp_path / "n", "float32")
    assert done.part == "the text part, as Gemma3ForCausalLM"
    auto = transformers.AutoModelForCausalLM
    written, info = auto.from_pretrained(tmp_path / "n", output_loading_info=True, dtype=torch.float32)
    assert type(written).__name__ == "Gemma3ForCausalLM"
    assert not any(info.values()), info
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        expected, got = model(input_ids=ids).logits[0].numpy(), written.eval()(ids).logits[0].numpy()
    assert_close("logits", got, expected)
    assert_close("logits", npllm.forward(ids[0].tolist(), npllm.load(tmp_path / "n"))[0], expected)


def test_a_cap_of_null_is_none():
    config = config_of("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert config.attn_logit_softcapping is config.final_logit_softcapping is None


def test_both_spellings_of_gemma_3s_rope_are_the_same():
    old = {"rope_theta": 50.0, "rope_local_base_freq": 20.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    new = config_of("gemma3_text", rope_parameters=NESTED)
    assert config_of("gemma3_text", **old) == new
    assert set(new.rope_scaling.factors) == {4.0}


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("gemma", {"hidden_act": "silu"}, "hidden_act: expected 'gelu' or "),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation: expected 'gelu_new' or "),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False or None"),
        ("gemma2", {"sliding_window": None}, "layer_types: expected full_attention alone"),
        ("gemma3", {"text_config": SIZES | {"final_logit_softcapping": 3.0}}, "text_config: final_logit_softcapping: "),
        ("gemma3", {"text_config": {}}, "text_config: expected the keys of the text part, got {}; there are none"),
        ("gemma3", {"text_config": {"model_type": "gemma3_text"}}, "expected the keys of the text part, "),
        ("gemma3", {"architectures": ["Gemma3ForSequenceClassification"]}, "architectures: expected a model that cont"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected None, got 50.0"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 5.0}},
            "rope_parameters: expected an object for each of full",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention: rope_parameters: expected one of default",
        ),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "rope_scaling.truncate: expected true",
        ),
    ],
)
def test_what_is_not_computed_is_refused(name, keys, message):
    with pytest.raises(ModelFileError, match=message):
        config_of(name, **keys)


@pytest.mark.parametrize(("name", "large"), [("gemma2", 46), ("gemma3", 62)])
def test_the_scale_of_the_scores_in_a_gguf_file_follows_from_the_size(name, large):
    assert keys_of_gguf(name, block_count=large - 1)["query_pre_attn_scalar"] == 128
    assert keys_of_gguf(name, block_count=large)["query_pre_attn_scalar"] == 168


def test_missing_metadata_have_the_defaults_of_llama_cpp():
    gemma2, gemma3 = keys_of_gguf("gemma2"), keys_of_gguf("gemma3")
    assert (gemma2["attn_logit_softcapping"], gemma2["final_logit_softcapping"]) == (50.0, 30.0)
    assert gemma2["sliding_window"] == 4096
    assert read_config(gemma3 | {"rope_scaling": None}).layer_types == ("full_attention",) * 7
    windowed = keys_of_gguf("gemma3", **{"attention.sliding_window": 512})
    assert windowed["rope_local_base_freq"] == 10000.0
    assert read_config(windowed).layer_types == (*["sliding_attention"] * 5, "full_attention", "sliding_attention")


def keys_of_gguf(name, **more):
    """The keys of config.json for a .gguf file with these metadata."""
    values = {"block_count": 7, "context_length": 64, "embedding_length": 5376, "feed_forward_length": 12}
    values |= {"attention.head_count": 32, "attention.head_count_kv": 16, "attention.key_length": 128}
    values |= {"attention.layer_norm_rms_epsilon": 1e-6, **more}
    metadata = {f"{name}.{key}": value for key, value in values.items()} | {"general.architecture": name}
    return gguf_keys(Metadata(Path("m.gguf"), metadata, {"token_embd.weight": (23, 5376)}))


def test_a_norm_in_a_gguf_file_is_read_without_the_one_that_was_added(tmp_path):
    path = tmp_path / "norm"
    path.write_bytes(np.array([1.5, 0.25], np.float32).tobytes())
    config = random_lm("gemma").config
    stored = Stored(path, "output_norm.weight", "F32", (2,), 0)
    [marked] = gguf_tensors(config, {stored.name: stored}).values()
    [row] = read_rows(marked)
    np.testing.assert_array_equal(row[:, 0], [0.5, -0.75])
    with pytest.raises(ModelFileError, match=r"output_norm\.weight: expected F32, got F16"):
        gguf_tensors(config, {stored.name: stored._replace(dtype="F16")})


def test_the_cap_needs_all_scores_at_once():
    assert [FAMILIES[name].full_scores for name in GEMMAS] == [False, True, False]


def test_the_one_that_norms_add_and_the_scaled_embeddings_are_counted():
    lm = random_lm("gemma")
    assert total(costs(lm.config, lm.weights, 9)).flops == counted_flops(lm, np.arange(9))
