"""Results that are not finite: found in whatever layer they arise, and blamed on the right thing."""

import numpy as np
import pytest
from checkpoints import write_folder
from families import WRITERS, random_lm
from safetensors.numpy import load_file, save_file

import npllm
from npllm.apps.ablate import without_layers
from npllm.apps.bench import cache_runs
from npllm.apps.chat import Chat
from npllm.apps.classify import classify, classify_tokens
from npllm.apps.evaluate import evaluate, reference
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.devices.device import to_host
from npllm.devices.finite import check_finite, not_finite
from npllm.errors import ModelFileError, UsageError
from npllm.norm import layer_norm, rms_norm

BLAME = "expected finite numbers, got .*; the weights are damaged or too large, or were rounded to a dtype too narrow"


def test_a_square_that_overflows_makes_the_norm_nan_and_not_zero(lib):
    """x / sqrt(inf) would be 0, and the model would go on with nothing."""
    x = lib.array(np.array([[1e20, 1.0, -3.0, 2.0], [1.0, 2.0, 3.0, 4.0]], dtype=np.float32))
    ones, zeros = lib.array(np.ones(4, np.float32)), lib.array(np.zeros(4, np.float32))
    with np.errstate(all="ignore"):
        for normed in (rms_norm(x, ones, 1e-5), layer_norm(x, ones, zeros, 1e-5)):
            host = to_host(normed)
            assert np.all(np.isnan(host[0]))
            assert np.all(np.isfinite(host[1]))


def overflowing(name, weight, layer, factor):
    """A model in which one matrix of finite numbers is so large that the next norm overflows."""
    lm = random_lm(name)
    if layer is None:
        return lm._replace(weights=lm.weights._replace(**{weight: getattr(lm.weights, weight) * np.float32(factor)}))
    layers = list(lm.weights.layers)

    def with_large(part):
        return part._replace(**{weight: getattr(part, weight) * np.float32(factor)})

    block = layers[layer]
    if weight in block._fields:
        layers[layer] = with_large(block)
    else:
        layers[layer] = block._replace(experts=tuple(map(with_large, block.experts)))
    return lm._replace(weights=lm.weights._replace(layers=tuple(layers)))


PLACES = [
    *((name, "embed_tokens", None) for name in WRITERS),
    *((name, "o_proj", 0) for name in WRITERS),
    *((name, "c_proj" if name == "gpt2" else "down_proj", 3) for name in WRITERS),
    ("qwen3", "qkv_proj", 1),
    ("olmo2", "qkv_proj", 1),
]


@pytest.mark.parametrize(("name", "weight", "layer"), PLACES)
def test_finite_weights_that_overflow_in_a_norm_are_no_text(name, weight, layer):
    lm = overflowing(name, weight, layer, 1e25)
    with pytest.raises(ModelFileError, match=BLAME) as error:
        npllm.generate(lm, [1, 2, 3], max_new_tokens=3)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelFileError, match=BLAME):
        [*evaluate(lm, [1, 2, 3], 8, 4)]


def test_the_first_layer_whose_keys_are_not_finite_is_named():
    for layer in (1, 2):
        with pytest.raises(
            ModelFileError, match=f"after token 3: .* got nan, first in the keys of layer {layer + 1}; "
        ):
            npllm.generate(overflowing("llama", "down_proj", layer, 1e25), [1, 2, 3], max_new_tokens=3)
    with pytest.raises(ModelFileError, match=r"got nan, after the keys and values of all layers; "):
        npllm.generate(overflowing("llama", "down_proj", 3, 1e25), [1, 2, 3], max_new_tokens=3)


def test_every_call_that_reads_logits_notices():
    lm, well = overflowing("llama", "down_proj", 2, 1e25), random_lm("llama")
    ids, few = [1, 2, 3, 1, 2, 3, 1, 2], {"max_new_tokens": 3}
    calls = [
        lambda: list(npllm.stream(lm, ids, **few)),
        lambda: npllm.generate(lm, ids, **few, temperature=1.0, seed=0),
        lambda: npllm.generate(lm, ids, **few, use_cache=False),
        lambda: npllm.generate(lm, ids, **few, tokens=prompt_lookup(4)),
        lambda: npllm.generate(lm, ids, **few, tokens=draft_model(well)),
        lambda: npllm.generate(well, ids, **few, tokens=draft_model(lm)),
        lambda: npllm.generate(well, ids, **few, tokens=draft_model(lm), temperature=1.0, seed=0),
        lambda: list(cache_runs(lm, ids, 2, 1)),
        lambda: [*evaluate(lm, ids, 8, 4)],
        lambda: [*evaluate(well, ids, 8, 4, [*reference(lm, ids, 8, 4)][-1])],
        lambda: without_layers(lm, ids),
        lambda: check_finite(npllm.forward(ids, lm)[0], "the logits"),
    ]
    for call in calls:
        with pytest.raises(ModelFileError, match=BLAME):
            call()


@pytest.fixture(scope="module")
def overflowing_folder(tmp_path_factory):
    """A function that writes a checkpoint, with one of its tensors too large."""

    def write(tensor, **keys):
        folder = tmp_path_factory.mktemp("models") / "tiny"
        write_folder(folder, **keys)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors[tensor] = tensors[tensor] * np.float32(1e25)
        save_file(tensors, path)
        return npllm.load(folder)

    return write


def test_a_conversation_a_pipeline_and_a_classifier_notice(overflowing_folder):
    lm = overflowing_folder("model.layers.0.mlp.down_proj.weight")
    with pytest.raises(ModelFileError, match=BLAME):
        list(Chat(lm).reply("Hello", max_new_tokens=3))
    with pytest.raises(ModelFileError, match=BLAME):
        npllm.pipeline("text-generation", lm, max_new_tokens=3)("Hello")
    for head, call in (("Sequence", classify), ("Token", classify_tokens)):
        keys = {"architectures": [f"Phi3For{head}Classification"], "id2label": {"0": "a", "1": "b"}}
        lm = overflowing_folder("model.layers.0.mlp.down_proj.weight", **keys)
        with pytest.raises(ModelFileError, match=BLAME):
            call(lm, "Hello")


@pytest.mark.parametrize("name", WRITERS)
def test_a_float16_cache_that_overflows_is_to_blame_and_no_weight(name):
    lm = random_lm(name)
    bias = lm.weights.layers[2].qkv_proj_bias
    width = lm.config.num_key_value_heads * lm.config.head_dim
    large = np.zeros(lm.config.num_attention_heads * lm.config.head_dim + 2 * width, np.float32)
    large[-width:] = 1e5  # the values, since keys may be normalized; in Phi-3-small one key and its value
    large = large if bias is None else bias + large
    layers = [b._replace(qkv_proj_bias=large) if i == 2 else b for i, b in enumerate(lm.weights.layers)]
    lm = lm._replace(weights=lm.weights._replace(layers=tuple(layers)))
    for dtype in ("float32", "bfloat16"):
        npllm.generate(lm, [1, 2, 3], max_new_tokens=3, cache_dtype=dtype)
    blame = (
        "^cache_dtype: expected bfloat16 or float32 for this model, got float16:"
        rf" {'keys' if name == 'phi3small' else 'values'} of layer 2 are beyond 65,504"
    )
    with pytest.raises(UsageError, match=blame):
        npllm.generate(lm, [1, 2, 3], max_new_tokens=3, cache_dtype="float16")
    with pytest.raises(UsageError, match=blame):
        npllm.generate(lm, [1, 2, 3, 1, 2], max_new_tokens=3, cache_dtype="float16", tokens=prompt_lookup(4))


def test_damaged_weights_are_to_blame_with_any_cache():
    lm = overflowing("llama", "qkv_proj", 1, np.nan)
    for dtype in ("float16", "bfloat16", "float32"):
        with pytest.raises(ModelFileError, match=r"first in the keys of layer 1; the weights are damaged"):
            npllm.generate(lm, [1, 2], max_new_tokens=3, cache_dtype=dtype)


def test_without_a_cache_no_layer_is_named():
    assert str(not_finite("the logits", "inf")).startswith("the logits: expected finite numbers, got inf; the weights")
