"""Tiny checkpoints with random weights, written on demand: folders and .gguf files.

    write_folder(path, model_type="phi3", dtype="bfloat16", shards=2, sliding_window=8)
    write_gguf(path, arch="llama", dtype="Q8_0")

Both include a small working tokenizer: one token per byte, some merges, four special tokens. The same seed and
configuration give the same weights in both formats.
"""

import functools
import json
import struct
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from npllm.arrays import is_packed

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ARCHITECTURES = {
    "phi3": "Phi3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def byte_letters():
    """GPT-2's byte-to-character map: printable bytes map to themselves, the others to code points from 256 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


MERGES = ["Ġ t", "h e", "Ġt he", "i n", "a n", "Ġ a", "e r", "Ġa n", "Ġan d", "1 2"]
PIECES = [*byte_letters().values(), *("".join(merge.split()) for merge in MERGES)]
TOKENS = [*dict.fromkeys(PIECES), *SPECIAL]
END = TOKENS.index("<|end|>")


def config_keys(model_type="phi3", **overrides):
    """A tiny config.json. An override of None removes the key."""
    keys = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": TOKENS.index("<|endoftext|>"),
    }
    if model_type in ("phi3", "mistral"):
        keys["sliding_window"] = None  # transformers would default to 4096
    return keys | overrides


def random_weights(keys, dtype="float32", seed=0):
    """Weights for a config.json, under transformers' names, rounded to dtype."""
    rng = np.random.default_rng(seed)
    width, inner, vocab = keys["hidden_size"], keys["intermediate_size"], keys["vocab_size"]
    head_dim = keys.get("head_dim") or width // keys["num_attention_heads"]
    q, kv = keys["num_attention_heads"] * head_dim, keys["num_key_value_heads"] * head_dim
    fused = keys["model_type"] == "phi3"
    qkv_bias = keys["model_type"] == "qwen2" or keys.get("attention_bias", False)
    o_bias, mlp_bias = keys.get("attention_bias", False), keys.get("mlp_bias", False)
    tensors = {}

    def matrix(name, rows, columns, bias=False):
        scale = columns**-0.5
        tensors[f"{name}.weight"] = (scale * rng.standard_normal((rows, columns))).astype(DTYPES[dtype])
        if bias:
            tensors[f"{name}.bias"] = (0.1 * rng.standard_normal(rows)).astype(DTYPES[dtype])

    def norm(name):
        tensors[f"{name}.weight"] = (1 + 0.1 * rng.standard_normal(width)).astype(DTYPES[dtype])

    matrix("model.embed_tokens", vocab, width)
    for layer in range(keys["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        for name, rows in {"q": q, "k": kv, "v": kv}.items() if not fused else {"qkv": q + 2 * kv}.items():
            matrix(f"{prefix}.self_attn.{name}_proj", rows, width, qkv_bias)
        matrix(f"{prefix}.self_attn.o_proj", width, q, o_bias)
        norm(f"{prefix}.post_attention_layernorm")
        for name, rows in {"gate": inner, "up": inner}.items() if not fused else {"gate_up": 2 * inner}.items():
            matrix(f"{prefix}.mlp.{name}_proj", rows, width, mlp_bias)
        matrix(f"{prefix}.mlp.down_proj", width, inner, mlp_bias)
    norm("model.norm")
    if "Classification" in keys["architectures"][0]:
        matrix("score", len(keys["id2label"]), width, bias="Token" in keys["architectures"][0])
    elif not keys.get("tie_word_embeddings"):
        matrix("lm_head", vocab, width)
    return tensors


def gpt2_config_keys(**overrides):
    """A tiny GPT-2 config.json, with the keys of the published ones. An override of None removes the key."""
    keys = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": 288,
        "n_embd": 48,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
        "n_positions": 64,
        "n_ctx": 64,
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
        "summary_type": "cls_index",
        "bos_token_id": TOKENS.index("<|endoftext|>"),
        "eos_token_id": TOKENS.index("<|endoftext|>"),
    }
    return {key: value for key, value in (keys | overrides).items() if value is not None}


def random_gpt2_weights(keys, dtype="float32", seed=0):
    """Weights for a GPT-2 config.json, under the names in the published files. Matrices are [in, out]."""
    rng = np.random.default_rng(seed)
    width, inner = keys["n_embd"], keys.get("n_inner", 4 * keys["n_embd"])
    tensors = {
        "wte.weight": rng.standard_normal((keys["vocab_size"], width)),
        "wpe.weight": rng.standard_normal((keys["n_positions"], width)),
    }
    norms = ["ln_f", *(f"h.{layer}.{name}" for layer in range(keys["n_layer"]) for name in ("ln_1", "ln_2"))]
    for name in norms:
        tensors[f"{name}.weight"] = 1 + 0.3 * rng.standard_normal(width)
        tensors[f"{name}.bias"] = 0.3 * rng.standard_normal(width)
    sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    sizes |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}
    for layer in range(keys["n_layer"]):
        for name, shape in sizes.items():
            tensors[f"h.{layer}.{name}.weight"] = rng.standard_normal(shape) * shape[0] ** -0.5
            tensors[f"h.{layer}.{name}.bias"] = 0.3 * rng.standard_normal(shape[1])
    if keys.get("tie_word_embeddings") is False:
        tensors["lm_head.weight"] = rng.standard_normal((keys["vocab_size"], width))
    return {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors.items()}


def gpt2_buffers(keys):
    """The non-weight tensors in published GPT-2 files: each layer's causal mask."""
    mask = np.tri(keys["n_positions"], dtype=np.uint8)[None, None]
    some = {f"h.{layer}.attn.bias": mask for layer in range(keys["n_layer"])}
    return some | {f"h.{layer}.attn.masked_bias": np.array(-1e4, np.float32) for layer in range(keys["n_layer"])}


def write_tokenizer(path):
    """Write tokenizer.json and tokenizer_config.json, including the chat template."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": TOKENS.index(token), "content": token, **flags} for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: id for id, token in enumerate(TOKENS)},
            "merges": MERGES,
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")


@functools.cache
def byte_tokenizer():
    """The tokenizer used by these checkpoints."""
    from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return tokenizer_from_folder(Path(folder))


def write_folder(
    path, model_type="phi3", dtype="float32", shards=1, tied=False, seed=0, tokenizer=True, **config_overrides
):
    """Write a checkpoint in Hugging Face layout to a new folder, and return its tensors."""
    keys = config_keys(model_type, tie_word_embeddings=tied, **config_overrides)
    return write_files(Path(path), keys, random_weights(keys, dtype, seed), dtype, shards, tokenizer)


def write_gpt2_folder(
    path, dtype="float32", shards=1, prefix="", buffers=False, seed=0, tokenizer=True, **config_overrides
):
    """The same for GPT-2. GPT2LMHeadModel saves with prefix="transformer."; the returned tensors are without it."""
    keys = gpt2_config_keys(**config_overrides)
    tensors = random_gpt2_weights(keys, dtype, seed)
    named = {name if name == "lm_head.weight" else prefix + name: tensor for name, tensor in tensors.items()}
    named |= {prefix + name: tensor for name, tensor in (gpt2_buffers(keys) if buffers else {}).items()}
    write_files(Path(path), keys, named, dtype, shards, tokenizer)
    return tensors


def write_files(path, keys, tensors, dtype, shards, tokenizer):
    """Write the files of a checkpoint to a new folder, and return the tensors."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(keys | {"dtype": dtype}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, TOKENS.index("<|endoftext|>")]}))
    if tokenizer:
        write_tokenizer(path)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return tensors
    weight_map = {name: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, path / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def dense(weight):
    """A weight as a plain float32 array, whatever its storage."""
    return weight.rows(np.arange(weight.shape[0])) if is_packed(weight) else weight


GGUF_DTYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14},
    **{"BF16": 30, "MXFP4": 39, "Q2_K": 10, "Q3_K": 11, "IQ4_NL": 20, "IQ4_XS": 23},
}


def gguf_name(name):
    """model.layers.1.mlp.up_proj.weight -> blk.1.ffn_up.weight"""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, leaf = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[leaf]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def interleave(weight, heads):
    """The row order that llama.cpp's converter gives q and k: the two halves of a head are interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def quantize(array, dtype):
    """An array [F, D] encoded as the bytes of a GGUF dtype, [F, bytes]. Coarse quantization is good enough."""
    if dtype in ("F32", "F16", "BF16"):
        narrow = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
        return array.astype(narrow).view(np.uint8).reshape(len(array), -1)
    blocks = array.astype(np.float32).reshape(-1, 32)
    if dtype == "Q4_1":
        minimum = blocks.min(axis=1, keepdims=True).astype(np.float16)
        scale = ((blocks.max(axis=1, keepdims=True) - minimum) / 15).astype(np.float16)
        numbers = np.clip(np.rint((blocks - minimum) / scale), 0, 15).astype(np.uint8)
        head = [scale.view(np.uint8), minimum.view(np.uint8)]
    else:
        most, zero = (127, 0) if dtype == "Q8_0" else (7, 8)
        scale = (abs(blocks).max(axis=1, keepdims=True) / most).astype(np.float16)
        numbers = (np.rint(blocks / scale) + zero).astype(np.int8).view(np.uint8)
        head = [scale.view(np.uint8)]
    if dtype != "Q8_0":
        numbers = numbers[:, :16] | numbers[:, 16:] << 4
    return np.concatenate([*head, numbers], axis=1).reshape(len(array), -1)


def gguf_value(value):
    """The type number and the bytes of a metadata value."""
    if isinstance(value, list):
        kind = gguf_value(value[0])[0] if value else 8
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(gguf_value(item)[1] for item in value)
    if isinstance(value, str):
        return 8, struct.pack("<Q", len(value.encode())) + value.encode()
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return 5 if value < 0 else 4, struct.pack("<i", value)


def write_gguf_file(path, metadata, tensors, version=3, alignment=32):
    """Write a .gguf file with this metadata and these tensors: {name: (dtype number, shape [out, in], bytes)}."""
    string = lambda text: struct.pack("<Q", len(text.encode())) + text.encode()  # noqa: E731
    header = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, raw = gguf_value(value)
        header += [string(key), struct.pack("<I", kind), raw]
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header += [string(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])]
        header += [struct.pack("<IQ", dtype, len(data))]
        data += raw + bytes(-len(raw) % alignment)
    header = b"".join(header)
    Path(path).write_bytes(header + bytes(-len(header) % alignment) + data)


def gguf_metadata(arch, keys):
    """A config.json as .gguf metadata, including the tokenizer."""
    values = {
        "block_count": keys["num_hidden_layers"],
        "context_length": keys["max_position_embeddings"],
        "embedding_length": keys["hidden_size"],
        "feed_forward_length": keys["intermediate_size"],
        "attention.head_count": keys["num_attention_heads"],
        "attention.head_count_kv": keys["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": keys["rms_norm_eps"],
        "rope.freq_base": keys["rope_theta"],
        "rope.dimension_count": keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"],
    }
    if keys.get("head_dim"):
        values |= {"attention.key_length": keys["head_dim"], "attention.value_length": keys["head_dim"]}
    if keys.get("sliding_window"):
        values["attention.sliding_window"] = keys["sliding_window"]
    return {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in values.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in TOKENS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write_gguf(path, arch="llama", dtype="F32", tied=False, seed=0, metadata=(), extra=(), **config_overrides):
    """Write a .gguf file with the weights of `write_folder` for the same arguments: matrices in dtype, vectors in F32.

    metadata : entries to add or replace; None removes one
    extra : tensors to add, {name: float32 array}
    """
    keys = config_keys(arch, tie_word_embeddings=tied, **config_overrides)
    heads = {"attn_q": keys["num_attention_heads"], "attn_k": keys["num_key_value_heads"]}
    tensors = {}
    for name, array in random_weights(keys, "float32", seed).items():
        theirs = gguf_name(name)
        leaf = theirs.split(".")[-2]
        if arch == "llama" and leaf in heads:
            array = interleave(array, heads[leaf])
        kind = dtype if array.ndim == 2 else "F32"
        raw = quantize(array, kind) if array.ndim == 2 else array
        tensors[theirs] = (GGUF_DTYPES[kind], array.shape, raw.tobytes())
    for name, array in dict(extra).items():
        tensors[name] = (GGUF_DTYPES["F32"], array.shape, array.astype(np.float32).tobytes())
    entries = gguf_metadata(arch, keys) | dict(metadata)
    write_gguf_file(path, {key: value for key, value in entries.items() if value is not None}, tensors)
