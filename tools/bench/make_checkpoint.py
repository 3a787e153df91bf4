"""Write a checkpoint of random weights in the shape of a real model, in Hugging Face layout.

    python tools/bench/make_checkpoint.py --preset phi-3-mini FOLDER              # 7.6 GB, like the published one
    python tools/bench/make_checkpoint.py --preset phi-3-mini --layers 4 FOLDER   # 1.3 GB, for benchmarks
    python tools/bench/make_checkpoint.py --preset phi-3-mini-128k FOLDER         # LongRoPE; also: phi-4-mini

The model generates noise, with the speed and memory of the real one. Its tokenizer has one token per byte. Shards are
written one at a time, so that the peak memory is less than two shards.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

PRESETS = {
    "phi-3-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}


def longrope(long: str, short: str) -> dict:
    """The config key with these factors."""
    factors = {"long_factor": long, "short_factor": short}
    return {"type": "longrope"} | {name: [float(factor) for factor in text.split()] for name, text in factors.items()}


PRESETS["phi-3-mini-128k"] = PRESETS["phi-3-mini"] | {
    "max_position_embeddings": 131072,
    "rope_scaling": longrope(
        """1.03 1.05 1.05 1.08 1.23 1.23 1.3 1.45 1.6 1.65 1.9 2.86 3.69 5.42 5.49 5.49 9.09 11.58 15.66 15.77 15.79
        18.36 21.99 23.08 30.01 32.35 32.59 35.56 39.95 53.84 56.2 57.95 59.29 59.77 59.92 61.19 61.96 62.5 63.37 63.48
        63.48 63.66 63.85 64.08 64.76 64.8 64.81001 64.81001""",
        """1.05 1.05 1.05 1.1 1.1 1.15 1.2 1.25 1.3 1.35 1.5 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2.05 2.05 2.05
        2.1 2.1 2.1 2.15 2.15 2.35 2.55 2.6 2.6 2.75 2.85 2.85 2.95""",
    ),
    "sliding_window": 262144,
}
PRESETS["phi-4-mini"] = PRESETS["phi-3-mini-128k"] | {
    "vocab_size": 200064,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "rope_scaling": longrope(
        """1 1.118320672 1.250641126 1.398617824 1.564103225 1.74916897 1.956131817 2.187582649 2.446418898 2.735880826
        3.059592084 3.421605075 3.826451687 4.279200023 4.785517845 5.351743533 5.984965424 6.693110555 7.485043894
        8.370679318 9.36110372 10.4687158 11.70738129 13.09260651 14.64173252 16.37415215 18.31155283 20.47818807
        22.90118105 25.61086418 28.64115884 32.03 32.1 32.13 32.23 32.6 32.61 32.64 32.66 32.7 32.71 32.93 32.97 33.28
        33.49 33.5 44.16 47.77""",
        "1 " * 48,
    ),
    "tie_word_embeddings": True,
    "bos_token_id": 199999,
    "eos_token_id": 199999,
    "pad_token_id": 199999,
}
# The same architecture, small enough for a trial run of a second.
PRESETS["tiny"] = PRESETS["phi-3-mini"] | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
SHARD_BYTES = 2_000_000_000


def shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of a Phi-3 checkpoint's tensors, in the order of the pass."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_width = width // config["num_attention_heads"]
    qkv_rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head_width
    yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(config["num_hidden_layers"]):
        yield f"model.layers.{layer}.input_layernorm.weight", (width,)
        yield f"model.layers.{layer}.self_attn.qkv_proj.weight", (qkv_rows, width)
        yield f"model.layers.{layer}.self_attn.o_proj.weight", (width, width)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (width,)
        yield f"model.layers.{layer}.mlp.gate_up_proj.weight", (2 * inner, width)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, width)


def shards(config: dict, dtype: np.dtype) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors in groups of at most SHARD_BYTES."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in shapes(config):
        tensor_bytes = int(np.prod(shape)) * dtype.itemsize
        if size + tensor_bytes > SHARD_BYTES and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append((name, shape))
        size += tensor_bytes
    return groups


def random_tensor(shape: tuple[int, ...], dtype: np.dtype, random: np.random.Generator) -> np.ndarray:
    """Weights as initialized for training: norms are ones, matrices have standard deviation 0.02."""
    if len(shape) == 1:
        return np.ones(shape, dtype)
    tensor = np.empty(shape, dtype)
    for rows in range(0, shape[0], 1024):  # in parts, to limit the float32 temporaries
        part = tensor[rows : rows + 1024]
        part[...] = random.standard_normal(part.shape, dtype=np.float32) * np.float32(0.02)
    return tensor


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="phi-3-mini")
    parser.add_argument("--layers", type=int, help="number of layers, if not the preset's")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    config = PRESETS[args.preset] | {"torch_dtype": args.dtype}
    if args.layers is not None:
        config["num_hidden_layers"] = args.layers
    dtype = np.dtype(DTYPES[args.dtype])
    random = np.random.default_rng(args.seed)
    groups = shards(config, dtype)
    args.folder.mkdir(parents=True, exist_ok=True)

    weight_map = {}
    with tqdm(total=sum(len(group) for group in groups), unit=" tensors") as progress:
        for number, group in enumerate(groups, start=1):
            file = f"model-{number:05}-of-{len(groups):05}.safetensors"
            tensors = {}
            for name, shape in group:
                tensors[name] = random_tensor(shape, dtype, random)
                weight_map[name] = file
                progress.update()
            save_file(tensors, args.folder / file, metadata={"format": "pt"})
    total = sum(int(np.prod(shape)) for _, shape in shapes(config)) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (args.folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    ends = [32000, 32001, 32007] if args.preset.startswith("phi-3-mini") else [config["eos_token_id"]]
    (args.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n")
    write_tokenizer(args.folder)
    print(f"{args.folder}: {total:,} bytes in {len(groups)} shards")


if __name__ == "__main__":
    main()
