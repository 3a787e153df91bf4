"""Heads that npllm does not compute, and folders that are no whole model: one line says what each is."""

import json

import pytest
from checkpoints import write_folder
from test_golden import GOLDEN

import npllm
from npllm.cli.main import main
from npllm.errors import ModelFileError
from npllm.families.keys import Keys
from npllm.families.other_heads import check_head


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("LlamaForQuestionAnswering", "a question-answering head"),
        ("BertForQuestionAnswering", "a question-answering head"),
        ("BertForMultipleChoice", "a multiple-choice head"),
        ("BertForNextSentencePrediction", "a head that says whether one text follows another"),
        ("BertModel", "a model without a head, which turns texts into vectors"),
        ("Phi3Model", "a model without a head"),
        ("GPT2Model", "a model without a head"),
        ("Qwen2ForRewardModel", "a reward head"),
        ("GPT2DoubleHeadsModel", "a model with two heads"),
        ("Gemma3ForConditionalGeneration", "a model with an encoder"),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_a_head_that_is_not_computed_is_named(name, what, masked):
    with pytest.raises(ModelFileError) as raised:
        check_head(Keys({"architectures": [name]}), masked)
    assert "config.json: architectures: expected a language model or a classifier (" in str(raised.value)
    assert f", got {name}: {what}" in str(raised.value)
    assert str(raised.value).endswith(f"checkpoint with {'a masked-LM' if masked else 'an LM'} head or a classifier")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "BertForCausalLM", "Other"])
def test_a_masked_model_with_a_head_that_writes_is_refused(name):
    check_head(Keys({"architectures": [name]}), masked=False)
    with pytest.raises(ModelFileError, match=f"got {name}: not a masked language model"):
        check_head(Keys({"architectures": [name]}), masked=True)


def test_a_masked_head_on_a_decoder_is_refused():
    with pytest.raises(ModelFileError, match="LlamaForMaskedLM: a masked language model, which npllm computes only"):
        check_head(Keys({"architectures": ["LlamaForMaskedLM"]}), masked=False)


@pytest.mark.parametrize(
    ("names", "masked"),
    [
        (["GPT2LMHeadModel"], False),
        (["Phi3ForCausalLM"], False),
        (["Custom"], False),
        (["LlamaForTokenClassification"], False),
        (["BertForPreTraining"], True),
        (["BertForMaskedLM"], True),
        (["BertForSequenceClassification"], True),
        ([], True),
        (None, False),
    ],
)
def test_a_head_that_is_computed_is_not_refused(names, masked):
    check_head(Keys({"architectures": names}), masked)


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "model")
    return tmp_path / "model"


def change(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_a_bare_model_is_refused_before_its_tensors(folder, capsys):
    change(folder, architectures=["Phi3Model"])
    assert main(["generate", "a", "-m", str(folder)]) == 4
    err = capsys.readouterr().err
    assert "got Phi3Model: a model without a head" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_names_its_base(folder, config):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    if not config:
        (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"expected a whole model, got an adapter \(LoRA\) for owner/base; load"):
        npllm.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_model_with_an_adapter_beside_it_is_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"beside it; merge the adapter first, or remove adapter_config\.json$"):
        npllm.load(folder)


def test_a_model_of_sentence_transformers_is_refused(folder):
    (folder / "modules.json").write_text("[]")
    with pytest.raises(ModelFileError, match=r"got one of sentence-transformers \(modules\.json\), which turns"):
        npllm.load(folder)
    change(folder, architectures="Phi3ForCausalLM")
    with pytest.raises(ModelFileError, match="sentence-transformers"):
        npllm.load(folder)


def test_one_with_a_whole_head_is_loaded(tmp_path):
    for file in (GOLDEN / "bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modules.json").write_text("[]")
    assert npllm.load(tmp_path).config.family == "bert"
