"""The bytes of tokens, and text that is safe to display."""

import functools
from itertools import pairwise

import tokenizers
from checkpoints import SPECIAL, byte_tokenizer
from default_model import needs_default_model
from hypothesis import assume, given
from hypothesis import strategies as st

from npllm.checkpoint.load import load_tokenizer
from npllm.inspect.tokens import columns, padded, token_bytes, token_texts, visible
from npllm.tokenizer import Tokenizer

TEXTS = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL, "<|", " the", "é", "船", "🙂", "\n"]))).map("".join)


@functools.cache
def default_tokenizer() -> Tokenizer:
    return load_tokenizer(None)


@given(TEXTS)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text):
    ids = byte_tokenizer().encode(text)
    assert b"".join(token_bytes(byte_tokenizer(), ids)) == text.encode()


@needs_default_model
@given(TEXTS)
def test_the_bytes_of_the_default_models_tokens_are_the_bytes_of_the_text(text):
    ours = default_tokenizer()
    ids = ours.encode(text)
    assume(ours.decode(ids) == text)  # its vocabulary lacks some bytes
    assert b"".join(token_bytes(ours, ids)) == text.encode()


def test_the_bytes_of_a_llama_vocabulary():
    pieces = ["<unk>", "<s>", "<0x0A>", "<0xE2>", "▁the", "▁", "é", "<0x", "Ġ"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>"])
    result = dict(zip(pieces, token_bytes(Tokenizer(backend), range(len(pieces))), strict=True))
    assert result == {
        "<unk>": b"<unk>",
        "<s>": b"<s>",
        "<0x0A>": b"\n",
        "<0xE2>": b"\xe2",
        "▁the": b" the",
        "▁": b" ",
        "é": "é".encode(),
        "<0x": b"<0x",
        "Ġ": "Ġ".encode(),
    }


def test_an_id_without_a_piece_has_no_bytes():
    assert token_bytes(byte_tokenizer(), [len(byte_tokenizer()) + 5]) == [None]


@given(st.one_of(st.text(), st.binary()))
def test_what_is_visible_prints_and_nothing_else(text):
    assert visible(text).isprintable()


def test_what_prints_stays_as_it_is():
    assert visible("Paris, 東京 é") == "Paris, 東京 é"
    assert visible("\x1b[2J\x07\x9b\u202e\u200f\r\n") == r"\x1b[2J\x07\x9b\u202e\u200f\r\n"


@given(st.text().map(visible), st.integers(3, 12))
def test_padded_takes_exactly_its_columns(text, width):
    assert columns(padded(text, width)) == width


@given(st.text(), st.lists(st.integers(0, 20)))
def test_the_parts_of_a_text_are_the_text(text, cuts):
    data = text.encode()
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(ends)]
    parts = token_texts(pieces)
    assert len(parts) == len(pieces)
    assert "".join(part.text for part in parts if part.number == part.of) == text


def test_bytes_that_form_no_character_are_escaped():
    parts = token_texts([b"a", b"\xff", b"\xe2", None, b"\x82"])
    assert [(part.text, part.number, part.of) for part in parts] == [
        ("a", 1, 1),
        ("\\xff", 1, 1),
        ("\\xe2\\x82", 1, 3),
        ("\\xe2\\x82", 2, 3),
        ("\\xe2\\x82", 3, 3),
    ]


def test_a_token_that_ends_within_a_character_has_the_text_of_both():
    parts = token_texts([b" \xf0\x9f", b"\x99\x82!"])
    assert [tuple(part) for part in parts] == [(" 🙂!", 1, 2), (" 🙂!", 2, 2)]
