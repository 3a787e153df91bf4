"""BERT: the pass and the heads are those of transformers, and its files are of several generations."""

import io
import json
import shutil

import numpy as np
import pytest
from bridge import tool
from safetensors.numpy import load_file, save_file
from test_golden import GOLDEN, assert_same_values, expected_of
from tolerance import assert_close

import npllm
from npllm.apps.ablate import without_layers
from npllm.apps.chat import Chat
from npllm.apps.classify import classify, classify_tokens
from npllm.cache import empty_cache
from npllm.checkpoint.write import convert
from npllm.cli.main import main
from npllm.errors import ModelFileError, UsageError
from npllm.families import family_of, read_config
from npllm.flash import flash_attention
from npllm.heads import token_classification_head
from npllm.inspect.compare import compare
from npllm.inspect.look import given, lens, look
from npllm.inspect.trace import read_trace
from npllm.sampling import softmax

MASKED = ["bert", "bert-published-bfloat16"]
HEADS = ["bert-sequence-classification", "bert-token-classification"]


def pass_of(name, **options):
    """The model, its hidden states for the golden pair of texts, the recorded values and transformers' values."""
    lm, expected = npllm.load(GOLDEN / name), expected_of(GOLDEN / name)
    ids, token_types = (np.asarray(expected[key]) for key in ("ids", "token_types"))
    seen = {}
    hidden, cache = npllm.transform(ids, lm, token_types=token_types, tap=npllm.record(seen), **options)
    assert cache is None
    return lm, ids, hidden, seen, load_file(GOLDEN / name / "expected.safetensors")


@pytest.mark.parametrize("name", MASKED)
def test_every_value_of_a_pass_is_that_of_transformers(name):
    lm, _, hidden, seen, expected = pass_of(name)
    seen["logits"] = npllm.lm_head(hidden, lm)
    assert_same_values(seen, expected)


@pytest.mark.parametrize("name", HEADS)
def test_the_scores_of_labels_are_those_of_transformers(name):
    lm, ids, hidden, seen, expected = pass_of(name)
    scores = expected.pop("scores")
    assert_same_values(seen, expected)
    if "sequence" in name:
        assert_close("scores", family_of(lm.config).sequence_head(hidden, lm.weights, ids, 0), scores)
    else:
        assert_close("scores", token_classification_head(hidden, lm.weights), scores)


def test_a_text_and_a_pair_are_classified_as_by_transformers():
    lm = npllm.load(GOLDEN / HEADS[0])
    for pair, expected in zip([None, "Is Berlin?"], expected_of(GOLDEN / HEADS[0])["answers"], strict=True):
        got = classify(lm, "Paris is a [MASK] on the Seine.", pair=pair)
        assert [one["label"] for one in got] == [one["label"] for one in expected]
        np.testing.assert_allclose([one["score"] for one in got], [one["score"] for one in expected], atol=1e-5)


def test_each_token_is_classified_with_the_brackets():
    lm = npllm.load(GOLDEN / HEADS[1])
    assert [one["word"] for one in classify_tokens(lm, "Paris is")] == ["[CLS]", "paris", "is", "[SEP]"]


def test_padding_hidden_by_a_mask_changes_nothing():
    lm, ids, hidden, _, _ = pass_of("bert")
    padded = np.concatenate([ids, [0, 0, 0]])
    types = np.concatenate([expected_of(GOLDEN / "bert")["token_types"], [0, 0, 0]])
    visible = np.broadcast_to(np.arange(len(padded)) < len(ids), (len(padded), len(padded)))
    for options in ({}, {"attention": flash_attention}):
        batch, _ = npllm.transform(np.stack([padded, padded]), lm, token_types=types, visible=visible, **options)
        assert_close("hidden", batch[1, : len(ids)], hidden)


def test_token_types_default_to_the_first_text_and_are_checked():
    lm = npllm.load(GOLDEN / "bert")
    ids = np.array([2, 8, 4, 3])
    expected, _ = npllm.forward(ids, lm)
    np.testing.assert_array_equal(npllm.forward(ids, lm, token_types=np.zeros(4, dtype=np.int64))[0], expected)
    assert np.any(npllm.forward(ids, lm, token_types=np.ones(4, dtype=np.int64))[0] != expected)
    with pytest.raises(UsageError, match=r"token_types: expected an array of whole numbers \[..., 4\]"):
        npllm.forward(ids, lm, token_types=np.zeros(3, dtype=np.int64))
    two = npllm.forward(ids, lm, token_types=np.array([0, 0, 1, 1]))[0]
    np.testing.assert_array_equal(npllm.forward(ids, lm, token_types=[0, 0, 1, 1])[0], two)
    for wrong in (9, -1):
        for types in ([0, 0, 0, wrong], np.array([0, 0, 0, wrong])):
            with pytest.raises(UsageError, match=f"^token_types: expected token types from 0 to 1, got {wrong}$"):
                npllm.forward(ids, lm, token_types=types)


def test_every_token_sees_all_others():
    lm = npllm.load(GOLDEN / "bert")
    one, _ = npllm.forward([2, 8, 9, 3], lm)
    other, _ = npllm.forward([2, 8, 10, 3], lm)
    assert np.all(np.abs(one - other).max(axis=-1) > 1e-3)


# Its files


def changed(folder, tmp_path, tensors=None, **keys):
    """A copy of a golden folder with other keys and tensors; a tensor that is None is left out."""
    copy = tmp_path / "model"
    shutil.copytree(GOLDEN / folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | keys))
    if tensors is not None:
        file = copy / "model.safetensors"
        whole = load_file(file) | tensors
        save_file({name: value for name, value in whole.items() if value is not None}, file)
    return copy


PUBLISHED = "bert-published-bfloat16"


def test_the_files_of_google_have_the_older_names():
    names = load_file(GOLDEN / PUBLISHED / "model.safetensors").keys()
    assert {"bert.embeddings.LayerNorm.gamma", "cls.predictions.decoder.bias", "bert.embeddings.position_ids"} <= names
    assert "bert.embeddings.LayerNorm.weight" not in names


def test_a_copy_may_be_missing_and_the_decoder_s_own_bias_counts(tmp_path):
    bias = load_file(GOLDEN / PUBLISHED / "model.safetensors")["cls.predictions.bias"]
    without = {"cls.predictions.decoder.weight": None, "cls.predictions.decoder.bias": None}
    lm = npllm.load(changed(PUBLISHED, tmp_path / "without", without, architectures=["BertForMaskedLM"]))
    assert lm.weights.lm_head is lm.weights.embed_tokens
    np.testing.assert_array_equal(lm.weights.lm_head_bias, bias.astype(np.float32))
    lm = npllm.load(changed(PUBLISHED, tmp_path / "other", {"cls.predictions.decoder.bias": bias + 1}))
    np.testing.assert_array_equal(lm.weights.lm_head_bias, (bias + 1).astype(np.float32))  # as transformers does


def test_a_norm_under_both_names_is_refused(tmp_path):
    twice = {"bert.embeddings.LayerNorm.weight": np.ones(24, dtype=np.float32)}
    with pytest.raises(ModelFileError, match=r"expected bert.embeddings.LayerNorm.gamma or .*weight, got both"):
        npllm.load(changed(PUBLISHED, tmp_path, twice))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"is_decoder": True}, "is_decoder: expected False, got True; npllm does not compute it"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: expected 'absolute', got"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: expected 'gelu_new'"),
        ({"type_vocab_size": 2}, "bert.embeddings.token_type_embeddings.weight expected [2, 24], got [3, 24]"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: expected a positive number"),
        ({"hidden_size": 25}, "hidden_size: expected a multiple of num_attention_heads, 4"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, keys, message):
    with pytest.raises(ModelFileError) as raised:
        npllm.load(changed(PUBLISHED, tmp_path, **keys))
    assert message in str(raised.value)


def test_it_has_its_defaults():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 2, "intermediate_size": 2}
    config = read_config({"model_type": "bert", "vocab_size": 9, "max_position_embeddings": 9} | sizes)
    assert (config.hidden_act, config.layer_norm_epsilon, config.type_vocab_size) == ("gelu", 1e-12, 2)
    assert config.tie_word_embeddings
    assert config.bidirectional


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", [*MASKED, *HEADS])
def test_a_converted_model_is_the_same(tmp_path, name, dtype):
    convert(GOLDEN / name, tmp_path / "new", dtype)
    lm, new = npllm.load(GOLDEN / name, dtype=dtype), npllm.load(tmp_path / "new", dtype=dtype)
    ids = np.array([2, 8, 9, 4, 3])
    np.testing.assert_array_equal(npllm.transform(ids, new)[0], npllm.transform(ids, lm)[0])


# What it does not do


def test_of_a_published_model_the_masked_lm_is_written_as_what_it_is(tmp_path, capsys):
    folder = tmp_path / "m"
    assert main(["convert", str(GOLDEN / PUBLISHED), str(folder), "--dtype", "float32"]) == 0
    assert "only what it computes: the masked LM, as BertForMaskedLM\n" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert convert(GOLDEN / "bert", tmp_path / "n", "float32").part == ""
    ids = [2, 8, 9, 4, 3]
    logits, _ = npllm.forward(ids, npllm.load(folder))
    np.testing.assert_array_equal(logits, npllm.forward(ids, npllm.load(GOLDEN / PUBLISHED, dtype="float32"))[0])


def test_it_writes_nothing(capsys):
    lm = npllm.load(GOLDEN / "bert")
    with pytest.raises(UsageError, match="expected a model that predicts the next token, got bert, which fills gaps"):
        npllm.generate(lm, "Paris is")
    with pytest.raises(UsageError, match="which fills gaps: npllm fill"):
        Chat(lm)
    with pytest.raises(UsageError, match="cache: expected None with BERT"):
        npllm.forward([2, 8, 3], lm, empty_cache(lm.config, 3, like=lm.weights.norm))
    with pytest.raises(UsageError, match=r"got a classifier; npllm\.apps\.classify classifies"):
        npllm.generate(npllm.load(GOLDEN / HEADS[0]), "Paris is")
    with pytest.raises(UsageError, match="the model has no LM head"):
        npllm.forward([2, 8, 3], npllm.load(GOLDEN / HEADS[0]))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "Paris"],
        ["generate", "Paris " * 99, "--prompt-lookup", "2"],
        ["chat"],
        ["evaluate", __file__],
        ["evaluate", __file__, "--window", "999"],
        ["inspect", "Paris", "-n", "2"],
        ["bench", "decode", "--context", "9999"],
        ["bench", "prefill", "--context", "9999"],
        ["bench", "cache"],
        pytest.param(["bench", "load"], marks=pytest.mark.slow),
        ["selftest"],
    ],
)
def test_each_command_that_writes_says_what_it_is(capsys, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main([*command, "-m", str(GOLDEN / "bert")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npllm: error: --model: expected a model that predicts the next token, got bert, which fills")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", __file__, "--against", str(GOLDEN / "bert")], "--against: expected a model that predicts the"),
        (["generate", "a", "--draft-model", str(GOLDEN / "bert")], "--draft-model: expected a model that predicts the"),
        (["compare", "a", "--b-chunk", "2", "-m", str(GOLDEN / "bert")], "--b-chunk: expected none with BERT, where"),
        (
            ["inspect", "a " * 999, "--html", "new.html", "-m", str(GOLDEN / "bert")],
            "--html: a page needs a model whose",
        ),
    ],
)
def test_the_flag_that_names_it_is_said(capsys, command, message):
    assert main([*command, "-m", str(GOLDEN / "llama-biases-tied")] if "-m" not in command else command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"npllm: error: {message}")
    assert err.count("\n") == 1


# Looking inside


def test_a_look_shows_the_prediction_at_the_same_position(capsys):
    lm = npllm.load(GOLDEN / "bert")
    seen = look(lm, lm.tokenizer.encode("Paris is the [MASK] of France"))
    probabilities, ranks = given(seen)
    exp = np.exp(seen.logits - seen.logits.max(axis=-1, keepdims=True))
    own = (exp / exp.sum(axis=-1, keepdims=True))[np.arange(len(seen.ids)), seen.ids]
    np.testing.assert_allclose(probabilities, own, rtol=1e-5)
    assert ranks.min() >= 1
    at_end = lens(seen, [4], 1)
    assert at_end.ids[-1, 0, 0] == seen.logits[4].argmax()
    np.testing.assert_allclose(at_end.next[-1], own[4], rtol=1e-5)

    assert main(["inspect", "Paris is the [MASK]", "--token", "4", "-m", str(GOLDEN / "bert")]) == 0
    out, _ = capsys.readouterr()
    assert "In the place of token 4 '[MASK]'" in out
    assert "KV cache" not in out
    assert "one more token" not in out
    for text, place in [("a [MASK] is [MASK]", "2 '[MASK]'"), ("Paris is", "3 '[SEP]'")]:
        assert main(["inspect", text, "-m", str(GOLDEN / "bert")]) == 0
        assert f"In the place of token {place}" in capsys.readouterr().out
    assert main(["inspect", "Paris", "--json", "-m", str(GOLDEN / "bert")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_cache"] is None
    assert all(token["probability"] > 0 for token in found["tokens"])
    assert found["cost"]["next_token"] is None
    assert main(["inspect", "Paris", "--html", "page.html", "-m", str(GOLDEN / "bert")]) == 2
    assert "--html: a page needs a model whose tokens see only earlier ones, got bert" in capsys.readouterr().err


def test_traces_are_compared_in_one_pass_without_a_mask(capsys, tmp_path):
    model = str(GOLDEN / "bert")
    assert main(["compare", model, str(GOLDEN / PUBLISHED), "Paris is", "--json"]) in (1, 2)
    capsys.readouterr()
    assert main(["trace", "Paris is the", "-m", model, "-o", str(tmp_path / "a.safetensors")]) == 0
    assert main(["compare", str(tmp_path / "a.safetensors"), model, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["b"]["passes"] == "in one pass"
    values, _ = read_trace(tmp_path / "a.safetensors")
    other = {name: value.copy() for name, value in values.items()}
    other["layers.0.attention.scores"][0, 0, 3] += 1  # above the diagonal
    assert [row.name for row in compare(values, other) if row.beyond] == ["layers.0.attention.scores"]


def test_show_and_ablate_work(capsys):
    assert main(["show", "-m", str(GOLDEN / "bert")]) == 0
    out = capsys.readouterr().out
    assert "(embed_token_types): Embedding(2, 24)" in out
    assert "KV cache: none, every token sees all others" in out
    assert out.index("(norm): LayerNorm(24, eps=0.01)") < out.index("(layers)") < out.index("(head_dense): Linear")
    lm = npllm.load(GOLDEN / "bert")
    ids = lm.tokenizer.encode("Paris is the [MASK] of France")
    found = without_layers(lm, ids, position=4)
    logits, _ = npllm.forward(ids, lm)
    assert found.token == logits[4].argmax()
    assert found.probability == pytest.approx(softmax(logits[4]).max(), rel=1e-5)
    assert all(abs(one - found.probability) > 1e-6 for one in found.without)


# transformers


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", range(30))
def test_random_bert_agrees_with_transformers(tmp_path, seed):
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    golden = tool("make_golden")
    torch, rng = golden.torch, np.random.default_rng(seed)

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    heads = pick(1, 2, 3, 4)
    keys = {
        "vocab_size": int(rng.integers(5, 90)),
        "hidden_size": heads * pick(1, 3, 4, 8),
        "intermediate_size": int(rng.integers(1, 60)),
        "num_hidden_layers": pick(1, 2, 3),
        "num_attention_heads": heads,
        "max_position_embeddings": 40,
        "type_vocab_size": pick(1, 2, 3),
        "layer_norm_eps": 10 ** rng.uniform(-12, -1),
        "hidden_act": pick("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"),
        "tie_word_embeddings": pick(True, False),
        "id2label": golden.LABELS,
    }
    names = ("BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertForTokenClassification")
    model = getattr(transformers, names[seed % 4])(transformers.BertConfig(**keys))
    golden.randomize(model, seed)
    dtype = [torch.float32, torch.float16, torch.bfloat16][seed % 3]
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=["1GB", "4KB"][seed % 2])
    reference = "BertForMaskedLM" if seed % 4 == 1 else names[seed % 4]
    model = getattr(transformers, reference).from_pretrained(tmp_path, dtype=torch.float32).eval()

    lm = npllm.load(tmp_path)
    ids = rng.integers(0, keys["vocab_size"], rng.integers(1, 25))
    types = rng.integers(0, keys["type_vocab_size"], len(ids))
    seen = {}
    hidden, _ = npllm.transform(ids, lm, token_types=types, tap=npllm.record(seen))
    expected = golden.trace(model, ids.tolist(), token_type_ids=torch.tensor(types[None]))
    with torch.no_grad():
        logits = model(torch.tensor(ids[None]), token_type_ids=torch.tensor(types[None])).logits[0].numpy()
    if seed % 4 < 2:
        seen["logits"] = npllm.lm_head(hidden, lm)
        assert_close("logits of the model", seen["logits"], logits)
    elif seed % 4 == 2:
        assert_close("scores", family_of(lm.config).sequence_head(hidden, lm.weights, ids, 0), logits)
    else:
        assert_close("scores", token_classification_head(hidden, lm.weights), logits)
    assert {*seen} == {name for name in expected if not name.endswith(".visible")}
    for name, value in seen.items():
        assert_close(name, value, expected[name])
