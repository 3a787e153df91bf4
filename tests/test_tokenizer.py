"""Text to ids and back: the ids of transformers, and text streamed in pieces that join to what decode gives."""

import json
import shutil
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizer_cases import EXPECTED, GOLDEN, HARMLESS, TEXTS, each_tokenizer, tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE

from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.errors import ModelFileError, UsageError
from npllm.text.stream import TextStream
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


# What each tokenizer can spell, and what comes back. The default model's vocabulary has not every byte: control
# characters are missing, and what begins the UTF-8 of the rarest characters.
COMES_BACK = {
    "bytes": (TEXTS, lambda text: unicodedata.normalize("NFC", text)),  # its normalizer
    "llama": (HARMLESS, lambda text: text.replace("▁", " ")),  # its sign for a space
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
        with pytest.raises(UsageError, match=f"token ids: expected 0 to 505, .* got {wrong}"):
            use([1, wrong])


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(UsageError, match=r"expected UTF-8, got '.udcc3' at character 1"):
        tokenizer("bytes").encode("a\udcc3")


# A folder's files


@pytest.fixture
def folder(tmp_path):
    """A copy of tokenizer-llama, and a function that changes its tokenizer_config.json."""
    shutil.copytree(GOLDEN / "tokenizer-llama", tmp_path / "llama")
    return tmp_path / "llama"


def configure(folder, **changes):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: config[key] for key in config if config[key] != "absent"}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, [1], []),  # tokenizer.json's post-processor adds <s>
        ({"add_bos_token": True}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": None}, [1], []),
        ({"add_eos_token": True}, [1], ["<|endoftext|>"]),
        ({"add_eos_token": False}, [1], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], ["<|endoftext|>"]),
        ({"add_bos_token": True, "bos_token": None}, [], []),
    ],
)
def test_the_config_says_whether_bos_and_eos_are_added(folder, changes, before, after):
    configure(folder, **changes)
    tokenizer = tokenizer_from_folder(folder)
    plain = tokenizer.backend.encode("The ships", add_special_tokens=False).ids
    assert tokenizer.encode("The ships") == before + plain + [tokenizer.backend.token_to_id(text) for text in after]


def test_the_end_id_is_that_of_the_eos_token(folder):
    assert tokenizer("bytes").pieces(tokenizer("bytes").end_ids) == ["<|im_end|>"]
    configure(folder, eos_token={"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "rstrip": True})
    assert tokenizer_from_folder(folder).pieces(tokenizer_from_folder(folder).end_ids) == ["<|end|>"]
    configure(folder, eos_token=None)
    assert tokenizer_from_folder(folder).end_ids == frozenset()


def test_an_older_checkpoint_names_its_special_tokens_in_a_file_of_their_own(folder):
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>", "pad_token": {"content": "<pad>"}}')
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.pieces(tokenizer.end_ids) == ["<|end|>"]
    assert tokenizer.pieces(tokenizer.encode("<pad>"))[-1] == "<pad>"
    configure(folder, added_tokens_decoder={})
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.pieces(tokenizer.end_ids) == ["<|endoftext|>"]


def test_the_config_describes_added_tokens_anew(folder):
    id_of_user = tokenizer("llama").backend.token_to_id("<|user|>")
    assert tokenizer("llama").pieces(tokenizer("llama").encode("<|user|>\nA"))[1:] == ["<|user|>", "▁A"]
    configure(folder, added_tokens_decoder={str(id_of_user): {"content": "<|user|>", "special": True, "rstrip": False}})
    anew = tokenizer_from_folder(folder)
    assert anew.pieces(anew.encode("<|user|>\nA"))[1:4] == ["<|user|>", "▁", "<0x0A>"]


def test_the_chat_template_comes_from_its_file_the_config_or_a_list(folder):
    template = tokenizer("llama").chat_template
    assert template.startswith("{% for message in messages %}")
    configure(folder, chat_template=[{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}])
    assert tokenizer_from_folder(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert tokenizer_from_folder(folder).chat_template == "J"
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template="absent")
    assert tokenizer_from_folder(folder).chat_template is None
    (folder / "tokenizer_config.json").unlink()
    assert tokenizer_from_folder(folder).encode("A") == tokenizer("llama").encode("A")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.json", None, "expected this file, found none"),
        ("tokenizer.json", "", "expected a tokenizer, got: EOF while parsing"),
        ("tokenizer.json", "{}", "expected a tokenizer, got: Model missing"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', "out of vocabulary"),
        ("tokenizer_config.json", "{", "expected JSON"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", '{"eos_token": 7}', "expected the settings of a tokenizer"),
        ("tokenizer_config.json", '{"eos_token": {"text": "<s>"}}', "expected the settings of a tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "expected the settings of a tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"one": {"content": "1"}}}', "settings of a tokenizer"),
        ("tokenizer_config.json", '{"chat_template": 7}', "expected the settings of a tokenizer"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "expected the settings of a tokenizer"),
        ("special_tokens_map.json", '{"eos_token": []', "expected JSON"),
        ("chat_template.jinja", b"\xff", "expected UTF-8"),
    ],
)
def test_broken_files_are_refused(folder, file, text, message):
    path = folder / file
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelFileError, match=message) as error:
        tokenizer_from_folder(folder)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# Text in pieces


def streamed(tokenizer, context, ids):
    stream = TextStream(tokenizer.backend, context)
    pieces = [stream.step(i) for i in ids]
    return [*pieces, stream.flush()]


@each_tokenizer
@given(data=st.data())
def test_streamed_pieces_join_to_what_decode_adds(name, data):
    ids = st.integers(0, len(tokenizer(name)) - 1)
    if name != "default-model":  # half of them bytes and control tokens, which are few in a large vocabulary
        ids |= st.sampled_from([*range(300), *range(len(tokenizer(name)) - 8, len(tokenizer(name)))])
    context, new = data.draw(st.lists(ids, max_size=8)), data.draw(st.lists(ids, max_size=12))
    before = tokenizer(name).decode(context, skip_special_tokens=True)
    after = tokenizer(name).decode(context + new, skip_special_tokens=True)
    # Where the context ends within a character, or in bytes that the new ones belong to, they change its text.
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
        ("bytes", "", "\ufffd\ufffd.", ["\ufffd", "\ufffd."]),  # a U+FFFD of the text's own
        ("bytes", "", "船<|im_end|>", ["船"]),
        ("bytes", "", "<think>a", ["<think>", "a"]),  # a token that is not special has its text
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
    assert streamed(tokenizer("bytes"), [first], []) == [""]  # it is the context's
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
