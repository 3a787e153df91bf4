"""The targets: for each parser of npllm its seeds, how npllm feeds it, and how its files are mutated."""

import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from checkpoints import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    config_keys,
    gguf_metadata,
    gguf_name,
    random_weights,
    write_folder,
    write_gpt2_folder,
    write_tokenizer,
)

import npllm
from npllm.checkpoint.chat_template import ChatRenderer
from npllm.checkpoint.folder import read_folder
from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.checkpoint.load import open_files
from npllm.errors import ModelFileError, NpllmError, UsageError
from npllm.inspect.compare import compare
from npllm.inspect.runs import from_file
from npllm.inspect.trace import write_trace
from npllm.storage.safetensors_file import read_header
from npllm.tokenizer import Tokenizer

from . import mutation

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
TINY |= {"num_key_value_heads": 1}
MESSAGES = [{"role": "user", "content": "Hi <|end|> you"}, {"role": "assistant", "content": "a\nb"}]
TEXTS = ("", "The 12 cats\n", " <|end|>\tönce", "\U0001f600\0", "a" * 50)


class Target(NamedTuple):
    """A parser."""

    seeds: Callable[[Path], list[bytes]]  # valid files; made in an empty folder
    run: Callable[[bytes, Path], Any]  # feeds it one file; the folder is kept between runs
    mutate: Callable[[Random, bytes, Sequence[bytes]], bytes]  # a file, changed; others to take parts of
    refusals: tuple[type[NpllmError], ...] = (ModelFileError,)  # the errors it may raise


def written(path: Path, data: bytes) -> Path:
    """A file with these contents."""
    path.write_bytes(data)
    return path


# safetensors, the index


def header_seeds(folder: Path) -> list[bytes]:
    write_folder(folder / "bf16", "llama", "bfloat16", tokenizer=False, **TINY)
    npllm_int4 = {
        "x.codes": {"dtype": "U8", "shape": [2, 16], "data_offsets": [0, 32]},
        "x.scale": {"dtype": "F16", "shape": [2, 1], "data_offsets": [32, 36]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(npllm_int4).encode()
    dtypes = ("F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4")
    others = {f"t{i}": {"dtype": d, "shape": [0, 3], "data_offsets": [0, 0]} for i, d in enumerate(dtypes)}
    return [
        (folder / "bf16" / "model.safetensors").read_bytes(),
        len(text).to_bytes(8, "little") + text + bytes(36),
        (2 + len(json.dumps(others))).to_bytes(8, "little") + json.dumps(others).encode() + b"  ",
        (2).to_bytes(8, "little") + b"{}",
    ]


def run_header(data: bytes, folder: Path) -> None:
    read_header(written(folder / "model.safetensors", data))


def index_seeds(folder: Path) -> list[bytes]:
    write_folder(folder / "two", "llama", shards=2, tokenizer=False, **TINY)
    shutil.copytree(folder / "two", folder / "index")
    return [(folder / "two" / "model.safetensors.index.json").read_bytes(), b'{"weight_map": {}}']


def run_index(data: bytes, folder: Path) -> None:
    if not (folder / "index").exists():
        index_seeds(folder)
    written(folder / "index" / "model.safetensors.index.json", data)
    read_folder(folder / "index")


# config.json

GOLDEN_MODELS = {"qwen3": "qwen3", "smollm3": "smollm3", "olmo2": "olmo2-bfloat16", "phi3": "phi3-token-classification"}
GOLDEN_MODELS |= {"phimoe": "phimoe-bfloat16", "mixtral": "mixtral", "qwen3_moe": "qwen3_moe"}
GOLDEN_MODELS |= {"gpt_oss": "gpt-oss-bfloat16"}
KNOWN = json.loads((GOLDEN.parent / "config_keys.json").read_text(encoding="utf-8"))


def config_folders(folder: Path) -> list[Path]:
    """Tiny models of all families, in folders named after their model_type."""
    for name in ("phi3", "llama", "mistral", "qwen2"):
        if not (folder / name).exists():
            write_folder(folder / name, name, tokenizer=False, **TINY)
    if not (folder / "gpt2").exists():
        write_gpt2_folder(folder / "gpt2", tokenizer=False, n_layer=1, n_embd=16, n_head=2)
    for name, golden in GOLDEN_MODELS.items():
        if not (folder / name / "expected.json").exists() and name != "phi3":
            shutil.copytree(GOLDEN / golden, folder / name, dirs_exist_ok=True)
    return sorted(path for path in folder.iterdir() if path.is_dir())


def config_seeds(folder: Path) -> list[bytes]:
    return [(path / "config.json").read_bytes() for path in config_folders(folder)]


def run_config(data: bytes, folder: Path) -> None:
    """The model is loaded, and computes."""
    named = re.search(rb'"model_type": ?"(\w+)"', data[:1000])
    folders = {path.name: path for path in config_folders(folder)}
    path = folders.get(named[1].decode() if named else "", folders["llama"])
    written(path / "config.json", data)
    lm = npllm.load(path)
    if lm.weights.lm_head is not None and lm.config.max_position_embeddings > 2:
        npllm.forward([1, 2], lm)


def known_keys() -> dict[str, list[Any]]:
    """The keys of config.json that transformers knows, with values."""
    keys: dict[str, list[Any]] = {}

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.setdefault(key, []).append(value)
            walk(value)

    walk(KNOWN)
    some = {
        "quantization_config": [
            {"quant_method": "npllm", "bits": 4, "group": 32},
            {"quant_method": "gptq", "bits": 4.0},
            {"quant_method": "mxfp4"},
        ],
        "rope_scaling": [
            {"type": "linear", "factor": 2.0},
            {"rope_type": "llama3", "factor": 8.0},
            {"type": "longrope"},
        ],
        "rope_parameters": [{"rope_type": "default", "rope_theta": 1e4}, {"full_attention": {"rope_theta": 1.0}}],
        "layer_types": [["full_attention"], ["sliding_attention"] * 2],
        "sliding_window": [1, 0, 4096],
        "id2label": [{"0": "A", "1": "B"}],
        "architectures": [["LlamaForSequenceClassification"], ["LlamaForCausalLM"]],
    }
    return keys | some


# tokenizer.json with tokenizer_config.json, as one object {"tokenizer.json": ..., "tokenizer_config.json": ...}

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
NORMALIZERS = [
    *({"type": name} for name in ("NFC", "NFKC", "Nmt", "Lowercase", "StripAccents", "ByteLevel")),
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Prepend", "prepend": "▁"},
]
PRE_TOKENIZERS = [
    *({"type": name} for name in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")),
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": " "},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Split", "pattern": {"Regex": r"\w+|\s+"}, "behavior": "Isolated", "invert": False},
    {"type": "FixedLength", "length": 3},
]
DECODERS = [
    *({"type": name} for name in ("ByteFallback", "Fuse")),
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
PROCESSORS = [
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    {"type": "BertProcessing", "sep": ["<|end|>", 269], "cls": ["<|user|>", 267]},
    {"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["a", 0], "trim_offsets": True, "add_prefix_space": True},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [269], "tokens": ["<|end|>"]}},
    },
]
WORDS = {word: i for i, word in enumerate(["[UNK]", "the", "cat", "##s", "t", "h", "e", "▁", "a"])}
MODELS = [
    {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
        "vocab": WORDS,
    },
    {"type": "Unigram", "unk_id": 0, "vocab": [[word, -float(i)] for word, i in WORDS.items()], "byte_fallback": False},
    {
        "type": "BPE",
        **{"dropout": None, "unk_token": "[UNK]", "continuing_subword_prefix": None, "end_of_word_suffix": None},
        **{
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": True,
            "vocab": WORDS | {"th": 9},
            "merges": [["t", "h"]],
        },
    },
]
KNOWN_TOKENIZER = {
    "padding": [
        {
            **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0},
            **{"pad_type_id": 0, "pad_token": "a"},
        }
    ],
    "truncation": [{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}],
    "normalizer": [*NORMALIZERS, {"type": "Sequence", "normalizers": NORMALIZERS[:3]}],
    "pre_tokenizer": [*PRE_TOKENIZERS, {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[-4:]}],
    "decoder": [*DECODERS, {"type": "Sequence", "decoders": DECODERS[-2:]}],
    "post_processor": PROCESSORS,
    "model": MODELS,
}


def tokenizer_seeds(folder: Path) -> list[bytes]:
    write_tokenizer(folder)
    whole, config = (json.loads((folder / name).read_bytes()) for name in ("tokenizer.json", "tokenizer_config.json"))
    seeds = [whole]
    for i, model in enumerate(MODELS):
        parts = {
            "normalizer": NORMALIZERS,
            "pre_tokenizer": PRE_TOKENIZERS,
            "decoder": DECODERS,
            "post_processor": PROCESSORS,
        }
        seeds.append(
            {"version": "1.0", "added_tokens": [], "model": model} | {name: some[i] for name, some in parts.items()}
        )
        seeds[-1]["post_processor"] = None
    configs = [
        config,
        {
            "bos_token": "the",
            "add_bos_token": True,
            "additional_special_tokens": ["[X]"],
            "chat_template": CHAT_TEMPLATE,
        },
        {"added_tokens_decoder": {"0": {"content": "[UNK]", **FLAGS}}, "unk_token": {"content": "[UNK]", **FLAGS}},
    ]
    return [
        json.dumps({"tokenizer.json": seed, "tokenizer_config.json": configs[i % 3]}).encode()
        for i, seed in enumerate(seeds)
    ]


def run_tokenizer(data: bytes, folder: Path) -> None:
    """The tokenizer is made and used."""
    whole = mutation.parsed(data) if len(data) < 10_000_000 else None
    described = isinstance(whole, dict) and "tokenizer.json" in whole
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
        if described and name in whole:
            written(folder / name, json.dumps(whole[name]).encode())
    if not described:
        written(folder / "tokenizer.json", data)
    use(tokenizer_from_folder(folder))


def use(tokenizer: Tokenizer) -> None:
    """What npllm does with a tokenizer."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        tokenizer.pieces(ids)
    if len(tokenizer):
        tokenizer.decode([0, len(tokenizer) - 1], skip_special_tokens=True)
    if tokenizer.render is not None:
        tokenizer.chat_ids(MESSAGES)


def object_in(data: bytes) -> dict[str, Any]:
    """A JSON object; {} if the data are anything else, such as a number."""
    tree = mutation.parsed(data)
    return tree if isinstance(tree, dict) else {}


def mutate_tokenizer(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Mutations of one of the two files, most often of tokenizer.json; or both of them from different seeds."""
    tree = mutation.parsed(data)
    if not isinstance(tree, dict) or not isinstance(tree.get("tokenizer.json"), dict) or random.random() < 0.03:
        return mutation.mutate_bytes(random, data, others)
    other = object_in(random.choice(others))
    name = "tokenizer.json" if random.random() < 0.8 else "tokenizer_config.json"
    known = KNOWN_TOKENIZER if name == "tokenizer.json" else None
    tree[name] = mutation.mutate_tree(random, tree.get(name, {}), [other.get(name)], known)
    if random.random() < 0.1:
        tree["tokenizer_config.json"] = other.get("tokenizer_config.json")
    return mutation.dumps(random, tree)


# Chat templates

TEMPLATES = [
    CHAT_TEMPLATE,
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest ="
    " messages %}{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<|' + m.role + '|>' ~ m['content'] | trim ~ '<|end|>'"
    " }}{% endfor %}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}",
    "{% set ns = namespace(last='', n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}"
    "{{ ns.n }}. {{ m | tojson }}\n{% endfor %}{% macro turn(role, text) %}<|{{ role }}|>{{ text }}{% endmacro %}"
    "{{ turn('assistant', '') if ns.last == 'user' }}{{ strftime_now('%Y-%m-%d') }}",
    "{% for m in messages %}{% generation %}{{ m.content.replace('/no_think', '') | upper }}{% endgeneration %}{% if"
    " loop.last %}{% break %}{% endif %}{% endfor %}",
]


def run_template(data: bytes, folder: Path) -> None:
    """The template as it is used: rendered, and the text encoded."""
    try:
        template = data.decode("utf-8")
    except UnicodeDecodeError:
        return  # read_template refuses it
    backend = byte_tokenizer()
    render = ChatRenderer(template, {"bos_token": "<|endoftext|>", "eos_token": "<|end|>"})
    render(MESSAGES, True)
    tokenizer = Tokenizer(backend.backend, backend.end_ids, template, render)
    tokenizer.chat_ids(MESSAGES, add_generation_prompt=False)


# GGUF: a file, or its description {"version", "metadata": [[key, kind, value], ...], "tensors": [[name, dtype, shape,
# offset or null], ...]}; the kind of a list is [kind of the elements, count or null]

FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
BITS_EACH = {0: 32, 1: 16, 2: 4.5, 3: 5, 6: 5.5, 7: 6, 8: 8.5, 10: 2.625, 11: 3.4375, 12: 4.5, 13: 5.5}
BITS_EACH |= {14: 6.5625, 20: 4.5, 23: 4.25, 30: 16, 39: 4.25}


def gguf_seeds(folder: Path) -> list[bytes]:
    keys = config_keys("llama", **TINY)
    metadata = gguf_metadata("llama", keys)
    tensors = [[gguf_name(name), 0, [*array.shape], None] for name, array in random_weights(keys).items()]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(8)), "▁", "t", "h", "e", "th", "the", "▁the"]
    sentencepiece = {
        **{key: value for key, value in metadata.items() if not key.startswith("tokenizer")},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 8, *[1] * 7],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "general.alignment": 64,
    }
    quantized = [[name, 8 if len(shape) > 1 else 0, shape, None] for name, _, shape, _ in tensors]
    scaled = [*tensors, ["rope_freqs.weight", 0, [8], None]]
    seeds = [(metadata, tensors), (sentencepiece, quantized), (metadata, scaled)]
    wide = config_keys("llama", **TINY | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16})
    shapes = {gguf_name(name): [*array.shape] for name, array in random_weights(wide).items()}
    kinds = cycle((10, 11, 12, 13, 14, 20, 23, 39))  # Q2_K to IQ4_XS, with blocks of 256 elements, MXFP4
    blocks = [[name, next(kinds) if len(shape) > 1 else 0, shape, None] for name, shape in shapes.items()]
    seeds.append((gguf_metadata("llama", wide), blocks))
    seeds.append(({"general.architecture": "llama"}, []))
    experts = []
    for name, number, shape, block in tensors:
        dense = name.endswith(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"))
        several = [name.replace(".weight", "_exps.weight"), number, [3, *shape], block]
        experts.append(several if dense else [name, number, shape, block])
        if name.endswith("ffn_norm.weight"):
            experts.append([name.replace("norm", "gate_inp"), number, [3, *shape], block])
    seeds.append((metadata | {"llama.expert_count": 3, "llama.expert_used_count": 2}, experts))
    return [json.dumps({"version": 3, "metadata": described(m), "tensors": t}).encode() for m, t in seeds]


def described(metadata: dict[str, Any]) -> list[Any]:
    """Metadata with the kind of each value."""

    def kind(value: Any) -> Any:
        if isinstance(value, list):
            return [kind(value[0]), None]
        if isinstance(value, int) and not isinstance(value, bool):
            return 5 if value < 0 else 4
        return {str: 8, bool: 7, float: 6}[type(value)]

    return [[key, kind(value), value] for key, value in metadata.items()]


def gguf_file(description: Any) -> bytes:
    """The file that a description stands for. A value that does not fit its kind is left out or cut."""

    def number(form: str, value: Any) -> bytes:
        size = struct.calcsize(form)
        try:
            if form[1] in "fd":
                return struct.pack(form, float(value))
            return (int(value) % 256**size).to_bytes(size, "little")
        except (TypeError, ValueError, OverflowError):
            return bytes(size)

    def string(value: Any) -> bytes:
        raw = str(value).encode("utf-8", "surrogatepass")
        return number("<Q", len(raw)) + raw

    def entry(kind: Any, value: Any, level: int = 0) -> bytes:
        if isinstance(kind, list) and kind and level < 50:
            items = value if isinstance(value, list) else [value]
            count = kind[1] if len(kind) > 1 and kind[1] is not None else len(items)
            inner = kind[0] if isinstance(kind[0], int) else 9
            return (
                number("<I", inner) + number("<Q", count) + b"".join(entry(kind[0], item, level + 1) for item in items)
            )
        if kind == 8:
            return string(value)
        return number(FORMATS.get(kind, "<I") if isinstance(kind, int) else "<I", value)

    parts = {name: description.get(name) for name in ("version", "metadata", "tensors", "counts")}
    metadata = [row for row in listed(parts["metadata"]) if isinstance(row, list) and len(row) == 3]
    tensors = [row for row in listed(parts["tensors"]) if isinstance(row, list) and len(row) == 4]
    counts = parts["counts"] if isinstance(parts["counts"], list) and len(parts["counts"]) == 2 else (None, None)
    counts = [len(rows) if count is None else count for count, rows in zip(counts, (tensors, metadata), strict=True)]
    out = [b"GGUF", number("<I", parts["version"]), *(number("<Q", count) for count in counts)]
    for key, kind, value in metadata:
        out += [string(key), number("<I", kind if isinstance(kind, int) else 9), entry(kind, value)]
    offset, data = 0, []
    for name, dtype, shape, at in tensors:
        axes = [axis for axis in listed(shape) if isinstance(axis, int)]
        out += [
            string(name),
            number("<I", len(axes)),
            *(number("<Q", axis) for axis in axes[::-1]),
            number("<I", dtype),
        ]
        out.append(number("<Q", offset if at is None else at))
        bits = BITS_EACH.get(dtype, 8) if isinstance(dtype, int) else 8
        most = 2**20 if offset < 2**25 else 0  # of a tensor; a file of gigabytes would test the writer here
        size = int(min(most, np.prod([min(abs(axis), 2**20) for axis in axes[:8]], dtype=float) * bits / 8))
        values = np.random.default_rng(0).uniform(0.1, 1.0, size // 4 + 1).astype("<f4").tobytes()[:size]
        data.append(values if dtype == 0 else bytes(size))
        data.append(bytes(-size % 64))
        offset += size + -size % 64
    start = b"".join(out)
    return start + bytes(-len(start) % 64) + b"".join(data)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def run_gguf(data: bytes, folder: Path) -> None:
    """The file is opened as `load` opens it, its tokenizer is used, and if it is accepted the model computes."""
    description = mutation.parsed(data) if data[:1] == b"{" else None
    path = written(folder / "model.gguf", gguf_file(description) if isinstance(description, dict) else data)
    files = open_files(path)
    if files.tokenizer is not None:
        use(files.tokenizer)
    npllm.forward([1, 2], npllm.load(path))


def mutate_gguf(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A description changed: an entry, a value, the counts; or the bytes of the file."""
    tree = mutation.parsed(data) if data[:1] == b"{" else None
    if not isinstance(tree, dict):
        return mutation.mutate_bytes(random, data)
    if random.random() < 0.1:
        return mutation.mutate_bytes(random, gguf_file(tree))
    other = object_in(random.choice(others))
    name = random.choice(("metadata",) * 6 + ("tensors",) * 3 + ("version", "counts"))
    rows = tree.get(name)
    if isinstance(rows, list) and rows and isinstance(row := random.choice(rows), list) and random.random() < 0.8:
        rows[rows.index(row)] = mutation.mutate_tree(random, row, [random.choice(listed(other.get(name)) or [row])])
    elif isinstance(rows, list):
        tree[name] = mutation.mutate_tree(random, rows, [other.get(name)])
    else:
        tree[name] = [mutation.value(random), None] if name == "counts" else mutation.value(random)
    return mutation.dumps(random, tree)


# Traces


def trace_seeds(folder: Path) -> list[bytes]:
    path, random = folder / "trace.safetensors", np.random.default_rng(0)
    names = ("embedding", "layers.0.attention.scores", "layers.0.attention.visible", "norm", "logits")
    shapes = {"layers.0.attention.scores": (2, 3, 3), "layers.0.attention.visible": (3, 3)}
    values = {name: random.standard_normal(shapes.get(name, (3, 4))) for name in names}
    metadata = {"ids": "1,2,3", "model": "x", "dtype": "auto", "device": "cpu", "made_by": "npllm"}
    write_trace(path, values, metadata)
    whole = path.read_bytes()
    mixed = {
        "__metadata__": {"names": '["a", "b"]', "ids": "7"},
        "a": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
    }
    mixed["b"] = {"dtype": "F64", "shape": [1, 1], "data_offsets": [4, 12]}
    text = json.dumps(mixed).encode()
    return [whole, len(text).to_bytes(8, "little") + text + bytes(12)]


def run_trace(data: bytes, folder: Path) -> None:
    """The file as `compare` reads it, compared with itself."""
    side = from_file(written(folder / "trace.safetensors", data), "*")
    assert side.ids is None or len(side.ids) > 0
    compare(side.values, side.values, 1e-4, "*")


TARGETS = {
    "header": Target(header_seeds, run_header, mutation.mutate_safetensors),
    "index": Target(index_seeds, run_index, mutation.json_mutator()),
    "config": Target(config_seeds, run_config, mutation.json_mutator(known_keys())),
    "tokenizer": Target(tokenizer_seeds, run_tokenizer, mutate_tokenizer, (ModelFileError, UsageError)),
    "template": Target(
        lambda _: [text.encode() for text in TEMPLATES],
        run_template,
        mutation.mutate_template,
        (ModelFileError, UsageError),
    ),
    "gguf": Target(gguf_seeds, run_gguf, mutate_gguf, (ModelFileError, UsageError)),
    "trace": Target(trace_seeds, run_trace, mutation.mutate_safetensors, (ModelFileError, UsageError)),
}


# Attacks. They are run once, and not mutated, because each may take as long and as much as it is allowed to.

TEMPLATE_ATTACKS = [
    "{{ 'a' * 10**9 }}",
    "{{ 9**(9**9) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{{ range(10**9) | list }}{{ [1][:10**9:0] }}",
    "{{ lipsum(n=10**6) }}",
    "{{ ('a ' * 10**6) | wordwrap(1) }}",
    "{{ ('<' * 10**6) | striptags }}{{ ('www.a.' * 10**6) | urlize }}",
    "{{ raise_exception('a' * 10**7) }}",
    *("x" * 200_000, "{{ x }}" * 20_000, "{% if x %}" * 5000, "{{ " + "(" * 100_000),
]
TOKENIZER_ATTACKS = [
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}},
    {"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "a" * 1000}},
    {"decoder": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(x*)*y"}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    {"truncation": {"direction": "Right", "max_length": 2**40, "strategy": "LongestFirst", "stride": 0}},
    {"padding": KNOWN_TOKENIZER["padding"][0] | {"strategy": {"Fixed": 2**40}}},
    {"added_tokens": [{"id": 2**32 - 1, "content": "z", **FLAGS}]},
    {"added_tokens": [{"id": 3, "content": "", **FLAGS}]},
    {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"t": 4, "h": 5}, "merges": [["t", "h"]]}},
    *({"model": model | {"unk_token": "", "unk_id": None}} for model in MODELS),
]


def with_pieces(pieces: list[str]) -> bytes:
    """A .gguf file with a SentencePiece vocabulary of these pieces."""
    description = mutation.parsed(seeds("gguf")[1])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(8))]
    count = len(first) + len(pieces)
    values = {
        "tokenizer.ggml.tokens": first + pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(count)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 8, *[1] * len(pieces)],
        "llama.vocab_size": count,
    }
    for row in description["metadata"]:
        row[2] = values.get(row[0], row[2])
    for row in description["tensors"]:
        row[2] = [count if axis == 288 else axis for axis in row[2]]
    return gguf_file(description)


def attacks(name: str) -> list[bytes]:
    """Small files that ask for much, and files of tens of megabytes with as many parts as they can hold."""

    def safetensors(header: str, data: bytes = b"") -> bytes:
        return len(header).to_bytes(8, "little") + header.encode() + data

    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    tensors = "{" + ",".join(f'"{i}":{empty}' for i in range(600_000)) + "}"
    lists, zeros = "[" + "[]," * 12_000_000 + "[]]", "[" + "0," * 16_000_000 + "0]"
    match name:
        case "header":
            return [
                safetensors(tensors),
                safetensors(f'{{"a":{lists}}}'),
                safetensors('{"__metadata__":' + lists + "}"),
            ]
        case "index":
            names = ",".join(f'"{i}":"model-00001-of-00002.safetensors"' for i in range(600_000))
            return [f'{{"weight_map":{{{names}}}}}'.encode(), f'{{"weight_map":{{"a":{lists}}}}}'.encode()]
        case "config":
            return [f'{{"model_type":"llama","x":{part}}}'.encode() for part in (lists, zeros, tensors)]
        case "tokenizer":
            base = mutation.parsed(seeds(name)[0])
            small = [base | {"tokenizer.json": base["tokenizer.json"] | attack} for attack in TOKENIZER_ATTACKS]
            vocabulary = "{" + ",".join(f'"a{i}":{i}' for i in range(300_000)) + "}"
            big = [
                f'{{"model":{{"type":"BPE","merges":[],"vocab":{part}}}}}'
                for part in (vocabulary, "[" + zeros[-9_000_001:])
            ]
            return [text.encode() for text in (*map(json.dumps, small), *big)]
        case "template":
            return [text.encode() for text in TEMPLATE_ATTACKS]
        case "gguf":
            words, count = (3).to_bytes(8, "little") + b"abc", 4_000_000
            start = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 9)
            return [
                start + struct.pack("<IQ", 8, count) + words * count,
                start + struct.pack("<IQ", 6, 2**24) + np.arange(2**24, dtype="<f4").tobytes(),
                *(with_pieces(pieces) for pieces in (["a" * 2_000_000], ["a" * i for i in range(1, 3001)])),
            ]
        case "trace":
            ids = "1," * 20_000_000 + "1"
            named = {"__metadata__": {"names": '["a"]', "ids": ids}}
            named["a"] = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
            return [safetensors(json.dumps(named), bytes(4)), safetensors(tensors)]
    return []


def run_itself(data: bytes, folder: Path) -> None:
    """A parser with every fault, to test the harness: it does what it reads."""
    match data.decode():
        case "hang":
            time.sleep(600)
        case "death":
            os.abort()
        case "memory":
            np.ones(2**23)
        case "class":
            raise UsageError("a refusal of the wrong class")
        case "crash":
            raise KeyError("x")
        case refusal if refusal:
            raise ModelFileError(refusal)


ITSELF = Target(lambda _: [b"refused"], run_itself, lambda random, data, others: mutation.mutate_bytes(random, data))


def target(name: str) -> Target:
    """The target of that name."""
    return ITSELF if name == "itself" else TARGETS[name]


def seeds(name: str) -> list[bytes]:
    """The seed corpus of a target."""
    with tempfile.TemporaryDirectory() as folder:
        return target(name).seeds(Path(folder))
