"""Checkpoints that npllm once silently computed wrongly, or refused although transformers runs them.

Each is a tiny model, compared with transformers (marker oracle) and also, without it, with the recorded right answer.
A key that changes the logits is computed or refused by name. What transformers runs is not refused.
"""

import json

import numpy as np
import pytest
import sweep
from checkpoints import write_folder, write_gguf, write_gpt2_folder
from safetensors.numpy import load_file, save_file
from sweep import CAUSAL, SEQUENCE
from tolerance import assert_close

import npllm
from npllm import families
from npllm.errors import ModelFileError

FAMILIES = sorted(getattr(families, "FAMILIES", ("phi3", "llama", "mistral", "qwen2", "gpt2")))
FAMILIES = [name for name in FAMILIES if name not in ("bert", "phi3small")]  # no decoder; unknown to transformers
WITH_ROPE = [family for family in FAMILIES if family != "gpt2"]
oracle = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # transformers issues warnings of its own


def next_to_transformers(test):
    for mark in oracle:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    module.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with models this small, threads only wait for each other
    yield module
    torch.set_num_threads(threads)


def equal_or_refused(
    folder, family, key, head=CAUSAL, tensors=None, drop=(), text=tuple(sweep.TEXT), may_refuse=True, **changes
):
    """Assert that npllm computes the logits of a transformers checkpoint with these keys, or refuses that key."""
    keys = {name: value for name, value in sweep.base(family, head).items() if name not in drop} | changes
    sweep.write_model(folder, family, keys, head, tensors=tensors)
    expected = sweep.expected_logits(folder, text, head)
    refusal = None
    try:
        got = sweep.npllm_logits(folder, text, head)
    except ModelFileError as error:
        refusal = str(error)
    if refusal is not None:
        assert may_refuse, f"transformers computes it, npllm refuses: {refusal}"
        assert key in refusal, f"expected a refusal that names {key}, got: {refusal}"
        return
    assert_close(f"{family}: {key}", got, expected)


def refused(folder, key):
    with pytest.raises(ModelFileError, match=key):
        npllm.load(folder)


def write(folder, family, **keys):
    """Write a checkpoint with tests/checkpoints.py, without transformers."""
    if family == "gpt2":
        write_gpt2_folder(folder, **keys)
    else:
        write_folder(folder, family, **keys)
    return folder


def edit(folder, drop=(), tensors=None, **keys):
    """Change a written checkpoint: set keys (None is JSON null), drop keys, and add tensors or drop them (None)."""
    path = folder / "config.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (old | keys).items() if key not in drop}))
    if tensors:
        weights = load_file(folder / "model.safetensors") | tensors
        save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")
    return folder


def logits(folder, ids=tuple(range(5, 45))):
    return npllm.forward(np.asarray(ids), npllm.load(folder))[0]


OWN = [family for family in ("phi3", "llama", "mistral", "qwen2", "gpt2") if family in FAMILIES]


# Attention that is not causal


@pytest.mark.parametrize("value", [False, None])
@pytest.mark.parametrize("family", FAMILIES)
@next_to_transformers
def test_attention_both_ways_next_to_transformers(transformers, tmp_path, family, value):
    equal_or_refused(tmp_path / "m", family, "is_causal", is_causal=value)


@pytest.mark.parametrize("value", [False, None, 0])
@pytest.mark.parametrize("family", OWN)
def test_attention_both_ways_is_refused(tmp_path, family, value):
    """null is refused too: there, transformers depends on its attention kernel, eager or sdpa."""
    refused(edit(write(tmp_path / "m", family), is_causal=value), "is_causal")


@pytest.mark.parametrize("family", OWN)
def test_attention_that_says_it_is_causal_is_computed(tmp_path, family):
    plain, said = write(tmp_path / "plain", family), edit(write(tmp_path / "said", family), is_causal=True)
    np.testing.assert_array_equal(logits(said), logits(plain))


def test_a_gguf_file_that_is_not_causal_is_refused(tmp_path):
    write_gguf(tmp_path / "m.gguf", metadata={"llama.attention.causal": False})
    refused(tmp_path / "m.gguf", r"llama\.attention\.causal")


def test_a_gguf_file_that_says_it_is_causal_is_computed(tmp_path):
    write_gguf(tmp_path / "plain.gguf")
    write_gguf(tmp_path / "said.gguf", metadata={"llama.attention.causal": True})
    np.testing.assert_array_equal(logits(tmp_path / "said.gguf"), logits(tmp_path / "plain.gguf"))


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_a_gguf_file_that_scales_the_rotation_is_refused(tmp_path, arch):
    """llama.cpp multiplies cosine and sine by the factor, whatever the scaling type."""
    write_gguf(tmp_path / "m.gguf", arch, metadata={f"{arch}.rope.scaling.attn_factor": 1.5})
    refused(tmp_path / "m.gguf", rf"{arch}\.rope\.scaling\.attn_factor")


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_a_gguf_file_whose_rotation_is_scaled_by_one_is_computed(tmp_path, arch):
    write_gguf(tmp_path / "plain.gguf", arch)
    write_gguf(tmp_path / "said.gguf", arch, metadata={f"{arch}.rope.scaling.attn_factor": 1.0})
    np.testing.assert_array_equal(logits(tmp_path / "said.gguf"), logits(tmp_path / "plain.gguf"))


# Tied embeddings next to a head


def other_head(tensors):
    """The same tensors with an lm_head that differs from the embeddings."""
    table = next(value for name, value in tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    return tensors | {"lm_head.weight": np.ascontiguousarray(table[::-1] * 0.5)}


@pytest.mark.parametrize("family", FAMILIES)
@next_to_transformers
def test_a_head_of_its_own_in_a_tied_model_next_to_transformers(transformers, tmp_path, family):
    equal_or_refused(tmp_path / "m", family, "tie_word_embeddings", tensors=other_head, tie_word_embeddings=True)


@pytest.mark.parametrize("family", OWN)
def test_a_head_of_its_own_in_a_tied_model_is_kept(tmp_path, family):
    folder = write(tmp_path / "m", family)
    edit(folder, tie_word_embeddings=True, tensors={"lm_head.weight": (head := a_head(folder))})
    np.testing.assert_array_equal(npllm.load(folder, dtype="float32").weights.lm_head, head)


def a_head(folder):
    tensors = load_file(folder / "model.safetensors")
    return other_head(tensors)["lm_head.weight"]


@pytest.mark.parametrize("family", OWN)
def test_convert_keeps_a_head_of_its_own_in_a_tied_model(tmp_path, family):
    from npllm.cli.main import main

    folder = write(tmp_path / "m", family)
    edit(folder, tie_word_embeddings=True, tensors={"lm_head.weight": (head := a_head(folder))})
    assert main(["convert", str(folder), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    np.testing.assert_array_equal(npllm.load(tmp_path / "out", dtype="float32").weights.lm_head, head)


# RoPE: the keys inside rope_scaling win


INSIDE = [
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
]


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("inside", INSIDE, ids=str)
@pytest.mark.parametrize("family", WITH_ROPE)
@next_to_transformers
def test_rope_keys_inside_next_to_transformers(transformers, tmp_path, family, inside, name):
    if family in ("phi3", "phimoe") and inside["rope_type"] == "linear":
        pytest.skip("transformers knows no linear scaling for it")
    equal_or_refused(tmp_path / "m", family, name, **{name: inside})


# With one object for each kind of layer, transformers fails.
@pytest.mark.parametrize("family", [name for name in WITH_ROPE if name not in ("olmo3", "gemma3_text")])
@next_to_transformers
def test_rope_scaling_replaces_rope_parameters_next_to_transformers(transformers, tmp_path, family):
    both = {"rope_scaling": {"rope_type": "default", "rope_theta": 7.0}, "rope_parameters": {"rope_theta": 50.0}}
    equal_or_refused(tmp_path / "m", family, "rope_scaling", **both)


@pytest.mark.parametrize("family", [family for family in OWN if family != "gpt2"])
def test_the_theta_inside_rope_scaling_wins(tmp_path, family):
    top = write(tmp_path / "top", family, rope_theta=50.0)
    inside = write(tmp_path / "in", family, rope_scaling={"rope_type": "default", "rope_theta": 50.0})
    np.testing.assert_array_equal(logits(inside), logits(top))


def test_the_partial_rotary_factor_inside_rope_scaling_wins(tmp_path):
    top = write(tmp_path / "top", "phi3", partial_rotary_factor=0.5)
    scaling = {"rope_type": "default", "partial_rotary_factor": 0.5}
    inside = write(tmp_path / "in", "phi3", partial_rotary_factor=1.0, rope_scaling=scaling)
    np.testing.assert_array_equal(logits(inside), logits(top))


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("family", [family for family in OWN if family != "gpt2"])
def test_rope_for_each_kind_of_layer_is_refused(tmp_path, family, name):
    """transformers ignores the inner values or fails; neither is what the file means."""
    nested = {kind: {"rope_type": "default", "rope_theta": 50.0} for kind in ("full_attention", "sliding_attention")}
    refused(write(tmp_path / "m", family, **{name: nested}), name)


# Windows


@pytest.mark.parametrize("layer_types", [sweep.MIXED, sweep.FULL, sweep.SLIDING, None], ids=str)
@next_to_transformers
def test_mistral_with_layer_types_next_to_transformers(transformers, tmp_path, layer_types):
    equal_or_refused(tmp_path / "m", "mistral", "layer_types", layer_types=layer_types)


def test_mistral_with_layer_types_has_windows_in_some_layers(tmp_path):
    """In transformers' ministral, full layers see everything: all full is a mistral without a window."""
    kinds = {"full": ["full_attention"] * 2, "sliding": ["sliding_attention"] * 2}
    kinds["mixed"] = ["sliding_attention", "full_attention"]
    given = {
        name: logits(write(tmp_path / name, "mistral", sliding_window=8, head_dim=16, layer_types=kind))
        for name, kind in kinds.items()
    }
    np.testing.assert_array_equal(given["full"], logits(write(tmp_path / "a", "mistral")))
    np.testing.assert_array_equal(given["sliding"], logits(write(tmp_path / "b", "mistral", sliding_window=8)))
    assert np.abs(given["mixed"] - given["full"]).max() > 0.01
    assert np.abs(given["mixed"] - given["sliding"]).max() > 0.01


@next_to_transformers
def test_qwen2_with_windows_and_no_width_next_to_transformers(transformers, tmp_path):
    equal_or_refused(tmp_path / "m", "qwen2", "sliding_window", drop=["sliding_window"], max_window_layers=0)


def test_qwen2_with_windows_and_no_width_has_4096(tmp_path):
    folder = write(tmp_path / "m", "qwen2", use_sliding_window=True, max_window_layers=0)
    edit(folder, drop=["sliding_window"])
    assert npllm.load(folder).config.sliding_window == 4096


# Classifiers


@next_to_transformers
def test_phi3_classifier_without_a_pad_token_next_to_transformers(transformers, tmp_path):
    keys = {"vocab_size": 32_064, "hidden_size": 16, "text": (*sweep.TEXT, 32_000, 32_000)}
    equal_or_refused(tmp_path / "m", "phi3", "pad_token_id", SEQUENCE, drop=["pad_token_id"], **keys)


def test_phi3_classifier_without_a_pad_token_has_32000(tmp_path):
    keys = {"architectures": ["Phi3ForSequenceClassification"], "id2label": sweep.LABELS}
    folder = write(tmp_path / "m", "phi3", vocab_size=32_064, hidden_size=16, **keys)
    assert npllm.load(edit(folder, drop=["pad_token_id"])).config.pad_token_id == 32_000


@pytest.mark.parametrize("family", [family for family in OWN if family not in ("phi3", "gpt2")])
def test_other_classifiers_without_a_pad_token_have_none(tmp_path, family):
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[family]
    keys = {"architectures": [f"{name}ForSequenceClassification"], "id2label": sweep.LABELS}
    folder = edit(write(tmp_path / "m", family, **keys), drop=["pad_token_id"])
    assert npllm.load(folder).config.pad_token_id is None


# Layers that differ


@pytest.mark.parametrize("family", OWN)
def test_a_config_for_each_layer_is_refused(tmp_path, family):
    """transformers fails on most of these, and ignores `skip`."""
    for value in ({"1": {"rms_norm_eps": 0.5}}, {"1": {"skip": ["attention"]}}):
        folder = write(tmp_path / str(len(str(value))), family)
        refused(edit(folder, per_layer_config=value), "per_layer_config")


@pytest.mark.parametrize("value", [None, {}])
@pytest.mark.parametrize("family", OWN)
def test_a_config_for_no_layer_is_computed(tmp_path, family, value):
    plain, said = write(tmp_path / "plain", family), edit(write(tmp_path / "said", family), per_layer_config=value)
    np.testing.assert_array_equal(logits(said), logits(plain))


# What transformers runs


@pytest.mark.parametrize("family", FAMILIES)
@next_to_transformers
def test_the_default_epsilon_next_to_transformers(transformers, tmp_path, family):
    key = "layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps"
    equal_or_refused(tmp_path / "m", family, key, drop=[key], may_refuse=False)


@pytest.mark.parametrize("family", OWN)
def test_the_default_epsilon(tmp_path, family):
    key = "layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps"
    default = {"phi3": 1e-5, "olmo2": 1e-5, "gpt2": 1e-5}.get(family, 1e-6)
    left_out = edit(write(tmp_path / "a", family), drop=[key])
    np.testing.assert_array_equal(logits(left_out), logits(edit(write(tmp_path / "b", family), **{key: default})))


@pytest.mark.parametrize("family", FAMILIES)
@next_to_transformers
def test_fewer_layers_than_the_file_has_next_to_transformers(transformers, tmp_path, family):
    folder, key = tmp_path / "m", "n_layer" if family == "gpt2" else "num_hidden_layers"
    equal_or_refused(folder, family, key)
    fewer = {key: 2} | ({"layer_types": sweep.MIXED[:2]} if family == "ministral" else {})
    edit(folder, **fewer)
    assert_close("logits", sweep.npllm_logits(folder), sweep.expected_logits(folder))


@pytest.mark.parametrize("family", OWN)
def test_fewer_layers_than_the_file_has(tmp_path, family):
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    folder = edit(write(tmp_path / "m", family), **{key: 1})
    assert len(npllm.load(folder).weights.layers) == 1


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"])
@next_to_transformers
def test_activations_of_gpt2_next_to_transformers(transformers, tmp_path, name):
    equal_or_refused(tmp_path / "m", "gpt2", "activation_function", activation_function=name, may_refuse=False)


@pytest.mark.parametrize("name", ["gelu_fast", "gelu_pytorch_tanh"])
def test_names_of_the_same_gelu(tmp_path, name):
    new, other = (write(tmp_path / which, "gpt2", activation_function=which) for which in ("gelu_new", name))
    np.testing.assert_array_equal(logits(other), logits(new))


@pytest.mark.parametrize(
    "family", [name for name in WITH_ROPE if not sweep.transformers_fails(name, "num_key_value_heads", None)]
)
@next_to_transformers
def test_key_heads_of_null_next_to_transformers(transformers, tmp_path, family):
    equal_or_refused(tmp_path / "m", family, "num_key_value_heads", num_key_value_heads=None, may_refuse=False)


@pytest.mark.parametrize("family", [family for family in OWN if family not in ("mistral", "gpt2")])
def test_key_heads_of_null_are_as_many_as_heads(tmp_path, family):
    folder = write(tmp_path / "m", family, num_key_value_heads=4)
    assert npllm.load(edit(folder, num_key_value_heads=None)).config.num_key_value_heads == 4


@pytest.mark.parametrize("family", [family for family in ("phi3", "mistral", "qwen2", "gpt2") if family in FAMILIES])
@next_to_transformers
def test_a_bias_that_is_ignored_next_to_transformers(transformers, tmp_path, family):
    equal_or_refused(tmp_path / "m", family, "attention_bias", attention_bias=True, may_refuse=False)


@pytest.mark.parametrize("family", [family for family in ("phi3", "mistral", "qwen2", "gpt2") if family in FAMILIES])
def test_a_bias_that_is_ignored(tmp_path, family):
    plain = write(tmp_path / "plain", family)
    said = edit(write(tmp_path / "said", family), attention_bias=True)
    np.testing.assert_array_equal(logits(said), logits(plain))
