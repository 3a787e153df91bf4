"""Models that classify texts or tokens: what is read from their files, and what they return."""

import json

import numpy as np
import pytest
from bridge import tool
from checkpoints import TOKENS, write_folder, write_gpt2_folder
from safetensors.numpy import load_file, save_file
from tolerance import assert_close

import npllm
from npllm.apps.classify import classify, classify_tokens
from npllm.cli.main import main
from npllm.errors import ModelFileError, UsageError
from npllm.families import read_config
from npllm.heads import sequence_classification_head, token_classification_head
from npllm.masks import causal

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
LABELS = {"0": "O", "1": "B-PER", "2": "I-PER"}


def write(folder, kind, model_type="phi3", **keys):
    name = {"phi3": "Phi3", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[model_type]
    return write_folder(folder, model_type, architectures=[name + kind], id2label=LABELS, **keys)


@pytest.fixture(params=[SEQUENCE, TOKEN])
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    """A valid classifier folder for a test to break."""
    write(tmp_path / "model", kind)
    return tmp_path / "model"


def change(folder, tensors=None, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    if tensors is not None:
        weights = load_file(folder / "model.safetensors") | tensors
        save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")


def answer(lm, prompt):
    return (classify if lm.config.architectures[0].endswith(SEQUENCE) else classify_tokens)(lm, prompt)


# What is read


@pytest.mark.parametrize("model_type", ["phi3", "llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_score_is_read_in_the_place_of_the_lm_head(tmp_path, kind, model_type, tied):
    tensors = write(tmp_path / "m", kind, model_type, tied=tied)
    lm = npllm.load(tmp_path / "m")
    assert lm.weights.lm_head is None
    np.testing.assert_array_equal(lm.weights.score, tensors["score.weight"])
    if kind == TOKEN:
        np.testing.assert_array_equal(lm.weights.score_bias, tensors["score.bias"])
    else:
        assert lm.weights.score_bias is None
    assert lm.config.id2label == ("O", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
        ({"id2label": {str(i): str(i) for i in range(12)}}, tuple(str(i) for i in range(12))),  # "2" comes before "10"
        ({"id2label": {"0": "only"}, "num_labels": 1}, ("only",)),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({}, ("LABEL_0", "LABEL_1")),
        ({"id2label": None, "num_labels": None}, ("LABEL_0", "LABEL_1")),
    ],
)
def test_labels_stand_in_the_order_of_the_scores(tmp_path, keys, labels):
    write_folder(tmp_path / "m", tokenizer=False)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert read_config(config | {"architectures": ["Phi3" + SEQUENCE], **keys}).id2label == labels
    assert read_config(config | keys).id2label == ()  # a language model has none, whatever the file says


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"id2label": {"0": "a", "2": "c"}}, "id2label: expected an object of labels, with the keys from 0 on"),
        ({"id2label": {"0": 1}}, "id2label: expected an object of labels"),
        ({"id2label": ["a", "b"]}, "id2label: expected an object of labels"),
        ({"id2label": {}}, "id2label: expected an object of labels"),
        ({"id2label": "a"}, "id2label: expected an object of labels"),
        ({"id2label": None, "num_labels": 0}, "num_labels: expected a whole number from 1 to 65536, got 0"),
        ({"id2label": None, "num_labels": 2**40}, "num_labels: expected a whole number from 1 to 65536"),
        ({"id2label": None, "num_labels": "3"}, "num_labels: expected a whole number from 1 to 65536, got '3'"),
        ({"id2label": None, "num_labels": True}, "num_labels: expected a whole number from 1 to 65536, got True"),
        ({"num_labels": 2}, "num_labels: expected 3, the number of labels in id2label, got 2"),
        ({"id2label": {"0": "a", "1": "b"}}, "score.weight expected [2, 64], got [3, 64]"),
        ({"architectures": [3]}, "architectures: expected a list of strings, got [3]"),
        ({"architectures": ["Phi3ForCausalLM"]}, "1 missing tensors: lm_head.weight"),
        ({"pad_token_id": -2}, "pad_token_id: expected a token id"),
    ],
)
def test_labels_that_make_no_sense_are_refused(folder, keys, message):
    change(folder, **keys)
    with pytest.raises(ModelFileError) as raised:
        npllm.load(folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"score.weight": None}, "1 missing tensors: score.weight"),
        ({"score.weight": np.ones((64, 3), np.float32)}, "score.weight expected [3, 64], got [64, 3]"),
        ({"score.weight": np.full((3, 64), np.nan, np.float32)}, "score.weight: expected finite numbers"),
        ({"lm_head.weight": np.ones((288, 64), np.float32)}, "1 unknown tensors: lm_head.weight"),
    ],
)
def test_a_score_that_is_wrong_is_refused(folder, tensors, message):
    change(folder, tensors)
    with pytest.raises(ModelFileError) as raised:
        npllm.load(folder)
    assert message in str(raised.value)


def test_the_bias_belongs_to_the_score_of_tokens(folder, kind):
    change(folder, {"score.bias": None if kind == TOKEN else np.ones(3, np.float32)})
    fault = "missing" if kind == TOKEN else "unknown"
    with pytest.raises(ModelFileError, match=f"1 {fault} tensors: score.bias"):
        npllm.load(folder)


# What it returns


def test_a_text_gets_the_shares_of_all_labels_the_best_first(tmp_path):
    write(tmp_path / "m", SEQUENCE)
    lm = npllm.load(tmp_path / "m")
    ids = np.array(lm.tokenizer.encode("the hen"))
    hidden, _ = npllm.transform(ids, lm)
    logits = hidden[-1] @ lm.weights.score.T
    answered = classify(lm, "the hen")
    assert answered == classify(lm, ids.tolist())
    assert [entry["label"] for entry in answered] == [lm.config.id2label[i] for i in np.argsort(-logits)]
    shares = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1]
    np.testing.assert_allclose([entry["score"] for entry in answered], shares, rtol=1e-5)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification", None])
def test_scores_are_what_the_problem_makes_of_them(tmp_path, problem):
    write(tmp_path / "m", SEQUENCE, problem_type=problem)
    lm = npllm.load(tmp_path / "m")
    ids = np.arange(5)
    logits = npllm.transform(ids, lm)[0][-1] @ lm.weights.score.T
    expected = {"multi_label_classification": 1 / (1 + np.exp(-logits)), "regression": logits}.get(
        problem, np.exp(logits) / np.exp(logits).sum()
    )
    got = {entry["label"]: entry["score"] for entry in classify(lm, ids.tolist())}
    np.testing.assert_allclose([got[label] for label in lm.config.id2label], expected, rtol=1e-5)


def test_a_single_label_is_a_probability(tmp_path):
    write(tmp_path / "m", SEQUENCE)
    change(tmp_path / "m", {"score.weight": 1000 * np.ones((1, 64), np.float32)}, id2label={"0": "spam"})
    lm = npllm.load(tmp_path / "m")
    for text in ("a", "b", "c", "d"):
        [entry] = classify(lm, text)
        assert entry["label"] == "spam"
        assert entry["score"] in (pytest.approx(0.0), pytest.approx(1.0))


def test_each_token_gets_its_best_label(tmp_path):
    write(tmp_path / "m", TOKEN)
    lm = npllm.load(tmp_path / "m")
    ids = lm.tokenizer.encode("the hen")
    logits = npllm.transform(np.array(ids), lm)[0] @ lm.weights.score.T + lm.weights.score_bias
    answered = classify_tokens(lm, "the hen")
    assert [entry["id"] for entry in answered] == ids
    assert [entry["word"] for entry in answered] == [TOKENS[i] for i in ids]
    assert [entry["index"] for entry in answered] == list(range(len(ids)))
    assert [entry["entity"] for entry in answered] == [lm.config.id2label[i] for i in np.argmax(logits, axis=-1)]
    shares = np.max(np.exp(logits), axis=-1) / np.exp(logits).sum(axis=-1)
    np.testing.assert_allclose([entry["score"] for entry in answered], shares, rtol=1e-5)
    assert [entry["word"] for entry in classify_tokens(lm._replace(tokenizer=None), ids)] == [None] * len(ids)


def test_a_model_for_one_thing_is_not_asked_for_another(folder, kind):
    lm = npllm.load(folder)
    asked, ending = (classify_tokens, TOKEN) if kind == SEQUENCE else (classify, SEQUENCE)
    with pytest.raises(UsageError, match=rf"expected one that classifies .*\.\.\.{ending}\), got Phi3{kind}"):
        asked(lm, "the hen")


def test_a_language_model_does_not_classify(tmp_path):
    write_gpt2_folder(tmp_path / "m")
    for asked in (classify, classify_tokens):
        with pytest.raises(UsageError, match=r"expected one that classifies .*, got GPT2LMHeadModel"):
            asked(npllm.load(tmp_path / "m"), "the hen")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the text is empty"),
        ("", "the text is empty"),
        ([1] * 257, "the text is too long: 257 tokens, but the model's context of 256 has room for 256"),
        ([1, 288], "token 1: expected an id from 0 to 287, got 288"),
        ([-1], "token 0: expected an id"),
    ],
)
def test_a_text_that_cannot_be_classified_is_refused(folder, prompt, message):
    with pytest.raises(UsageError, match=message):
        answer(npllm.load(folder), prompt)


def test_the_command_line_shows_the_labels_and_does_not_generate(folder, kind, capsys):
    assert main(["show", "--model", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "labels: O, B-PER, I-PER\n" in shown
    assert "lm_head" not in shown
    assert f"(score): Linear(in_features=64, out_features=3, bias={kind == TOKEN})" in shown
    assert main(["generate", "--model", str(folder), "the hen"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "npllm: error: --model: expected a model that predicts the next token, got a classifier; npllm"
    )
    assert err.count("\n") == 1
    (folder / "tokenizer.json").unlink()
    for call in (npllm.generate, lambda *text: next(npllm.stream(*text))):
        with pytest.raises(
            UsageError, match=r"got a classifier; npllm\.apps\.classify classifies with it, from Python"
        ):
            call(npllm.load(folder), "the hen")


def test_the_command_line_shows_a_gpt2(tmp_path, capsys):
    write_gpt2_folder(tmp_path / "m", prefix="transformer.")
    assert main(["show", "--model", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    for line in (
        "  (embed_positions): Embedding(64, 48) ",
        "    (0-1): 2 x Block\n      (ln_1): LayerNorm(48, eps=1e-05) ",
        "(c_fc): Linear(in_features=48, out_features=192, bias=True) ",
        "(activation_fn): GELU(tanh)\n",
        "  (norm): LayerNorm(48, eps=1e-05) ",
        "(lm_head): Linear(in_features=48, out_features=288, bias=False), tied: it is embed_tokens\n",
        "KV cache: 768 bytes per token",
    ):
        assert line in shown
    per_block = 4 * 48 + 48 * 144 + 144 + 48 * 48 + 48 + 48 * 192 + 192 + 192 * 48 + 48
    assert f"gpt2: {288 * 48 + 64 * 48 + 2 * per_block + 2 * 48:,} parameters" in shown
    assert main(["trace", "--model", str(tmp_path / "m"), "--ids", "1,2,3", "-o", str(tmp_path / "x.safetensors")]) == 0
    traced = load_file(tmp_path / "x.safetensors")
    assert traced["position_embedding"].shape == (3, 48)
    assert traced["logits"].shape == (3, 288)
    capsys.readouterr()
    assert main(["generate", "--model", str(tmp_path / "m"), "--json", "-n", "3", "the hen"]) == 0
    lm = npllm.load(tmp_path / "m")
    assert json.loads(capsys.readouterr().out)["ids"] == npllm.generate(lm, "the hen", max_new_tokens=3).ids


# Against transformers


@pytest.fixture(scope="module")
def golden():
    """tools/golden/make_golden.py, which randomizes a model's weights and runs transformers."""
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    module.utils.logging.disable_progress_bar()
    return tool("make_golden")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", range(3))
def test_a_gpt2_classifies_as_in_transformers(golden, tmp_path, kind, seed):
    import transformers

    rng = np.random.default_rng(seed)
    config = transformers.GPT2Config(vocab_size=50, n_embd=24, n_head=3, n_layer=2, num_labels=4, pad_token_id=0)
    model = getattr(transformers, "GPT2" + kind)(config).eval()
    golden.randomize(model, seed)
    model.save_pretrained(tmp_path)
    ids = rng.integers(1, 50, (3, 7))
    ids[1, 4:] = 0
    with golden.torch.no_grad():
        theirs = model(golden.torch.tensor(ids)).logits.numpy()
    lm = npllm.load(tmp_path)
    hidden, _ = npllm.transform(ids, lm)
    if kind == SEQUENCE:
        assert_close("scores", sequence_classification_head(hidden, lm.weights, ids, 0), theirs)
    else:
        assert_close("scores", token_classification_head(hidden, lm.weights), theirs)
    assert lm.weights.lm_head is None
    assert answer(lm, ids[0].tolist())


def saved_model(golden, kind, seed, folder):
    """A folder with a tiny random model, and that model as loaded by transformers."""
    import transformers

    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    config = transformers.Phi3Config(
        vocab_size=int(rng.integers(20, 90)),
        hidden_size=heads * 8,
        intermediate_size=int(rng.integers(2, 40)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        sliding_window=[None, 3][seed % 2],
        num_labels=int(rng.integers(1, 6)),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = getattr(transformers, "Phi3" + kind)(config)
    golden.randomize(model, seed)
    model.save_pretrained(folder)
    return getattr(transformers, "Phi3" + kind).from_pretrained(folder, attn_implementation="eager").eval(), rng


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(10))
def test_a_padded_batch_is_classified_as_in_transformers(golden, tmp_path, kind, seed, side):
    model, rng = saved_model(golden, kind, seed, tmp_path)
    lm = npllm.load(tmp_path)
    lengths = [int(length) for length in rng.integers(1, 9, 4)]
    width = max(lengths)
    ids = np.zeros((4, width), dtype=np.int64)  # 0 is the padding
    real = np.array([[(t < n if side == "right" else t >= width - n) for t in range(width)] for n in lengths])
    ids[real] = rng.integers(1, lm.config.vocab_size, sum(lengths))
    with golden.torch.no_grad():
        theirs = model(golden.torch.tensor(ids), attention_mask=golden.torch.tensor(real).long()).logits.numpy()

    places = np.arange(width)
    visible = causal(places, places) & real[:, None, :]
    if lm.config.sliding_window:
        visible &= places > places[:, None] - lm.config.sliding_window
    hidden, _ = npllm.transform(ids, lm, visible=None if side == "right" else visible)
    if kind == SEQUENCE:
        assert_close("scores", sequence_classification_head(hidden, lm.weights, ids, lm.config.pad_token_id), theirs)
    else:
        assert_close("scores", token_classification_head(hidden, lm.weights)[real], theirs[real])


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", range(10))
def test_a_text_is_classified_as_by_transformers_pipeline(golden, tmp_path, kind, seed):
    import transformers
    from checkpoints import write_tokenizer

    model, rng = saved_model(golden, kind, seed, tmp_path)
    write_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model.resize_token_embeddings(len(tokenizer))
    golden.randomize(model, seed)
    model.save_pretrained(tmp_path)
    lm = npllm.load(tmp_path)
    text = " ".join(["the", "hen", "and", "I", "in", "12"][i] for i in rng.integers(0, 6, 5))
    task = "text-classification" if kind == SEQUENCE else "token-classification"
    theirs = transformers.pipeline(task, model=model, tokenizer=tokenizer)(
        text, **({"top_k": None} if kind == SEQUENCE else {"ignore_labels": []})
    )
    ours = answer(lm, text)
    names = ("label",) if kind == SEQUENCE else ("index", "word", "entity")
    assert [[entry[name] for name in names] for entry in ours] == [[entry[name] for name in names] for entry in theirs]
    np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in theirs], rtol=1e-3, atol=1e-5)
