"""A folder's tokenizer: its files, its special tokens, and what is refused."""

import json
import shutil

import pytest
from tokenizer_cases import GOLDEN, tokenizer

from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.errors import ModelFileError


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


@pytest.mark.parametrize(
    "extra",
    [["<|tool|>"], {"tool_token": "<|tool|>"}, [{"__type": "AddedToken", "content": "<|tool|>", "special": True}]],
)
def test_extra_special_tokens_are_tokens(folder, extra):
    configure(folder, extra_special_tokens=extra, additional_special_tokens=["<other>"])
    tokenizer = tokenizer_from_folder(folder)
    ids = tokenizer.backend.encode("<|tool|>", add_special_tokens=False).ids
    assert (tokenizer.pieces(ids), tokenizer.decode(ids, skip_special_tokens=True)) == (["<|tool|>"], "")


def test_the_chat_template_knows_the_named_tokens(folder):
    template = "{{ tool_token }}{{ image_token }}{{ eos_token }}"
    extra = {"tool_token": "<|tool|>"}
    configure(folder, extra_special_tokens=extra, image_token="<image>", chat_template=template)
    ids = tokenizer_from_folder(folder).chat_ids([{"role": "user", "content": ""}])
    assert tokenizer_from_folder(folder).pieces(ids) == ["<|tool|>", "<image>", "<|endoftext|>"]


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


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer_class", ["BertTokenizer", "BertTokenizerFast", None, "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, ["paris", "e", "[UNK]"]),
        ({"do_lower_case": False}, ["[UNK]", "[UNK]", "[UNK]"]),
        ({"strip_accents": False}, ["paris", "[UNK]", "[UNK]"]),
        ({"tokenize_chinese_chars": False}, ["paris", "e", "[UNK]"]),
    ],
)
def test_berts_settings_overrule_tokenizer_json(tmp_path, tokenizer_class, settings, tokens):
    """As transformers does, whose class BertTokenizer reads only the vocabulary in tokenizer.json."""
    source = GOLDEN / "bert"
    backend = json.loads((source / "tokenizer.json").read_text())
    backend["normalizer"] |= {"lowercase": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    named = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | settings))
    tokenizer = tokenizer_from_folder(tmp_path)
    if tokenizer_class == "PreTrainedTokenizerFast":
        tokens = ["[UNK]"] * 3
    assert tokenizer.pieces(tokenizer.encode("Paris É ß"))[1:-1] == tokens


def test_a_setting_of_bert_that_makes_no_sense_is_refused(tmp_path):
    source = GOLDEN / "bert"
    (tmp_path / "tokenizer.json").write_text((source / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": "no"}')
    with pytest.raises(ModelFileError, match="do_lower_case: expected true or false, got 'no'"):
        tokenizer_from_folder(tmp_path)
