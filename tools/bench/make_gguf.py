"""Convert a checkpoint of tools/bench/make_checkpoint.py to GGUF, for llama.cpp.

    python tools/bench/make_gguf.py FOLDER FILE.gguf --type F32|BF16|Q8_0|Q4_0

Matrices are converted to the type, norms to F32. The weights are the folder's; the vocabulary is made up. Needs the
`gguf` package, which quantizes. One weight is in memory at a time.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes  # noqa: F401 - makes safetensors know bfloat16
import numpy as np
from safetensors import safe_open
from tqdm import tqdm

TYPES = ("F32", "BF16", "Q8_0", "Q4_0")
ROWS = 4096  # quantized at once
NAMES = {  # Phi-3 name -> GGUF name, without .weight
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a weight.

    >>> gguf_name("model.layers.7.self_attn.o_proj.weight"), gguf_name("lm_head.weight")
    ('blk.7.attn_output.weight', 'output.weight')
    """
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The weights one by one, in the file's own dtype."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        with safe_open(folder / file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                yield name, opened.get_tensor(name)


def converted(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The matrix in a GGUF type; converted a few rows at a time, to limit the float32 temporaries."""
    pieces = (weight[row : row + ROWS].astype(np.float32) for row in range(0, len(weight), ROWS))
    return np.concatenate([gguf.quants.quantize(piece, kind) for piece in pieces])


def vocabulary(size: int) -> tuple[list[bytes], list[int]]:
    """Tokens that mean nothing but bytes, and their types."""
    kinds = gguf.TokenType
    made = [(b"<unk>", kinds.UNKNOWN), (b"<s>", kinds.CONTROL), (b"</s>", kinds.CONTROL)]
    made += [(b"<0x%02X>" % byte, kinds.BYTE) for byte in range(256)]
    made += [(b"t%d" % number, kinds.NORMAL) for number in range(len(made), size)]
    names, types = zip(*made, strict=True)
    return list(names), list(types)


def write_gguf(folder: Path, file: Path, type_name: str) -> None:
    """The whole file; it has its name only when it is complete."""
    config = json.loads((folder / "config.json").read_text())
    kind = gguf.GGMLQuantizationType[type_name]
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "phi3")
    writer.add_name("random weights")
    writer.add_file_type(gguf.LlamaFileType[f"ALL_{type_name}" if type_name == "F32" else f"MOSTLY_{type_name}"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config["sliding_window"]:
        writer.add_sliding_window(config["sliding_window"])
    names, types = vocabulary(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    # The shapes come first in the file, so the weights are read twice: now for their shapes, then to write them.
    order = []
    for name, weight in tensors(folder):
        order.append(name)
        matrix = weight.ndim == 2
        size = gguf.GGML_QUANT_SIZES[kind] if matrix else (1, 4)
        stored = weight.size // size[0] * size[1]
        shape = gguf.quant_shape_to_byte_shape(weight.shape, kind) if matrix and type_name != "F32" else weight.shape
        dtype = np.dtype(np.float32) if not matrix or type_name == "F32" else np.dtype(np.uint8)
        raw = kind if matrix and type_name != "F32" else None
        writer.add_tensor_info(gguf_name(name), shape, dtype, stored, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, weight in tqdm(tensors(folder), total=len(order), unit=" tensors", desc=file.name, leave=False):
        writer.write_tensor_data(converted(weight, kind) if weight.ndim == 2 else weight.astype(np.float32))
    writer.close()
    partial.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="F32")
    args = parser.parse_args()
    write_gguf(args.folder, args.file, args.type)
    print(f"{args.file}: {args.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
