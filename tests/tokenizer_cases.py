"""The tokenizers used in the tests, the results of transformers with them, and texts to try them on."""

import functools
import json
from pathlib import Path

import pytest
from default_model import needs_default_model
from hypothesis import strategies as st

from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from npllm.checkpoint.hub import default_model
from npllm.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))

each_tokenizer = pytest.mark.parametrize(
    "name", ["bytes", "llama", pytest.param("default-model", marks=needs_default_model)]
)


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    """tokenizer-bytes or tokenizer-llama, see tools/golden/make_tokenizer_golden.py, or the default model's."""
    if name == "default-model":
        return tokenizer_from_gguf(read_gguf(default_model())[0])
    return tokenizer_from_folder(GOLDEN / f"tokenizer-{name}")


# Text that is hard for a tokenizer: spaces, digits, multi-byte characters, halves of control tokens.
HARMLESS = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", "\t", "<", ">", "<|", "|>", "7", "2024", "'s", "é", "e\u0301", "\u200d", "🙂", "船"]
        ),
        st.text(max_size=5),
        st.sampled_from(["the", "lighthouse", " keeper", "im_end", "end", "user", "▁", "Ġ", "<0x41>"]),
    ),
    max_size=8,
).map("".join)
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>"]
CONTROL += ["<s>", "</s>", "<think>", "</think>", "<Ω>", "<\u2126>", "<repo_name>"]
TEXTS = st.lists(st.one_of(HARMLESS, st.sampled_from(CONTROL)), max_size=6).map("".join)
