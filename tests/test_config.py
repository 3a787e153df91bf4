import dataclasses
import json

import pytest
from families import KEYS

from npllm.checkpoint.quantized import joined
from npllm.config import Config, RopeScaling
from npllm.errors import ModelFileError
from npllm.families import FAMILIES, read_config
from npllm.families.common import rope
from npllm.families.keys import LARGEST, Keys
from npllm.families.scaling import llama3
from npllm.storage.stored import Stored
from npllm.text.end_ids import read_token_ids

# The keys that every config.json has, with Phi-3-mini's values.
PHI3_MINI = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
YARN = {"rope_type": "yarn", "factor": 2.0}
HUGE = pytest.param(10**400, id="10**400")  # valid in JSON, too large for a float


def config(**keys) -> Config:
    """Phi-3-mini's configuration with these keys changed. A value of ... removes the key."""
    merged = PHI3_MINI | keys
    return read_config({key: value for key, value in merged.items() if value is not ...})


def llama(**keys) -> Config:
    """The same for Llama, which has other scalings of positions."""
    return config(model_type="llama", **keys)


def test_what_a_config_leaves_out_has_the_default_of_its_model_type():
    read = config()
    assert read.num_key_value_heads == 32
    assert read.head_dim == 96
    assert read.rotary_dim == 96
    assert read.rope_theta == 10000.0
    assert read.rope_scaling is None
    assert read.sliding_window is None
    assert read.layer_types == ("full_attention",) * 32
    assert not read.tie_word_embeddings
    assert not read.attention_bias
    assert not read.mlp_bias
    assert read.eos_token_id == ()


def test_null_means_the_default():
    nulls = ("num_key_value_heads", "head_dim", "rope_scaling", "sliding_window", "eos_token_id", "rope_theta")
    assert config(**dict.fromkeys(nulls)) == config()


def test_harmless_keys_are_ignored_silently():
    assert config(transformers_version="4.41.2", torch_dtype="bfloat16", use_cache=True) == config()


def test_unknown_keys_are_warned_of():
    with pytest.warns(UserWarning, match="config.json: ignored keys that npllm does not know: speed, color"):
        assert config(speed=1, color="red", _comment="x", empty=None) == config()


@pytest.mark.parametrize(
    ("model_type", "kv_heads", "attention_bias"),
    [("phi3", 32, False), ("llama", 32, False), ("mistral", 8, False), ("qwen2", 32, True)],
)
def test_each_model_type_has_its_defaults(model_type, kv_heads, attention_bias):
    read = config(model_type=model_type)
    assert read.num_key_value_heads == kv_heads
    assert read.attention_bias == attention_bias


def test_qwen2_has_32_heads_of_keys_and_values_however_many_heads_it_has():
    assert config(model_type="qwen2", num_attention_heads=64).num_key_value_heads == 32


def test_head_dim_wins_over_the_width_per_head():
    assert config(head_dim=128).head_dim == 128
    assert config(head_dim=128, hidden_size=3000).head_dim == 128  # not a multiple of 32


def test_partial_rotary_turns_a_part_of_the_head():
    assert config(partial_rotary_factor=0.75).rotary_dim == 72
    assert config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}).rotary_dim == 48


def test_partial_rotary_counts_where_the_family_rotates_a_part():
    assert config(model_type="llama", partial_rotary_factor=0.5).rotary_dim == 96


def test_rope_parameters_are_read_where_newer_files_keep_them():
    newer = llama(rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    older = llama(rope_scaling=LLAMA3, rope_theta=500000.0)
    assert newer == older
    assert newer.rope_theta == 500000.0
    assert newer.rope_scaling == llama3(LLAMA3, 500000.0, 48)


def test_rope_scaling_replaces_rope_parameters():
    linear = {"type": "linear", "factor": 2.0}
    read = rope(Keys({"rope_scaling": linear, "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}), head_dim=96)
    assert read["rope_scaling"] == RopeScaling("linear", (2.0,) * 48)
    assert read["rope_theta"] == 10000.0
    assert config(rope_scaling={}, rope_parameters={"rope_theta": 500000.0}).rope_theta == 500000.0


def test_what_is_inside_wins_over_the_top_level():
    inside = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5}
    read = config(rope_parameters=inside, rope_theta=7.0, partial_rotary_factor=0.25)
    assert (read.rope_theta, read.partial_rotary_factor) == (50.0, 0.5)


def test_the_original_context_at_the_top_wins():
    without = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}

    def scaling_with(original):
        return llama3(LLAMA3 | {"original_max_position_embeddings": original}, 10000.0, 48)

    assert llama(rope_scaling=LLAMA3).rope_scaling == scaling_with(8192)
    assert llama(rope_scaling=LLAMA3, original_max_position_embeddings=2048).rope_scaling == scaling_with(2048)
    assert llama(rope_scaling=without).rope_scaling == scaling_with(PHI3_MINI["max_position_embeddings"])


def test_linear_scaling_is_read_under_both_names_of_its_type():
    expected = RopeScaling("linear", (2.0,) * 48)
    assert config(rope_scaling={"rope_type": "linear", "factor": 2}).rope_scaling == expected
    assert config(rope_scaling={"type": "linear", "factor": 2.0}).rope_scaling == expected
    assert config(rope_scaling={"rope_type": "default"}).rope_scaling is None


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"model_type": "mistral"}, [4, 4, 4]),
        ({"model_type": "phi3"}, [4, 4, 4]),
        ({"model_type": "llama", "sliding_window": None}, [None, None, None]),
        ({"model_type": "qwen2", "max_window_layers": 0}, [None, None, None]),
        ({"model_type": "qwen2", "use_sliding_window": False, "max_window_layers": 0}, [None, None, None]),
        ({"model_type": "qwen2", "use_sliding_window": True}, [None, None, None]),  # max_window_layers is 28
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, [None, 4, 4]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, [4, 4, 4]),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            [4, None, 4],
        ),
    ],
)
def test_the_window_holds_where_the_model_type_says(keys, windows):
    read = config(**{"num_hidden_layers": 3, "num_key_value_heads": 8, "sliding_window": 4} | keys)
    assert [read.window(layer) for layer in range(3)] == windows


def test_the_window_where_the_file_gives_none():
    assert config(model_type="mistral").sliding_window == 4096
    assert config(model_type="mistral", sliding_window=None).sliding_window is None
    assert config(model_type="qwen2", use_sliding_window=True).sliding_window == 4096


def test_a_window_that_hides_nothing_is_accepted():
    assert config(model_type="llama", sliding_window=4096).window(0) is None


def test_padding_without_an_id():
    def padding(**keys):
        return config(architectures=["Phi3ForSequenceClassification"], **keys).pad_token_id

    assert padding() == 32000
    assert padding(pad_token_id=None) is None
    assert padding(pad_token_id=7) == 7
    assert config().pad_token_id is None


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().hidden_size = 1


@pytest.mark.parametrize("key", sorted(PHI3_MINI.keys() - {"rms_norm_eps"}))
def test_a_missing_key_is_named(key):
    with pytest.raises(ModelFileError, match=f"^config.json: {key}: expected "):
        config(**{key: ...})


OF_EXPERTS = {"num_local_experts": "mixtral", "num_experts": "qwen3_moe", "moe_intermediate_size": "qwen3_moe"}


@pytest.mark.parametrize("value", [0, -1, 1.5, "32", True, [32], {}, 10**30])
@pytest.mark.parametrize("key", LARGEST)
def test_what_is_not_a_whole_number_in_range_is_refused(key, value):
    with pytest.raises(ModelFileError, match=f"^config.json: {key}: expected a whole number"):
        config(model_type=OF_EXPERTS.get(key, "phi3"), **{key: value})


@pytest.mark.parametrize("key", LARGEST)
def test_an_absurd_size_is_refused(key):
    with pytest.raises(ModelFileError, match=f"^config.json: {key}: expected a whole number"):
        config(model_type=OF_EXPERTS.get(key, "phi3"), **{key: LARGEST[key] + 1})


@pytest.mark.parametrize("value", [0, -1.0, 1e-31, 1.1e30, float("nan"), float("inf"), "1e-5", True, [1.0], HUGE])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "partial_rotary_factor"])
def test_what_is_not_a_positive_number_is_refused(key, value):
    with pytest.raises(ModelFileError, match=f"^config.json: {key}: expected a positive number"):
        config(**{key: value})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model_type": "mamba"},
            "model_type: expected one of those that `npllm models` lists, got 'mamba'; npllm comp",
        ),
        ({"model_type": "phi"}, "got 'phi'; the nearest family is phi3, but phi has attention and network in parallel"),
        ({"model_type": ["phi3"]}, "model_type: expected one of"),
        ({"model_type": None}, "model_type: expected one of those that `npllm models` lists, got None; there is none"),
        ({"model_type": "Mixtral"}, "got 'Mixtral'; did you mean 'mixtral'"),
        ({"model_type": "phi-3"}, "got 'phi-3'; did you mean 'phi3'"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu' or 'swish', got 'gelu'"),
        ({"is_causal": 1}, "is_causal: expected True, got 1; npllm does not compute it"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: expected a divisor of num_attention_heads, 32, got 5"),
        ({"num_key_value_heads": 64}, "num_key_value_heads: expected a divisor"),
        ({"hidden_size": 3000}, "hidden_size: expected a multiple of num_attention_heads, 32"),
        ({"head_dim": 95}, "expected an even number of rotated dimensions up to head_dim, got 95"),
        ({"head_dim": 10, "partial_rotary_factor": 0.5}, "expected an even number of rotated dimensions"),
        ({"partial_rotary_factor": 0.001}, "expected an even number of rotated dimensions"),
        ({"partial_rotary_factor": 1.5}, "expected an even number of rotated dimensions"),
        (
            {"model_type": "llama", "partial_rotary_factor": 0.5, "rope_scaling": LLAMA3},
            "partial_rotary_factor: expected 1.0, got 0.5",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, got 'yes'"),
        ({"model_type": "llama", "attention_bias": 1}, "attention_bias: expected true or false"),
        ({"sliding_window": 0}, "sliding_window: expected a whole number"),
        ({"sliding_window": "all"}, "sliding_window: expected a whole number"),
        (
            {"model_type": "llama", "sliding_window": 4},
            "sliding_window: expected null, or at least the context of 4096",
        ),
        ({"model_type": "llama", "layer_types": ["sliding_attention"] * 32}, "layer_types: expected full_attention"),
        ({"model_type": "llama", "layer_types": [["full_attention"]] * 32}, "layer_types: expected full_attention"),
        (
            {"model_type": "mistral", "sliding_window": None, "layer_types": ["sliding_attention"] * 32},
            "layer_types: expected full_attention alone, since there is no sliding window",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32},
            "layer_types: expected full_attention alone, since there is no sliding window",
        ),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected a token id or a list of them"),
        ({"eos_token_id": [1, -2]}, "eos_token_id: expected a token id or a list of them"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object"),
        ({"rope_parameters": [1]}, "rope_parameters: expected an object"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.short_factor: expected 48 positive numbers"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.short_factor: expected 48 positive"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0] * 47}}, "long_factor: expected 48 positive numbers"),
        ({"rope_scaling": LONGROPE | {"short_factor": [0.0] * 48}}, "short_factor: expected 48 positive numbers"),
        ({"rope_scaling": LONGROPE | {"attention_factor": 0}}, "attention_factor: expected a positive number"),
        (
            {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 64}},
            "rope_scaling.original_max_position_embeddings: expected that of the top level, 4096, got 64",
        ),
        ({"rope_scaling": LONGROPE, "original_max_position_embeddings": 1}, "rope_theta and this to be more than 1"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling: expected one of default, linear, longrope",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"type": "su"}},
            "expected one of default, linear, llama3, yarn, longr",
        ),
        ({"model_type": "llama", "rope_scaling": YARN | {"truncate": 1}}, "truncate: expected true or false, got 1"),
        ({"model_type": "llama", "rope_scaling": YARN | {"beta_fast": "32"}}, "beta_fast: expected a positive number"),
        ({"model_type": "llama", "rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta and this to be more than 1"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_scaling: expected one of"),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling.factor: expected a positive number (1e-30 to 1e30), got None",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor: expected a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "rope_scaling.factor: expected a positive number"),
        (
            {"model_type": "llama", "rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "high_freq_factor: expected more than",
        ),
        (
            {"model_type": "llama", "rope_scaling": LLAMA3 | {"low_freq_factor": "1"}},
            "low_freq_factor: expected a",
        ),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types: expected 32 of"),
        ({"model_type": "qwen2", "layer_types": ["other"] * 32}, "layer_types: expected 32 of"),
        ({"model_type": "qwen2", "layer_types": [["full_attention"]] * 32}, "layer_types: expected 32 of"),
        ({"model_type": "qwen2", "layer_types": 32}, "layer_types: expected 32 of"),
    ],
)
def test_what_npllm_does_not_compute_is_refused(keys, message):
    with pytest.raises(ModelFileError) as refused:
        config(**keys)
    assert str(refused.value).startswith("config.json: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_message_names_the_file():
    with pytest.raises(ModelFileError, match=r"^models/x/config\.json: vocab_size: "):
        read_config(PHI3_MINI | {"vocab_size": None}, "models/x/config.json")


def test_json_is_read_as_it_comes():
    assert read_config(
        json.loads(json.dumps(PHI3_MINI | {"rope_scaling": LONGROPE, "eos_token_id": [1, 2]}))
    ) == config(rope_scaling=LONGROPE, eos_token_id=[1, 2])


@pytest.mark.parametrize(
    ("value", "ids"), [(None, ()), (0, (0,)), (7, (7,)), ([7, 8], (7, 8)), ([], ()), (-1, ()), ([2**32 - 1, 7], (7,))]
)
def test_token_ids_are_one_a_list_or_none(value, ids):
    assert read_token_ids({"eos_token_id": value}, "eos_token_id", "generation_config.json") == ids
    assert read_token_ids({}, "eos_token_id", "generation_config.json") == ()


@pytest.mark.parametrize("value", [True, "7", 7.0, [7, None], {"a": 1}, -2])
def test_what_is_not_a_token_id_is_refused(value):
    with pytest.raises(ModelFileError, match=r"^generation_config\.json: eos_token_id: expected a token id"):
        read_token_ids({"eos_token_id": value}, "eos_token_id", "generation_config.json")


def test_qwen3_has_its_defaults():
    read = config(model_type="qwen3")
    assert (read.head_dim, read.num_key_value_heads, read.attention_bias) == (128, 32, False)
    assert config(model_type="qwen3", head_dim=64).head_dim == 64


def test_olmo2_has_its_defaults():
    read = config(model_type="olmo2", rms_norm_eps=..., architectures=["Olmo2ForSequenceClassification"])
    assert (read.rms_norm_eps, read.pad_token_id, read.num_key_value_heads) == (1e-5, 1, 32)


def test_smollm3_has_its_defaults():
    read = config(model_type="smollm3", num_hidden_layers=5, use_sliding_window=True, sliding_window=8)
    assert (read.rope_theta, read.num_key_value_heads, read.tie_word_embeddings) == (2e6, 4, True)
    assert read.rotated == (True, True, True, False, True)
    assert [read.window(layer) for layer in range(5)] == [None, None, None, 8, None]
    assert config(model_type="smollm3", num_hidden_layers=2, no_rope_layers=[0, 1, 1]).rotated == (False, True)
    with pytest.raises(ModelFileError, match="no_rope_layers: expected 2 numbers"):
        config(model_type="smollm3", num_hidden_layers=2, no_rope_layers=[1])


# JSON's values where others belong. No model has them; a broken or hostile file does.
TEXTS = ("64", "1e-5", "x", "", "\u202e", "x" * 1000)
NUMBERS = (64.0, 64.5, -1, 0, 1, 2**31, 10**12, 10**400, 1e999, -1e999, float("nan"), 1e-320, 1e299, True, False)
OTHERS = (None, [], {}, [[]], [{}], [1], [None], ["x"], {"a": {}}, {"a": 1}, {"rope_type": []}, [1e999] * 3)


VALUES = (*TEXTS, *NUMBERS, *OTHERS)


def tiny(model_type: str) -> dict:
    """The keys of a small config.json of any family, with those that only some families read."""
    keys = PHI3_MINI | {"num_hidden_layers": 4, "model_type": model_type, "n_embd": 64, "n_layer": 2, "n_head": 2}
    keys |= {"n_positions": 64, "sliding_window": None, "architectures": ["XForSequenceClassification"]}
    if model_type in ("gemma2", "gemma3", "gemma3_text", "gpt_oss", "olmo3", "phi3small"):  # need keys of their own
        keys |= KEYS[model_type]
    return keys | ({"architectures": []} if model_type == "gemma3" else {})


def read_or_refused(keys: dict) -> bool:
    """Whether keys are read, with every number of its type; otherwise the refusal is one line."""
    message, read = "", None
    try:
        read = read_config(keys)
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500
    if read is None:
        return False
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"):
        assert type(getattr(read, name)) is int
    assert all(type(name) is str for name in (*read.layer_types, *read.architectures, *read.id2label))
    assert type(read.rms_norm_eps) is float
    assert type(read.rope_theta) is float
    assert 2 <= read.rotary_dim <= read.head_dim
    assert type(read.tie_word_embeddings) is bool
    return True


def quick_for(*families):
    """All families; the others are slow."""
    return [family if family in families else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


@pytest.mark.filterwarnings("ignore:.*ignored keys that npllm does not know")
@pytest.mark.parametrize("family", quick_for("gpt2"))
def test_any_value_of_any_key_is_read_or_refused(family):
    base = tiny(family)
    reader = Keys(base)
    FAMILIES[family].read_config(reader)
    assert read_or_refused(base)
    names = {*reader.read, *base, *LARGEST}
    assert len(names) > 30
    some = VALUES if family == "llama" else VALUES[list(FAMILIES).index(family) % 3 :: 3]
    outcomes = {read_or_refused(base | {name: value}) for name in names for value in some}
    assert outcomes == {True, False}


# Families that have no linear scaling, or one object for each kind of layer.
OTHER_ROPE = {"phimoe", "phi3small", "olmo3", "gemma3", "gemma3_text"}


@pytest.mark.filterwarnings("ignore:.*ignored keys that npllm does not know")
@pytest.mark.parametrize("outer", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("family", quick_for())
def test_any_value_of_any_key_of_rope_is_read_or_refused(family, outer):
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 1.0}
    other = {**LONGROPE, "original_max_position_embeddings": 4096} if family == "phi3" else LLAMA3
    for inside in (linear, linear | other):
        assert read_or_refused(tiny(family) | {outer: inside}) or family in OTHER_ROPE
        for key in inside:
            for value in VALUES[list(FAMILIES).index(family) % 4 :: 4]:
                read_or_refused(tiny(family) | {outer: inside | {key: value}})


def test_layer_types_of_any_kind_are_refused():
    for value in ([[]], [{}], [None], [1], [], {}, "full_attention", ["full_attention", []]):
        with pytest.raises(ModelFileError, match="layer_types: expected full_attention alone"):
            config(model_type="llama", layer_types=value)


def test_problem_types_are_those_of_transformers():
    classifier = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    for value in (None, "regression", "single_label_classification", "multi_label_classification"):
        assert config(**classifier, problem_type=value).problem_type == value
    for value in ("other", "", 1, True, ["regression"], {}):
        with pytest.raises(ModelFileError, match="problem_type: expected 'regression' or 'single_label"):
            config(**classifier, problem_type=value)


QUANTIZED = {"quant_method": "npllm", "bits": 4, "group": 32}


@pytest.mark.parametrize("same", [QUANTIZED, QUANTIZED | {"bits": 4.0}, QUANTIZED | {"group": 32.0}])
def test_a_whole_number_may_be_written_with_a_point_in_quantization_config(tmp_path, same):
    parts = {"codes": ("U8", (2, 16)), "scale": ("BF16", (2, 1)), "minimum": ("BF16", (2, 1))}
    tensors = {f"w.{name}": Stored(tmp_path, f"w.{name}", *how, 0) for name, how in parts.items()}
    assert joined({"quantization_config": same}, tensors, "config.json")["w"].dtype == "int4/32"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(repr(value))[:20])
@pytest.mark.parametrize("key", [*QUANTIZED, None])
def test_any_value_of_quantization_config_is_refused(key, value):
    found = value if key is None else QUANTIZED | {key: value}
    if found is None:
        assert joined({"quantization_config": found}, {}, "config.json") == {}
        return
    with pytest.raises(ModelFileError, match=r"^config\.json: quantization_config: expected \{.*, got [^\n]{0,200};"):
        joined({"quantization_config": found}, {}, "config.json")


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024}


def olmo3(**keys) -> Config:
    """The same for OLMo 3, with the keys of its published files."""
    return config(**{"model_type": "olmo3", "rope_theta": 500000, "rope_scaling": YARN} | keys)


def test_olmo3_has_full_attention_in_every_fourth_layer():
    read = olmo3()
    assert read.layer_types == (*["sliding_attention"] * 3, "full_attention") * 8
    assert read.window(0) == 4096
    assert read.rope_scaling.kind == "yarn"
    assert (read.rope_theta, read.local_rope_theta) == (500000.0, 500000.0)


def test_olmo3_has_rope_by_kind_of_layer():
    full = YARN | {"rope_theta": 100.0}
    nested = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}
    read = olmo3(rope_theta=..., rope_scaling=..., rope_parameters=nested)
    assert (read.rope_theta, read.local_rope_theta, read.rope_scaling.kind) == (100.0, 50.0, "yarn")
    read = olmo3(rope_scaling=..., rope_parameters={"full_attention": full, "sliding_attention": None})
    assert (read.rope_theta, read.local_rope_theta) == (100.0, 500000.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_theta": 10000.0}, "rope_theta: expected 500000.0, or one for each kind of layer"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: expected one object with a rope_type"),
        ({"rope_scaling": {"full_attention": YARN}}, "rope_scaling: expected one object with a rope_type"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "expected one of default, linear, llama3, yarn, "),
        ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate: expected true, got False"),
        ({"rope_parameters": YARN}, "rope_parameters: expected an object for each of full_attention and sliding_atten"),
        ({"rope_parameters": {"sliding_attention": YARN}}, "rope_parameters: expected one of default, got 'yarn'"),
        ({"rope_parameters": {"sliding_attention": 7}}, "rope_parameters: expected an object for each of"),
        ({"sliding_window": None}, "layer_types: expected full_attention alone"),
    ],
)
def test_keys_of_rope_that_transformers_would_ignore_are_refused_in_olmo3(keys, message):
    with pytest.raises(ModelFileError, match=message):
        olmo3(**keys)
