"""The tokenizer of a .gguf file, from its metadata.

A .gguf file has no tokenizer.json. It has the pieces, their types and scores or merges, a few ids, and the name of the
rule that splits a text into words. Two kinds are supported, by tokenizer.ggml.model:

gpt2    byte-level BPE: text is split into words, their bytes are written as letters, and merges join them in order
llama   SentencePiece BPE: spaces become ▁, and the pair that forms the piece with the highest score is joined first

Missing keys have the defaults of llama.cpp, which defined the format (src/llama-vocab.cpp).
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..errors import ModelFileError
from ..text.end_ids import NONE
from ..tokenizer import Tokenizer
from .chat_template import ChatRenderer
from .folder_tokenizer import add_bos_and_eos

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # values in tokenizer.ggml.token_type

# How a text is split into words before the merges, by tokenizer.ggml.pre, as in the models' own tokenizer.json.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (QWEN2,)),
    "tekken": (TEKKEN,),
    "gpt-4o": (GPT4O,),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
}
# These do not apply merges to a word that is itself a piece, and add BOS unless the file says otherwise.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")

# Bounds for the time and the memory. The splits of Llama 2's pieces have 1 million letters, those of Gemma 3's 11
# million; Gemma 3's 6,415 added tokens have 76 thousand letters.
MOST_LETTERS, MOST_ADDED = 2**27, 2**20

# Tokens that end a text or a turn. A file names one such id; a model may have been trained with several.
END_TOKENS = (
    *("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"),
    *("<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<EOT>"),
)
# Those of gpt-oss, whose <|end|> is in the middle of an answer: after its reasoning.
HARMONY = ("<|return|>", "<|call|>", "<|endoftext|>")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer described by the metadata of a .gguf file.

    Its end_ids are the file's eos, eot and eom ids, and every control token of a known name, because a file may
    name only one end token of a model that was trained with several. SmolLM2's are <|im_end|> and <|endoftext|>.

    Parameters
    ----------
    metadata : the keys and values of the file, arrays as lists

    Raises
    ------
    ModelFileError : a value is missing, of the wrong type, out of range, or names an unknown rule
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise refuse("model", "'gpt2' or 'llama'", repr(kind))
    # Ids are positions in this list. As in llama.cpp, an empty piece gets a placeholder that occurs in no text.
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(read_list(metadata, "tokens", str))]
    types = read_list(metadata, "token_type", int, len(texts))
    vocabulary = {text: i for i, text in enumerate(texts)}
    if len(vocabulary) < len(texts):
        raise refuse("tokens", f"{len(texts)} different pieces", f"{len(vocabulary)}")
    llama = kind == "llama"
    ids = special_ids(metadata, texts)
    eos, unknown = ids.get("eos_token"), ids.get("unk_token")
    try:
        backend = llama_backend(metadata, texts, types, unknown) if llama else gpt2_backend(metadata, texts)
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:  # the library has no exception class for it
        raise refuse("merges", "merges of pieces of the vocabulary", " ".join(str(error).split())) from error

    added = [i for i, type_ in enumerate(types) if type_ in (CONTROL, USER_DEFINED) or i == unknown]
    letters = sum(len(texts[i]) for i in added)
    if letters > MOST_ADDED:
        raise refuse("tokens", f"control tokens of at most {MOST_ADDED} letters together", letters)
    # Phi-3's control tokens strip the white space after them. The file does not say so; llama.cpp hard-codes it too.
    phi3 = llama and metadata.get("general.architecture") == "phi3" and "<|assistant|>" in vocabulary
    backend.add_tokens(
        [
            AddedToken(
                texts[i],
                special=types[i] != USER_DEFINED,
                normalized=False,
                rstrip=phi3 and texts[i] not in ("<unk>", "<s>", "<|endoftext|>"),
            )
            for i in added
        ]
    )
    pre = metadata.get("tokenizer.ggml.pre")
    add_bos = read_flag(metadata, "add_bos_token", llama or pre in WHOLE_WORDS)
    add_eos = read_flag(metadata, "add_eos_token", False)
    special = {name: texts[i] for name, i in ids.items()}
    add_bos_and_eos(
        backend, special.get("bos_token") if add_bos else None, special.get("eos_token") if add_eos else None
    )

    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise ModelFileError(f"tokenizer.chat_template: expected a string, got {type(template).__name__}")
    named = HARMONY if "<|return|>" in {texts[i] for i in added} else END_TOKENS
    ends = (eos, read_id(metadata, "eot_token_id", texts), read_id(metadata, "eom_token_id", texts))
    return Tokenizer(
        backend,
        end_ids=[i for i in ends if i is not None] + [i for i in added if texts[i] in named],
        chat_template=template,
        render=None if template is None else ChatRenderer(template, special),
    )


def special_ids(metadata: Mapping[str, Any], texts: list[str]) -> dict[str, int]:
    """The special tokens, by their names in tokenizer_config.json: {"bos_token": 1, ...}."""
    llama = metadata.get("tokenizer.ggml.model") == "llama"
    ids = {
        "bos_token": read_id(metadata, "bos_token_id", texts, 1 if llama else None),
        "eos_token": read_id(metadata, "eos_token_id", texts, 2 if llama else None),
        "unk_token": read_id(metadata, "unknown_token_id", texts, 0 if llama else None),
        "pad_token": read_id(metadata, "padding_token_id", texts),
    }
    return {name: i for name, i in ids.items() if i is not None}


def gpt2_backend(metadata: Mapping[str, Any], texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE, with the merges of the file."""
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in WORDS:
        raise refuse("pre", f"one of {', '.join(WORDS)}", f"{pre!r}, an unknown way to split words")
    merges = [tuple(merge.split(" ")) for merge in read_list(metadata, "merges", str)]
    wrong = [i for i, merge in enumerate(merges) if len(merge) != 2]
    if wrong:
        raise refuse("merges", "two pieces separated by one space", f"{' '.join(merges[wrong[0]])!r} at {wrong[0]}")
    vocabulary = {text: i for i, text in enumerate(texts)}
    lost = next((f"{left} {right}" for left, right in merges if left + right not in vocabulary), None)
    if lost is not None:  # the library would panic
        raise refuse("merges", "merges of pieces of the vocabulary", repr(lost)[:80])
    backend = tokenizers.Tokenizer(BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    cuts = [pre_tokenizers.Split(Regex(words), "isolated") for words in WORDS[pre]]
    byte_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def llama_backend(
    metadata: Mapping[str, Any], texts: list[str], types: list[int], unknown: int | None
) -> tokenizers.Tokenizer:
    """SentencePiece BPE, with its scores expressed as merges.

    SentencePiece joins the two neighbours that form the piece with the highest score. So every split of a piece into
    two pieces is a merge, and the merges are ordered by score.
    """
    scores = read_list(metadata, "scores", float, len(texts))
    vocabulary = {text: i for i, text in enumerate(texts)}
    normal = {text for text, type_ in zip(texts, types, strict=True) if type_ == NORMAL}
    letters = sum(len(text) ** 2 for text in normal)  # in all splits of all pieces
    if letters > MOST_LETTERS:
        raise refuse("tokens", f"pieces whose splits have at most {MOST_LETTERS} letters", letters)
    cuts = [(text, cut) for text in texts if text in normal for cut in range(1, len(text))]
    merges = [(text[:cut], text[cut:]) for text, cut in cuts if text[:cut] in normal and text[cut:] in normal]
    # Of the splits of one piece, the one with the longest left part comes first, as in transformers' conversion.
    merges.sort(key=lambda merge: (-scores[vocabulary[merge[0] + merge[1]]], -len(merge[0]), -len(merge[1])))
    backend = tokenizers.Tokenizer(
        BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else texts[unknown],
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = read_flag(metadata, "add_space_prefix", True)
    to_pieces = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*to_pieces, normalizers.Replace(" ", "▁")])
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)] if prefix else to_text)
    return backend


def refuse(key: str, expected: str, got: Any) -> ModelFileError:
    """The error for an invalid value in the metadata."""
    return ModelFileError(
        f"tokenizer.ggml.{key}: expected {expected}, got {got}; download the file again, or a newer version"
    )


def read_list(metadata: Mapping[str, Any], key: str, element: type, length: int | None = None) -> list[Any]:
    """A list in the metadata, with elements of this type, and of this length unless None."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(type(x) is element for x in value):
        raise refuse(key, f"a list of {element.__name__}", "none" if value is None else "other values")
    if length not in (None, len(value)):
        raise refuse(key, f"{length}, one for each token", len(value))
    return value


def read_id(metadata: Mapping[str, Any], key: str, texts: list[str], default: int | None = None) -> int | None:
    """A token id in the metadata; None if the file says that there is none, or is silent and there is no default."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return default if default is not None and default < len(texts) else None
    if value in NONE:
        return None
    if type(value) is not int or not 0 <= value < len(texts):
        raise refuse(key, f"an id from 0 to {len(texts) - 1}", repr(value))
    return value


def read_flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean in the metadata."""
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise refuse(key, "true or false", repr(value))
    return value
