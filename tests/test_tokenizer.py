"""Text to ids and back: the ids of transformers, and streamed pieces that join to the decoded text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import EXPECTED, HARMLESS, TEXTS, each_tokenizer, tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from npllm.errors import UsageError
from npllm.tokenizer import Tokenizer


@each_tokenizer
def test_texts_have_the_ids_that_transformers_gives(name):
    for entry in EXPECTED[name]["texts"]:
        assert tokenizer(name).encode(entry["text"]) == entry["ids"], entry["text"]


@each_tokenizer
def test_ids_have_the_pieces_and_the_text_that_transformers_gives(name):
    for entry in EXPECTED[name]["texts"]:
        ids = entry["ids"]
        assert tokenizer(name).pieces(ids) == entry["pieces"]
        assert tokenizer(name).decode(ids) == entry["decoded"]
        assert tokenizer(name).decode(ids, skip_special_tokens=True) == entry["decoded_without_special"]


# What each tokenizer can encode, and what it decodes to. The default model's vocabulary lacks some bytes: control
# characters, and the first UTF-8 bytes of the rarest characters.
COMES_BACK = {
    "bytes": (TEXTS, lambda text: unicodedata.normalize("NFC", text)),  # its normalizer
    "llama": (HARMLESS, lambda text: text.replace("▁", " ")),  # its symbol for a space
    "default-model": (st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"])), str),
}


@each_tokenizer
@given(data=st.data())
def test_decoding_the_ids_of_a_text_gives_the_text(name, data):
    texts, comes_back = COMES_BACK[name]
    text = data.draw(texts)
    ids = tokenizer(name).encode(text)
    assert tokenizer(name).decode(ids, skip_special_tokens=name == "llama") == comes_back(text)  # llama adds <s>


def test_the_size_is_the_largest_id_and_one_more():
    assert len(tokenizer("bytes")) == 506
    assert tokenizer("bytes").pieces([505]) == ["<Ω>"]
    gaps = Tokenizer(Backend(BPE({"a": 0, "b": 9}, [])))
    assert len(gaps) == 10
    assert gaps.pieces([9, 4]) == ["b", ""]  # an id without a piece
    assert gaps.decode([9, 4, 0]) == "b a"


@pytest.mark.parametrize("wrong", [-1, 506, 2**40])
def test_ids_outside_of_the_vocabulary_are_refused(wrong):
    for use in (tokenizer("bytes").decode, tokenizer("bytes").pieces):
        with pytest.raises(UsageError, match=f"token ids: expected 0 to 505, .*, got {wrong}"):
            use([1, wrong])


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(UsageError, match=r"expected UTF-8, got '.udcc3' at character 1"):
        tokenizer("bytes").encode("a\udcc3")
