"""llama.cpp as a second judge: checkpoints of transformers as .gguf files, and llama.cpp's log-probabilities.

    write_checkpoint(folder, "qwen3", head_dim=32)   a tiny random checkpoint, saved by transformers
    write_gguf(path, folder, "Q8_0")                 the same model as llama.cpp's converter writes it
    assert_agrees_with_llama_cpp(npllm.load(path), path, ids)

A family adds an entry to ARCHITECTURES: what its files have besides `common_keys`, and how its tensors change.
Needs xllamacpp and gguf (pip install -e '.[peers]'), torch and transformers (pip install -e '.[oracle]').
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from bridge import tool
from checkpoints import END, MERGES, SPECIAL, TOKENS, interleave
from safetensors.numpy import load_file
from stored_weights import SCALES, blocks_of

import npllm
from npllm.families import gpt2
from npllm.feedforward import gelu

FLOAT32 = 5e-3  # the largest difference of two log-probabilities, for tensors in float32
SMALL = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": TOKENS.index("<|endoftext|>"),
}
# llama.cpp gives no log-probabilities for a chosen token that is only a part of a character; token 0 is "!". Those that
# it gives are from before the bias.
ALWAYS_CHOOSE_0 = {"n_predict": 1, "temperature": 0, "logit_bias": [[0, 1000.0]]}
Keys = dict[str, Any]  # of config.json, with transformers' defaults
Tensors = dict[str, np.ndarray]


class Architecture(NamedTuple):
    """How llama.cpp's converter writes one family."""

    name: str  # general.architecture
    keys: Callable[[Keys], dict[str, Any]] = lambda keys: {}  # besides `common_keys`; None removes one of those
    # From the checkpoint's tensors, by their names there, to the file's. Those that keep their names in transformers
    # get llama.cpp's later.
    tensors: Callable[[Tensors, Keys], Tensors] = lambda tensors, keys: tensors


def head_dim(keys: Keys) -> int:
    """The width of a head."""
    return keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]


def llama_tensors(tensors: Tensors, keys: Keys) -> Tensors:
    """Llama's q and k with neighbours as RoPE's pairs, and the divisors of Llama 3's scaling."""
    heads = {"q_proj": keys["num_attention_heads"], "k_proj": keys["num_key_value_heads"]}
    turned = {name: count for name in tensors if (count := heads.get(name.split(".")[-2]))}
    return tensors | {name: interleave(tensors[name], count) for name, count in turned.items()} | llama3_factors(keys)


def llama3_factors(keys: Keys) -> Tensors:
    """The divisors of Llama 3's scaling, as transformers computes them."""
    if keys["rope_parameters"]["rope_type"] != "llama3":
        return {}
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**keys), "cpu")
    plain = keys["rope_parameters"]["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
    return {"rope_freqs.weight": plain / scaled.numpy()}


def norms_plus_1(tensors: Tensors, keys: Keys) -> Tensors:
    """Gemma's norms: transformers multiplies by 1 + w, and the files have 1 + w."""
    return {
        name: tensor.astype(np.float32) + 1 if name.endswith("norm.weight") else tensor
        for name, tensor in tensors.items()
    }


def stacked_experts(tensors: Tensors, keys: Keys) -> Tensors:
    """The experts' matrices as one tensor [E, F, D] for each layer: "experts.3.up_proj" is in "experts.up_proj"."""
    apart = {name: match for name in tensors if (match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name))}
    stacks: dict[str, list[np.ndarray]] = {}
    for name in sorted(apart, key=lambda name: int(apart[name][2])):
        stacks.setdefault(f"{apart[name][1]}.{apart[name][3]}", []).append(tensors[name])
    rest = {name: tensor for name, tensor in tensors.items() if name not in apart}
    return rest | {name: np.stack(stack) for name, stack in stacks.items()}


def phi3_keys(keys: Keys) -> dict[str, Any]:
    """Phi-3's keys: the window (0 for none), how much of a head turns, LongRoPE's factor on cos and sin."""
    rope, original = keys["rope_parameters"], keys["original_max_position_embeddings"]
    values = {
        "rope.dimension_count": int(head_dim(keys) * rope.get("partial_rotary_factor", 1.0)),
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": keys["sliding_window"] or 0,
    }
    if rope["rope_type"] == "longrope":
        longer = keys["max_position_embeddings"] / original
        values["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(longer) / math.log(original))
    return values


def expert_keys(keys: Keys) -> dict[str, Any]:
    """How many experts there are and run, and the width of one if a file has several."""
    return {
        "expert_count": keys.get("num_local_experts", keys.get("num_experts")),
        "expert_used_count": keys["num_experts_per_tok"],
        "expert_feed_forward_length": keys.get("moe_intermediate_size"),
    }


def mixtral_tensors(tensors: Tensors, keys: Keys) -> Tensors:
    """Llama's tensors, with the experts together."""
    return stacked_experts(llama_tensors(tensors, keys), keys)


def longrope_factors(tensors: Tensors, keys: Keys) -> Tensors:
    """The tensors, and LongRoPE's factors as two more."""
    rope = keys["rope_parameters"]
    factors = {f"rope_factors_{length}.weight": rope.get(f"{length}_factor") for length in ("short", "long")}
    return tensors | {name: np.asarray(values) for name, values in factors.items() if values}


def granite_keys(keys: Keys) -> dict[str, Any]:
    """Granite's multipliers."""
    return {
        "embedding_scale": float(keys["embedding_multiplier"]),
        "attention.scale": float(keys["attention_multiplier"]),
        "residual_scale": float(keys["residual_multiplier"]),
        "logit_scale": float(keys["logits_scaling"]),
    }


def olmo3_keys(keys: Keys) -> dict[str, Any]:
    """OLMo 3's keys: its windows."""
    return {
        "attention.sliding_window": keys["sliding_window"],
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in keys["layer_types"]],
    }


def gpt2_keys(keys: Keys) -> dict[str, Any]:
    """GPT-2's keys: LayerNorm's epsilon, and nothing about RoPE."""
    not_there = dict.fromkeys(("attention.key_length", "attention.value_length", "attention.head_count_kv"))
    not_there |= {"rope.dimension_count": None, "rope.freq_base": None}
    inner = keys.get("n_inner") or 4 * keys["n_embd"]
    return not_there | {"feed_forward_length": inner, "attention.layer_norm_epsilon": keys["layer_norm_epsilon"]}


def gpt2_tensors(tensors: Tensors, keys: Keys) -> Tensors:
    """GPT-2's matrices as [out, in]; transformers has them as [in, out]."""
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: tensor.T if name.endswith(turned) else tensor for name, tensor in tensors.items()}


def phimoe_keys(keys: Keys) -> dict[str, Any]:
    """Phi-3.5-MoE's keys: those of Phi-3, with one factor on cos and sin computed from the contexts; its experts."""
    experts = {"expert_count": keys["num_local_experts"], "expert_used_count": keys["num_experts_per_tok"]}
    original = {"original_max_position_embeddings": keys["max_position_embeddings"]}
    return phi3_keys(original | keys) | experts


def phimoe_tensors(tensors: Tensors, keys: Keys) -> Tensors:
    """LongRoPE's factors, and the experts' matrices in one tensor for each layer."""
    return stacked_experts(longrope_factors(tensors, keys), keys)


def gemma2_keys(keys: Keys) -> dict[str, Any]:
    """Gemma 2's window and caps. The file does not have the scale of the scores."""
    return {
        "attention.sliding_window": keys["sliding_window"],
        "attn_logit_softcapping": keys["attn_logit_softcapping"],
        "final_logit_softcapping": keys["final_logit_softcapping"],
    }


def gemma3_keys(keys: Keys) -> dict[str, Any]:
    """Gemma 3's window, cap of the logits, and RoPE of the layers without a window and with one."""
    full, sliding = (keys["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding"))
    period = 1 + keys["layer_types"].index("full_attention")
    return common_keys(keys | {"rope_parameters": full}) | {
        "attention.sliding_window": keys["sliding_window"],
        "attention.sliding_window_pattern": None if period == 6 else period,  # 6 is the default
        "final_logit_softcapping": keys["final_logit_softcapping"],
        "rope.freq_base_swa": sliding["rope_theta"],
    }


def gpt_oss_keys(keys: Keys) -> dict[str, Any]:
    """gpt-oss's keys: the window of every second layer, and the experts."""
    return {
        "attention.sliding_window": keys["sliding_window"],
        "expert_count": keys["num_local_experts"],
        "expert_used_count": keys["num_experts_per_tok"],
        "expert_feed_forward_length": keys["intermediate_size"],
    }


def gpt_oss_tensors(tensors: Tensors, keys: Keys) -> Tensors:
    """The experts' matrices as [E, F, D], with gate and up apart instead of alternating; sinks and biases as others."""
    changed = {}
    for name, tensor in tensors.items():
        stem, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
        array = tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor
        if stem.endswith("experts.gate_up_proj"):
            for first, part in enumerate(("gate_proj", "up_proj")):
                changed[f"{stem.replace('gate_up_proj', part)}.{kind}"] = array[:, first::2]
        elif stem.endswith(("experts.down_proj", "sinks")):
            changed[f"{stem}.{kind}"] = array
        else:
            changed[name] = tensor
    return changed


ARCHITECTURES = {  # by config.json's model_type
    "llama": Architecture("llama", tensors=llama_tensors),
    "gpt_oss": Architecture("gpt-oss", gpt_oss_keys, gpt_oss_tensors),
    "phi3": Architecture("phi3", phi3_keys, longrope_factors),
    "mixtral": Architecture("llama", expert_keys, mixtral_tensors),
    "olmoe": Architecture("olmoe", expert_keys, stacked_experts),
    "qwen3_moe": Architecture("qwen3moe", expert_keys, stacked_experts),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phimoe": Architecture("phimoe", phimoe_keys, phimoe_tensors),
    "gemma": Architecture("gemma", tensors=norms_plus_1),
    "gemma2": Architecture("gemma2", gemma2_keys, norms_plus_1),
    "gemma3_text": Architecture("gemma3", gemma3_keys, norms_plus_1),
    "granite": Architecture("granite", granite_keys, llama_tensors),
    "olmo2": Architecture("olmo2"),
    "olmo3": Architecture("olmo2", olmo3_keys),
    "smollm3": Architecture("smollm3", tensors=llama_tensors),
    "gpt2": Architecture("gpt2", gpt2_keys, gpt2_tensors),
}


def common_keys(keys: Keys) -> dict[str, Any]:
    """The metadata that most architectures have."""
    rope = keys.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)  # OLMo 3: the layers with a window have no scaling
    values = {
        "block_count": keys["num_hidden_layers"],
        "context_length": keys["max_position_embeddings"],
        "embedding_length": keys["hidden_size"],
        "feed_forward_length": keys.get("intermediate_size"),
        "attention.head_count": keys["num_attention_heads"],
        "attention.head_count_kv": keys.get("num_key_value_heads"),
        "attention.key_length": head_dim(keys),
        "attention.value_length": head_dim(keys),
        "attention.layer_norm_rms_epsilon": keys.get("rms_norm_eps"),
        "rope.dimension_count": head_dim(keys),
        "rope.freq_base": rope.get("rope_theta"),
        "vocab_size": keys["vocab_size"],
    }
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn", "longrope"):
        values["rope.scaling.type"] = kind
    if kind in ("linear", "yarn"):
        values["rope.scaling.factor"] = rope["factor"]
    if kind == "yarn":
        values |= {
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_attn_factor": rope.get("attention_factor"),  # llama.cpp ignores this and the next two
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast"),
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow"),
        }
    return values


def tokenizer_keys(vocab_size: int) -> dict[str, Any]:
    """A tokenizer: one token per byte, some merges, four special tokens; unused ones up to the model's vocabulary.

    None for a model with a smaller vocabulary.
    """
    if vocab_size < len(TOKENS):
        return {}
    unused = [f"<unused{number}>" for number in range(vocab_size - len(TOKENS))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS + unused,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in TOKENS] + [5] * len(unused),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.add_bos_token": False,
    }


def write_checkpoint(folder: Path, model_type: str, seed: int = 0, **config: Any) -> None:
    """A checkpoint in float32: SMALL with these keys, and weights as random as those of the golden values."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[oracle]'"
    )
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **SMALL | config)
    )
    tool("make_golden").randomize(model, seed)
    model.float().save_pretrained(folder)


def write_gguf(
    path: Path, folder: Path, kind: str = "F32", metadata: Mapping[str, Any] = {}, widened: bool = False
) -> None:
    """The checkpoint of a folder as a .gguf file: matrices in the GGUF type `kind`, vectors in F32.

    metadata : whole keys to add or replace; None removes one
    widened : write the numbers that `kind` can hold in F32
    """
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[peers]'")
    keys = json.loads((folder / "config.json").read_text())
    keys |= {common: keys[own] for common, own in gpt2.KEYS.items() if own in keys}
    architecture = ARCHITECTURES[keys["model_type"]]
    own = common_keys(keys) | architecture.keys(keys)
    values = {f"{architecture.name}.{key}": value for key, value in own.items()}
    writer = gguf.GGUFWriter(path, architecture.name)
    for key, value in (values | tokenizer_keys(keys["vocab_size"]) | dict(metadata)).items():
        add_key(writer, key, value)
    [number] = [number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name]
    names = gguf.get_tensor_name_map(number, keys["num_hidden_layers"])
    checkpoint = {
        name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()
    }
    for name, tensor in architecture.tensors(checkpoint, keys).items():
        theirs, array = names.get_name(name, (".weight", ".bias")) or name, tensor.astype(np.float32)
        if kind == "F32" or tensor.ndim == 1 or theirs.endswith(".bias"):
            writer.add_tensor(theirs, array)
        else:
            number, packed = gguf.GGMLQuantizationType[kind], quantized(array, kind)
            if widened:
                writer.add_tensor(theirs, gguf.quants.dequantize(packed, number))
            else:
                writer.add_tensor(theirs, packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gelu_of_llama_cpp(x: np.ndarray) -> np.ndarray:
    """GELU as llama.cpp computes it on a CPU: it looks it up in a table of float16, for x from -10 to 10."""
    with np.errstate(over="ignore"):
        rounded = gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
    return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, rounded))


def quantized(array: np.ndarray, kind: str) -> np.ndarray:
    """A matrix as the bytes of a GGUF type; of a type that the gguf package cannot write, random blocks of its size."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quants.quantize(array, number)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[number]
    raw = blocks_of(kind, seed=array.size, rows=len(array), blocks=array.shape[1] // elements)
    factor, blocks = np.float16(array.std() / gguf.dequantize(raw, number).std()), raw.reshape(-1, size)
    for place in SCALES[kind]:
        scale = blocks[:, place : place + 2].copy().view(np.float16)
        blocks[:, place : place + 2] = (factor * scale).view(np.uint8)
    return raw


def rounds_activations(lm: npllm.LM, kind: str) -> npllm.LM:
    """The same model with matrices that round what they multiply, as llama.cpp does for matrices of this GGUF type."""

    def rounding(weight: Any) -> Any:
        return Rounding(weight, kind) if weight is not None and len(weight.shape) == 2 else weight

    layers = tuple(type(block)(*map(rounding, block)) for block in lm.weights.layers)
    return lm._replace(weights=lm.weights._replace(layers=layers, lm_head=rounding(lm.weights.lm_head)))


class Rounding:
    """A matrix that rounds what it multiplies: to the 16 bits of its own type, or to 8-bit codes with a scale."""

    def __init__(self, weight: Any, kind: str) -> None:
        self.weight, self.kind, self.shape, self.dtype, self.nbytes = weight, kind, weight.shape, weight.dtype, 0

    def matmul(self, x: np.ndarray) -> np.ndarray:
        """The product with the rounded x."""
        if self.kind in ("F16", "BF16"):
            x = x.astype({"F16": np.float16, "BF16": ml_dtypes.bfloat16}[self.kind]).astype(np.float32)
        elif self.kind.endswith("_K") or self.kind == "IQ4_XS":
            x = to_q8_k(x)
        else:
            x = to_q8_0(x)
        return self.weight.matmul(x)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Some rows of the matrix."""
        return self.weight.rows(ids)


def to_q8_0(x: np.ndarray) -> np.ndarray:
    """x rounded to codes from -127 to 127, with a float16 scale for each 32."""
    groups = x.reshape(len(x), -1, 32)
    largest = abs(groups).max(axis=-1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / np.maximum(largest, 1e-30)))
    return (codes * (largest / 127).astype(np.float16).astype(np.float32)).reshape(x.shape)


def to_q8_k(x: np.ndarray) -> np.ndarray:
    """x rounded to codes, with a float32 scale for each 256. The element of the largest magnitude becomes -127."""
    groups = x.reshape(len(x), -1, 256)
    largest = np.take_along_axis(groups, abs(groups).argmax(axis=-1)[..., None], axis=-1)
    inverse = np.float32(-127) / largest
    return (np.minimum(np.rint(inverse * groups), 127) / inverse).reshape(x.shape)


def add_key(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type of its value; None adds nothing."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is not None:
        add.get(type(value), writer.add_array)(key, value)


def log_probabilities(path: Path, ids: list[int], vocab_size: int, context: int = 256) -> np.ndarray:
    """llama.cpp's log-probabilities of the token after each id, [T, V], computed in float32 with a float32 cache.

    Up to the middle, all ids before are read at once, as a prompt is; from there one by one, as in a generation.

    context : a multiple of 256. With a longer one than the original context, llama.cpp takes LongRoPE's long factors.
    """
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install -e '.[peers]'")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    rows = np.full((len(ids), vocab_size), np.nan)
    for length in range(1, len(ids) + 1):
        request = {"prompt": ids[:length], "n_probs": vocab_size, "cache_prompt": length > len(ids) // 2}
        [made] = server.handle_completions(request | ALWAYS_CHOOSE_0)["choices"][0]["logprobs"]["content"]
        for token in made["top_logprobs"]:
            rows[length - 1, token["id"]] = token["logprob"]
    return rows


def assert_agrees_with_llama_cpp(
    lm: npllm.LM, path: Path, ids: list[int], atol: float = FLOAT32, context: int = 256
) -> float:
    """Assert that the log-probabilities of all tokens after each id are llama.cpp's; return the largest difference.

    lm : the model, loaded from this .gguf file
    """
    theirs = log_probabilities(path, ids, lm.config.vocab_size, context)
    logits = np.asarray(npllm.forward(np.asarray(ids), lm)[0], dtype=np.float64)
    ours = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    difference = abs(ours - theirs)  # NaN, where llama.cpp gave none, is the largest
    at = np.unravel_index(np.argmax(difference), difference.shape)
    assert difference[at] <= atol, (
        f"after {at[0] + 1} ids: token {at[1]}: expected log-probability {theirs[at]:.6g}, got {ours[at]:.6g}:"
        f" off by {difference[at]:.3g}, allowed {atol:.3g}; {np.sum(~(difference <= atol))} of {ours.size} are off"
    )
    return float(difference[at])
