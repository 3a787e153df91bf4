"""The keys of config.json, changed one at a time: their names, alternative values, and transformers' outputs.

A sweep's checkpoint is tiny. transformers builds it from its own config class, with weights large enough for every
norm, bias and angle to matter. Nothing here depends on what npllm does with a key.
"""

import json
from pathlib import Path

import numpy as np

RECORD = Path(__file__).with_name("config_keys.json")
CAUSAL, SEQUENCE, TOKEN = "CausalLM", "SequenceClassification", "TokenClassification"
LANGUAGE = {"bert": "MaskedLM"}  # the head of a language model, if not CAUSAL


class Absent:
    """The value that stands for a key missing from the file."""

    def __repr__(self):
        return "absent"


ABSENT = Absent()
VOCABULARY, WINDOW, LAYERS = 64, 6, 4
# Longer than the window; the last three tokens are padding.
TEXT = [*(int(id) for id in np.random.default_rng(3).integers(2, VOCABULARY, 24)), 0, 0, 0]

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # large enough to show
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
BASES = {
    "phi3": {"sliding_window": WINDOW},
    "llama": {},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    "ministral": {
        "sliding_window": WINDOW,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW, "head_dim": 8},
    "phimoe": {
        "num_local_experts": 4,
        "router_jitter_noise": 0.3,
        "sliding_window": WINDOW,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "head_dim": 8,
        "swiglu_limit": 1.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    },
    "qwen2": WINDOWS,
    "qwen3": WINDOWS | {"head_dim": 8},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": WINDOW, "head_dim": 8, "moe_intermediate_size": 40}
    | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW, "rope_theta": 500000.0},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granite": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "logits_scaling": 3.0,
    },
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW},
    "gemma": {"hidden_size": 48, "head_dim": 8, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 500.0},
    "gemma2": {
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 200,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 200,
        "final_logit_softcapping": 4.0,
        "rope_local_base_freq": 20.0,
    },
}
BASES = {family: COMMON | keys for family, keys in BASES.items()}
for family in ("gemma2", "gemma3_text"):
    del BASES[family]["hidden_act"]  # theirs is hidden_activation
TEXT_PART = BASES["gemma3_text"] | {"final_logit_softcapping": None}
VISION_PART = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16}
VISION_PART |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
BASES["gemma3"] = {"text_config": TEXT_PART, "vision_config": VISION_PART, "mm_tokens_per_image": 1}
BASES["gemma3"] |= {"eos_token_id": 1, "tie_word_embeddings": False}
BASES["gpt2"] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

BASES["bert"] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 0,
}

FULL, SLIDING = ["full_attention"] * LAYERS, ["sliding_attention"] * LAYERS
MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
ROPES = [
    None,
    {},
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "default", "attention_factor": 2.0, "factor": 3.0},
    {"rope_type": "linear", "factor": 2.0},
    {"type": "linear", "factor": 2.0},
    {"type": "linear", "rope_type": "default", "factor": 2.0},
    {"rope_type": "linear", "factor": 1.0, "partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    LLAMA3,
    LLAMA3 | {"original_max_position_embeddings": 16},
    LONGROPE | {"original_max_position_embeddings": 16},
    {"type": "su"} | {key: LONGROPE[key] for key in ("short_factor", "long_factor")},
    {"rope_type": "unknown", "factor": 2.0},
    {"full_attention": {"rope_type": "default", "rope_theta": 50.0}},
    {kind: {"rope_type": "default", "rope_theta": 50.0} for kind in ("full_attention", "sliding_attention")},
    {"full_attention": {"rope_type": "linear", "factor": 3.0}, "sliding_attention": {"rope_theta": 9.0}},
    {"sliding_attention": {"rope_type": "linear", "factor": 3.0}},
]
ACTIVATIONS = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "relu2", "unknown"]
WIDTHS = {  # keys that set the size of weights
    "vocab_size": [80],
    "hidden_size": [64],
    "intermediate_size": [40],
    "num_hidden_layers": [2],
    "num_attention_heads": [2],
    "num_key_value_heads": [1, 4, None],
    "head_dim": [16, None],
    "n_embd": [64],
    "n_layer": [2],
    "n_head": [2],
    "n_inner": [48, None],
    "n_positions": [40],
}
VALUES = WIDTHS | {
    "transformers_version": ["4.0.0"],
    "architectures": [None],
    "output_hidden_states": [True],
    "return_dict": [True],
    "dtype": ["float16", "bfloat16"],
    "chunk_size_feed_forward": [4],
    "is_encoder_decoder": [True],
    "gradient_checkpointing": [True],
    "id2label": [{"0": "a"}, {"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0}],
    "problem_type": ["regression", "multi_label_classification"],
    "hidden_act": ACTIVATIONS,
    "hidden_activation": [None, *ACTIVATIONS],
    "query_pre_attn_scalar": [64, 8],
    "attn_logit_softcapping": [2.0, None],
    "final_logit_softcapping": [2.0, None],
    "text_config": [
        TEXT_PART | change
        for change in (
            {"sliding_window": 4},
            {"final_logit_softcapping": 2.0},
            {"tie_word_embeddings": True},
            {"use_bidirectional_attention": True},
            {"model_type": "gemma3_text"},
        )
    ],
    "vision_config": [VISION_PART | {"intermediate_size": 24}],
    "mm_tokens_per_image": [4],
    "boi_token_index": [3],
    "eoi_token_index": [3],
    "image_token_index": [3],
    "use_bidirectional_attention": [True, False, None],
    "sliding_window_pattern": [1, 3, 4],
    "cache_implementation": ["hybrid"],
    "activation_function": ACTIVATIONS,
    "max_position_embeddings": [8, 40],
    "initializer_range": [0.5],
    "rms_norm_eps": [0.1],
    "layer_norm_epsilon": [0.1],
    "layer_norm_eps": [0.1],
    "type_vocab_size": [3],
    "position_embedding_type": ["absolute", "relative_key"],
    "hidden_dropout_prob": [0.5],
    "attention_probs_dropout_prob": [0.5],
    "use_cache": [False],
    "pad_token_id": [5, None],
    "bos_token_id": [5],
    "eos_token_id": [5, [4, 5], None],
    "pretraining_tp": [2],
    "tie_word_embeddings": [True, False],
    "rope_parameters": ROPES,
    "rope_scaling": [*ROPES[2:6], LLAMA3 | {"original_max_position_embeddings": 16}, ROPES[18]],
    "rope_theta": [50.0, 50],
    "rope_local_base_freq": [50.0, 50],
    "partial_rotary_factor": [0.5, None],
    "attention_bias": [True],
    "mlp_bias": [True],
    "attention_dropout": [0.5],
    "resid_pdrop": [0.5],
    "embd_pdrop": [0.5],
    "attn_pdrop": [0.5],
    "original_max_position_embeddings": [8],
    "use_sliding_window": [True, False],
    "sliding_window": [4, 0, -1, None],
    "max_window_layers": [0, 3],
    "layer_types": [FULL, SLIDING, MIXED, None, FULL[1:], ["chunked_attention"] * LAYERS],
    "no_rope_layers": [[1, 0, 0, 1], [1] * LAYERS, [0] * (LAYERS + 1), [1]],
    "no_rope_layer_interval": [2, 1],
    "num_local_experts": [1, 2, 6],
    "num_experts": [1, 2, 6],
    "num_experts_per_tok": [1, 3, 4],
    "norm_topk_prob": [True],
    "moe_intermediate_size": [24],
    "decoder_sparse_step": [2],
    "mlp_only_layers": [[1], []],
    "swiglu_alpha": [1.0],
    "swiglu_limit": [0.5, 100.0],
    "clip_qkv": [0.5, 100.0],
    "output_router_logits": [True],
    "router_aux_loss_coef": [0.5],
    "router_jitter_noise": [0.5],
    "input_jitter_noise": [0.5],
    "lm_head_bias": [False],
    "embedding_multiplier": [3.0, 1],
    "attention_multiplier": [0.5, 1],
    "residual_multiplier": [0.7, 1],
    "logits_scaling": [2.0, 1],
    "summary_type": ["mean"],
    "summary_use_proj": [False],
    "summary_activation": ["tanh"],
    "summary_proj_to_labels": [False],
    "summary_first_dropout": [0.5],
    "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "add_cross_attention": [True],
    # Keys that no class lists as a field, but that its base class or models read anyway.
    "is_causal": [False, None, True],
    "per_layer_config": [{"1": {"skip": ["attention"]}}, {"1": {"rms_norm_eps": 0.1}}, {}, None],
    "attention_chunk_size": [4],
    "num_labels": [3],
    "torch_dtype": ["float16"],
    "output_attentions": [True],
    "attn_implementation": ["eager"],
    "_attn_implementation": ["eager"],
    "name_or_path": ["other"],
    "tie_last_hidden_states": [False],
    "classifier_dropout": [0.5],
    "hidden_dropout": [0.5],
    "token_classification_bias": [False],
    "pruned_heads": [{"0": [1]}],
    "is_decoder": [False, True],
    "n_ctx": [8],
    "temperature": [0.5],
}
READ_ANYWAY = (  # fields of no class or only some; read by the base class or the model
    *("is_causal", "per_layer_config", "layer_types", "sliding_window", "use_sliding_window", "attention_chunk_size"),
    *("attention_bias", "mlp_bias", "head_dim", "num_labels", "torch_dtype", "attn_implementation", "pruned_heads"),
)
OF_ROPE = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
ALIASES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")  # GPT-2 reads them too
# Not fields of all of their config classes, but in the files.
OF_GEMMA = dict.fromkeys(("gemma", "gemma2"), ("hidden_act", "hidden_activation", "cache_implementation"))
OF_GEMMA["gemma3_text"] = (*OF_GEMMA["gemma"], "sliding_window_pattern", "rope_local_base_freq")
OF_GPT2 = ("n_ctx", *ALIASES)
OF_BERT = ("position_embedding_type", "gradient_checkpointing", "num_key_value_heads")
OF_CLASSIFIERS = (
    *("pad_token_id", "id2label", "label2id", "num_labels", "problem_type", "is_causal"),
    *("classifier_dropout", "hidden_dropout", "token_classification_bias"),
)
# Required in the base: transformers' defaults (a vocabulary of 32,000, ...) would only make the model large.
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NOT_LEFT_OUT = (*SIZES, "text_config", "vision_config", "n_embd", "n_layer", "n_head", "n_positions", "n_inner")


ARCHITECTURES = {
    "phi3": "Phi3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
}
CLASSIFIERS = dict.fromkeys(("phi3", "llama", "mistral", "mixtral", "qwen2", "qwen3_moe"), (SEQUENCE, TOKEN))
CLASSIFIERS |= dict.fromkeys(("gemma", "gemma2", "bert", "gpt_oss"), (SEQUENCE, TOKEN))
CLASSIFIERS |= dict.fromkeys(("phimoe", "olmo3", "gemma3_text"), (SEQUENCE,))
LABELS = {"0": "a", "1": "b", "2": "c"}


# What transformers itself cannot load or compute, so that nothing can be compared: (key, value, families).
WITH_ROPE = "phi3 llama mistral ministral qwen2 qwen3 olmo2 granite smollm3 gemma gemma2 phimoe mixtral qwen3_moe olmoe"
WITH_ROPE += " gpt_oss"
WINDOWED = "phi3 phimoe mistral mixtral ministral qwen2 qwen3 qwen3_moe smollm3 olmo3 gemma2 gemma3_text gpt_oss"
BY_LAYER = (
    "ministral qwen2 qwen3 smollm3 gemma2 gpt_oss"  # they accept nested RoPE in the config, but fail to compute it
)
ROPE_FAILS = [
    (ROPES[5], "phi3 phimoe"),
    (ROPES[6], "phi3 phimoe"),
    (ROPES[8], WITH_ROPE),
    (ROPES[9], "phi3 phimoe"),
    (ROPES[10], "phi3 phimoe"),
    (ROPES[11], "phi3 phimoe"),
    (LLAMA3, "phi3 phimoe gpt2"),
    (LLAMA3 | {"original_max_position_embeddings": 16}, "phi3 phimoe gpt2 gemma3"),
    (ROPES[14], "phimoe"),  # without short_mscale and long_mscale
    (ROPES[15], WITH_ROPE),
    (ROPES[16], WITH_ROPE),
    (ROPES[17], BY_LAYER),
    (ROPES[18], BY_LAYER),
    (ROPES[19], BY_LAYER),
    (ROPES[20], BY_LAYER),
]
FAILS = [
    ("num_local_experts", 1, "gpt_oss mixtral"),  # fewer than run for each token
    ("num_experts", 1, "olmoe"),
    (
        "hidden_act",
        "unknown",
        " ".join(one for one in BASES if one not in ("gpt2", "gpt_oss", "gemma2", "gemma3_text", "gemma3")),
    ),
    ("chunk_size_feed_forward", 4, "bert"),  # no divisor of the text's length
    ("add_cross_attention", True, "bert"),
    ("activation_function", "unknown", "gpt2"),
    ("pad_token_id", ABSENT, "phi3 smollm3"),  # their pad tokens lie outside this small vocabulary
    (
        "sliding_window",
        0,
        WINDOWED,
    ),
    (
        "sliding_window",
        -1,
        WINDOWED,
    ),
    ("sliding_window", None, "gpt_oss ministral olmo3 gemma2 gemma3_text"),
    ("head_dim", ABSENT, "ministral"),
    (
        "head_dim",
        None,
        " ".join(BASES.keys() - {"llama", "mistral", "mixtral", "gpt2", "bert", "gemma3"}),
    ),
    ("hidden_activation", "unknown", "gemma2 gemma3_text"),
    ("hidden_activation", None, "gemma2 gemma3_text"),
    ("partial_rotary_factor", None, "phi3"),
    ("layer_types", FULL[1:], " ".join(BASES.keys() - {"gemma3"})),
    ("layer_types", ["chunked_attention"] * LAYERS, " ".join(BASES.keys() - {"bert", "gemma3"})),
    ("layer_types", SLIDING, "llama olmo2 granite gpt2 gemma olmoe"),
    ("layer_types", MIXED, "llama olmo2 granite gpt2 gemma olmoe"),
    ("per_layer_config", {"1": {"rms_norm_eps": 0.1}}, " ".join(BASES)),
    ("per_layer_config", {"1": {"skip": ["attention"]}}, "gemma3"),
    ("per_layer_config", {}, "gemma3"),
    ("output_attentions", True, " ".join(BASES)),
    (
        "num_key_value_heads",
        ABSENT,
        "gpt_oss mistral ministral qwen2 qwen3 gemma phimoe mixtral",
    ),  # more than the number of heads
    ("num_key_value_heads", None, "gpt_oss mistral ministral gemma gemma2 gemma3_text phimoe mixtral qwen3_moe"),
    ("num_experts_per_tok", ABSENT, "qwen3_moe olmoe"),  # more than there are
    ("head_dim", 16, "olmoe"),
    ("num_hidden_layers", 2, "ministral"),  # its base config lists four layer_types
    ("no_rope_layers", [1], "smollm3"),
    ("max_position_embeddings", 8, "gpt2 bert"),
    *((key, value, whose) for key in ("rope_parameters", "rope_scaling") for value, whose in ROPE_FAILS),
]


def transformers_fails(family, key, value):
    """Whether transformers itself raises an error for this value."""
    return any(key == name and same(value, it) and family in whose.split() for name, it, whose in FAILS)


def fields():
    """The fields of transformers' config classes, in the record's format."""
    import dataclasses

    import transformers

    families = {
        family: [field.name for field in dataclasses.fields(transformers.CONFIG_MAPPING[family])] for family in BASES
    }
    return {"transformers": transformers.__version__, "families": families}


def recorded():
    """The record written by `python tests/sweep.py`: {"transformers": version, "families": {name: [key, ...]}}."""
    return json.loads(RECORD.read_text())


def keys_of(family):
    """The keys to sweep: the fields of the family's config class, and keys that are read without being fields."""
    fields = recorded()["families"][family]
    others = {"gpt2": OF_GPT2, "bert": OF_BERT}.get(family, OF_ROPE + OF_GEMMA.get(family, ()))
    return [*fields, *(key for key in (*READ_ANYWAY, *others) if key not in fields)]


def base(family, head=CAUSAL):
    """The config.json keys that a sweep starts from."""
    return BASES[family] | ({"id2label": LABELS} if head in (SEQUENCE, TOKEN) else {})


def language(family):
    """The head of a language model of this family."""
    return LANGUAGE.get(family, CAUSAL)


def same(a, b):
    """Whether two values are the same in JSON: True is not 1, and 1 is not 1.0."""
    return type(a) is type(b) and a == b


def values_of(family, key, head=CAUSAL):
    """The alternative values of a key: those in VALUES that differ from the base's, and ABSENT."""
    now = base(family, head).get(key, ABSENT)
    values = [] if now is ABSENT or key in NOT_LEFT_OUT else [ABSENT]
    return [*values, *(value for value in VALUES[key] if not same(value, now))]


def changed(keys, **changes):
    """The keys with these changes. `ABSENT` removes a key."""
    return {key: value for key, value in (keys | changes).items() if value is not ABSENT}


def randomize(model, seed):
    """Give every weight a value that matters: norms far from one, biases far from zero."""
    import torch

    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
        if parameter.ndim == 1:
            noise = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            noise = 1.5 * noise / parameter.shape[0 if ".c_" in name else -1] ** 0.5  # GPT-2's matrices are [in, out]
        parameter.data.copy_(noise)


def write_model(folder, family, keys, head=CAUSAL, seed=0, tensors=None):
    """Write a checkpoint saved by transformers to a new folder, with exactly these keys in config.json.

    tensors : a function from the saved tensors {name: array} to those the file should contain
    """
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    folder.mkdir(parents=True)
    keys = {"model_type": family} | keys
    (folder / "config.json").write_text(json.dumps(keys))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config, dtype=torch.float32)
    randomize(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    keys = {"architectures": [type(model).__name__.replace("Ministral", "Mistral")]} | keys
    (folder / "config.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not ABSENT}))
    if tensors is not None:
        file = folder / "model.safetensors"
        save_file(tensors(load_file(file)), file, metadata={"format": "pt"})


def expected_logits(folder, text=TEXT, head=CAUSAL):
    """transformers' output for a text: [T, V], [labels] or [T, labels]."""
    import torch
    import transformers

    loader = getattr(transformers, f"AutoModelFor{head}")
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([list(text)])).logits[0].numpy()


def npllm_logits(folder, text=TEXT, head=CAUSAL):
    """npllm's output for the same text."""
    import npllm
    from npllm.families import family_of
    from npllm.heads import token_classification_head

    lm = npllm.load(folder)
    if head not in (SEQUENCE, TOKEN):
        return npllm.forward(np.asarray(text), lm)[0]
    hidden = npllm.transform(np.asarray(text), lm)[0]
    if head == TOKEN:
        return token_classification_head(hidden, lm.weights)
    return family_of(lm.config).sequence_head(hidden, lm.weights, np.asarray(text), lm.config.pad_token_id)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(fields(), indent=1) + "\n")
