"""The text of ids that arrive one at a time: pieces of whole characters that join to the full text."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizer_cases import TEXTS, each_tokenizer, tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE

from npllm.text.stream import StoppingStream, TextStream
from npllm.tokenizer import Tokenizer


def streamed(tokenizer, context, ids):
    stream = TextStream(tokenizer.backend, context)
    pieces = [stream.step(i) for i in ids]
    return [*pieces, stream.flush()]


@each_tokenizer
@given(data=st.data())
def test_streamed_pieces_join_to_what_decode_adds(name, data):
    ids = st.integers(0, len(tokenizer(name)) - 1)
    if name != "default-model":  # more bytes and control tokens, which are rare in a large vocabulary
        ids |= st.sampled_from([*range(300), *range(len(tokenizer(name)) - 8, len(tokenizer(name)))])
    context, new = data.draw(st.lists(ids, max_size=8)), data.draw(st.lists(ids, max_size=12))
    before = tokenizer(name).decode(context, skip_special_tokens=True)
    after = tokenizer(name).decode(context + new, skip_special_tokens=True)
    # New ids change the text of a context that ends inside a character or a run of bytes.
    assume(after.startswith(before))
    assert "".join(streamed(tokenizer(name), context, new)) == after.removeprefix(before)


@each_tokenizer
@given(context=TEXTS, text=TEXTS)
def test_streamed_text_is_the_text(name, context, text):
    context_ids, ids = (tokenizer(name).backend.encode(part, add_special_tokens=False).ids for part in (context, text))
    pieces = streamed(tokenizer(name), context_ids, ids)
    before = tokenizer(name).decode(context_ids, skip_special_tokens=True)
    after = tokenizer(name).decode(context_ids + ids, skip_special_tokens=True)
    assert before + "".join(pieces) == after


@pytest.mark.parametrize(
    ("name", "context", "text", "expected"),
    [
        ("bytes", "", "a🙂b", ["a", "🙂", "b"]),
        ("llama", "A", " 🙂 b", [" ", " ", "🙂 b"]),  # the bytes end with the next piece
        ("bytes", "", "\ufffd\ufffd.", ["\ufffd", "\ufffd."]),  # a U+FFFD that is in the text
        ("bytes", "", "船<|im_end|>", ["船"]),
        ("bytes", "", "<think>a", ["<think>", "a"]),  # a token that is not special has text
    ],
)
def test_a_piece_is_whole_characters(name, context, text, expected):
    context_ids, ids = (tokenizer(name).backend.encode(part, add_special_tokens=False).ids for part in (context, text))
    pieces = [piece for piece in streamed(tokenizer(name), context_ids, ids) if piece]
    assert [piece.replace("▁", " ") for piece in pieces] == expected


def test_the_first_space_of_a_continuation_is_kept():
    llama = tokenizer("llama")
    prompt, new = llama.encode("The capital of France is"), llama.backend.token_to_id("▁of")
    assert llama.decode([new]) == "of"
    assert TextStream(llama.backend, prompt).step(new) == " of"
    assert TextStream(llama.backend).step(new) == "of"


def test_ids_without_text_give_none():
    stream = TextStream(tokenizer("bytes").backend)
    assert [stream.step(i) for i in (10**6, tokenizer("bytes").backend.token_to_id("<|im_end|>"))] == ["", ""]
    assert stream.flush() == ""


def test_half_a_character_at_the_end_is_a_replacement_character():
    first, *rest = tokenizer("bytes").backend.encode("🙂").ids
    stream = TextStream(tokenizer("bytes").backend)
    assert stream.step(first) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert streamed(tokenizer("bytes"), [first], []) == [""]  # it belongs to the context
    assert streamed(tokenizer("bytes"), [first], rest)[-2:] == ["🙂", ""]
    a, first, *_ = tokenizer("llama").backend.encode("A🙂", add_special_tokens=False).ids[-5:]
    stream = TextStream(tokenizer("llama").backend)
    assert [stream.step(a), stream.step(first), stream.flush()] == ["A", "", "\ufffd"]


class CountingBackend:
    """A backend that counts the ids it is asked to decode."""

    def __init__(self, backend):
        self.backend, self.decoded = backend, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self.backend.decode(ids, **options)


@pytest.mark.parametrize(("name", "byte"), [("bytes", "ð"), ("bytes", "Ń"), ("llama", "<0xF0>"), ("llama", "▁the")])
def test_the_work_for_each_id_does_not_grow(name, byte, monkeypatch):
    stream = TextStream(tokenizer(name).backend, list(range(10)))
    stream.backend = CountingBackend(stream.backend)
    for _ in range(1000):
        stream.step(tokenizer(name).backend.token_to_id(byte))
    stream.flush()
    assert stream.backend.decoded < 12 * 1000


def test_a_tokenizer_without_decoder_streams_too():
    backend = Backend(BPE({"a": 0, "b": 1}, []))
    assert "".join(streamed(Tokenizer(backend), [0], [1, 0])) == " b a"
    backend.decoder = decoders.Fuse()
    assert "".join(streamed(Tokenizer(backend), [0], [1, 0])) == "ba"


# Stop strings


def stopped(name, ids, stop):
    """The text shown for these ids up to a stop string, piece by piece, and how many ids that took."""
    stream, shown = StoppingStream(tokenizer(name).backend, [], stop), []
    for count, token in enumerate(ids, 1):
        text, found = stream.step(token, last=count == len(ids))
        shown.append(text)
        if found:
            return shown, count
    return shown, None


@pytest.mark.parametrize(
    ("name", "text", "stop", "shown", "count"),
    [
        ("bytes", "ab<|im_start|>c", "<|im_start|>", "ab", 3),
        ("bytes", "ab<|im_start|>c", "b<|im", "a", 3),  # half of a special token
        ("bytes", "ab<|im_start|>c", "start|>c", "ab", 4),
        ("bytes", "a<|im_end|><|im_start|>c", "end|><|im_start", "a", 3),  # halves of two
        ("bytes", "a<|im_start|>b<|im_end|>c", "x<|im_start|>", "abc", None),
        ("bytes", "a<|im_start|>b<|im_end|>c", "<|im_end|>", "ab", 4),  # text between special tokens is shown
        ("bytes", "a<|im_start|>", "<|im_start|>b", "a", None),  # the end of the text comes first
        ("bytes", "a<think>b", "<think>", "a", 2),  # a token that is not special has text
        ("llama", "A\n<|end|>B", "\n<|end|>", "A", 3),  # <0x0A>, a byte that waits for others
    ],
)
def test_a_stop_string_is_found_in_special_tokens_too(name, text, stop, shown, count):
    ids = tokenizer(name).backend.encode(text, add_special_tokens=False).ids
    pieces, stopped_at = stopped(name, ids, ["zzz", stop])
    assert ("".join(pieces), stopped_at) == (shown, count)


SPECIAL = ["<|im_start|>", "<|im_end|>", "a", "b", "<|", "|>", "船"]


@given(parts=st.lists(st.sampled_from(SPECIAL), max_size=8), stop=st.lists(st.sampled_from(SPECIAL), min_size=1))
def test_text_before_a_stop_string_is_what_decode_gives(parts, stop):
    backend, stop = tokenizer("bytes").backend, ["".join(stop)]
    ids = [i for part in parts for i in backend.encode(part, add_special_tokens=False).ids]
    ends = [n for n in range(len(ids) + 1) if stop[0] in backend.decode(ids[:n], skip_special_tokens=False)]
    pieces, stopped_at = stopped("bytes", ids, stop)
    assert stopped_at == (ends[0] if ends else None)
    whole = backend.decode(ids, skip_special_tokens=True)
    assert whole.startswith("".join(pieces))
    if not ends:
        assert "".join(pieces) == whole


def test_a_long_stop_string_takes_no_longer_than_its_text():
    stop = ["a" * 1_000_000 + "b", "ab" * 500_000]
    ids = tokenizer("bytes").backend.encode("a" * 2000 + "c" + "ab" * 1000, add_special_tokens=False).ids
    shown, stopped_at = stopped("bytes", ids, stop)
    assert stopped_at is None
    assert "".join(shown) == "a" * 2000 + "c" + "ab" * 1000
