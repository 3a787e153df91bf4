"""npllm inspect on the command line: what it prints and writes, and what it refuses."""

import json
import re
import sys

import numpy as np
import pytest
from checkpoints import write_folder
from default_model import needs_default_model
from safetensors.numpy import load_file, save_file

from npllm import forward, generate, load, steps
from npllm.apps.chat import Chat
from npllm.cli.main import main
from npllm.inspect.attribution import attribution
from npllm.inspect.edits import Edit, edit_tap
from npllm.inspect.heads import induction_scores
from npllm.inspect.look import look
from npllm.inspect.patching import patching_grid
from npllm.inspect.summary import finite, summary
from npllm.sampling import softmax
from npllm.tap import untapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


@pytest.fixture
def inspect(capsys, monkeypatch, folder):
    """`npllm inspect`, run in-process with the tiny model as the default: (exit code, stdout, stderr)."""
    monkeypatch.setenv("NPLLM_MODEL", str(folder))
    for name in ("NPLLM_DEVICE", "NPLLM_DEBUG", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv):
        code = main(["inspect", *(str(word) for word in argv)])
        return code, *capsys.readouterr()

    return run


def refused(done, code, message):
    got, out, err = done
    assert (got, out) == (code, ""), done
    assert re.fullmatch(r"npllm: error: [^\n]+\n", err), err
    assert re.search(message, err), err


def test_the_text(inspect, lm):
    code, out, err = inspect("Hello")
    assert (code, err) == (0, "")
    assert out.startswith("5 tokens through 2 blocks (phi3): D = 64,")
    assert "Attention, layer 0, head 0" in out
    assert "\x1b" not in out
    best = int(np.argmax(look(lm, lm.tokenizer.encode("Hello")).logits[-1]))
    assert re.search(rf"\n +1 +{best} ", out)


def test_layer_head_token_and_top_k_choose_what_is_told(inspect, lm):
    _, out, _ = inspect("Hello", "--layer", 1, "--head", 3, "--token", 2, "--top-k", 7, "--json")
    ids = lm.tokenizer.encode("Hello")
    assert json.loads(out) == json.loads(json.dumps(finite(summary(look(lm, ids, "1"), [(1, 3)], 2, 7))))
    assert out.count("\n") == 1


def test_only_these_sections_are_shown(inspect):
    code, out, _ = inspect("Hello", "--only", "tokens,next")
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert code == 0
    assert [title.split()[0] for title in titles[1:]] == ["Tokens", "Next"]
    found = json.loads(inspect("Hello", "--only", "next", "--json")[1])
    assert list(found) == ["model", "not_finite", "token", "next"]


def test_several_heads_have_a_map_each(inspect, lm):
    _, out, _ = inspect("Hello", "--only", "attention", "--head", "0.1,1.3")
    assert re.findall(r"^Attention, layer (\d), head (\d)", out, re.MULTILINE) == [("0", "1"), ("1", "3")]
    found = json.loads(inspect("Hello", "--only", "attention", "--head", "0.1,1.3", "--json")[1])
    weights = look(lm, lm.tokenizer.encode("Hello")).values["layers.1.attention.weights"][3]
    assert [(one["layer"], one["head"]) for one in found["maps"]] == [(0, 1), (1, 3)]
    np.testing.assert_allclose(found["maps"][1]["attention"], weights, rtol=1e-5)


def test_parts_are_switched_off_and_the_untouched_probability_stands_beside(inspect, lm):
    found = json.loads(inspect("Hello", "--only", "next", "--without", "head:1.2,feedforward:0=0.5", "--json")[1])
    ids = lm.tokenizer.encode("Hello")
    edits = [Edit(1, "head", 2), Edit(0, "feedforward", scale=0.5)]
    assert found["without"] == ["head:1.2", "feedforward:0=0.5"]
    edited, plain = (softmax(forward(ids, lm, tap=tap)[0][-1]) for tap in (edit_tap(lm, edits), untapped))
    for one in found["next"]:
        assert one["probability"] == pytest.approx(edited[one["id"]], rel=1e-4)
        assert one["unedited"] == pytest.approx(plain[one["id"]], rel=1e-4)
    text = inspect("Hello", "--only", "next", "--without", "head:1.2")[1]
    assert "\nedited: head:1.2\n" in text
    assert "unedited" in text


def test_the_continuation_and_the_page_are_those_of_the_edited_model(inspect, lm, tmp_path):
    ids, edits = lm.tokenizer.encode("Hello"), [Edit(1, "head", 2), Edit(0, "feedforward", scale=-2.0)]
    expected = [step.id for step in steps(lm, ids, max_new_tokens=6, tap=edit_tap(lm, edits))]
    assert expected != [step.id for step in steps(lm, ids, max_new_tokens=6)]
    how = ("Hello", "-n", "6", "--without", "head:1.2,feedforward:0=-2")
    found = json.loads(inspect(*how, "--only", "tokens", "--json")[1])
    assert [one["id"] for one in found["tokens"]] == [*ids, *expected]
    inspect(*how, "--html", tmp_path / "page.html", "--only", "tokens")
    assert '"name":"tiny, edited: head:1.2, feedforward:0=-2"' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_heads_and_attribution_are_those_of_the_library(inspect, lm):
    ids = lm.tokenizer.encode("Hello")
    found = json.loads(inspect("Hello", "--only", "heads,attribution", "--against", "#65", "--json")[1])
    expected = attribution(lm, ids, int(look(lm, ids).logits[-1].argmax()), against=65)
    np.testing.assert_allclose(found["attribution"]["heads"], expected.heads, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["heads"]["scores"]["induction"], induction_scores(lm), rtol=1e-4)
    text = inspect("Hello", "--only", "heads,attribution", "--answer", "e", "--token", "2")[1]
    assert "Attribution: what each part adds to the logit after token 2 'l'" in text
    assert "\n  'e': " in text


def test_patching_shows_where_the_answer_is(inspect, lm):
    ids, other = lm.tokenizer.encode("Hello"), lm.tokenizer.encode("Hexlo")
    found = json.loads(inspect("Hello", "--only", "patching", "--other", "Hexlo", "--json")[1])["patching"]
    answers = [int(look(lm, text).logits[-1].argmax()) for text in (ids, other)]
    assert [found["token"], found["against"]] == answers
    expected = patching_grid(lm, ids, other, answers[0], against=answers[1])
    np.testing.assert_allclose(found["rows"], expected, rtol=1e-3, atol=1e-5)
    text = inspect("Hello", "--only", "patching", "--other", "Hexlo")[1]
    assert "\n  2 'l', there 'x'\n" in text
    rows = text.splitlines()[-2:]
    assert [len(row.split()[0]) for row in rows] == [1, 1]
    assert rows[-1].endswith("█")  # in the last layer, at the last token


def test_a_page_has_only_these_sections(inspect, tmp_path):
    assert inspect("Hello", "--html", tmp_path / "page.html", "--only", "shapes,attention")[0] == 0
    assert inspect("Hello", "--html", tmp_path / "whole.html")[0] == 0
    assert (tmp_path / "page.html").stat().st_size < (tmp_path / "whole.html").stat().st_size


def test_ids_stand_for_the_prompt_and_need_no_tokenizer(inspect, tmp_path, lm):
    ids = ",".join(map(str, lm.tokenizer.encode("Hello")))
    write_folder(tmp_path / "bare", tokenizer=False)
    with_text = json.loads(inspect("Hello", "--json")[1])
    without = json.loads(inspect("--ids", ids, "--model", tmp_path / "bare", "--json")[1])
    assert without["attention"] == with_text["attention"]
    assert without["next"][0] == with_text["next"][0] | {"text": None, "bytes": None}
    assert f"\n  0  {ids.split(',')[0]}  #{ids.split(',')[0]}" in inspect("--ids", ids, "--model", tmp_path / "bare")[1]
    refused(inspect("Hello", "--model", tmp_path / "bare"), 4, "tokenizer.json")
    code, _, _ = inspect("--ids", ids, "--model", tmp_path / "bare", "--html", tmp_path / "page.html")
    assert code == 0


def test_chat_says_the_prompt_to_the_model(inspect, lm):
    result = json.loads(inspect("Hello", "--chat", "--json")[1])
    assert [token["id"] for token in result["tokens"]] == Chat(lm).ids_with("Hello")


def test_the_prompt_is_continued_first_where_that_is_asked_for(inspect, lm):
    result = json.loads(inspect("Hello", "-n", 3, "--json")[1])
    made = generate(lm, "Hello", max_new_tokens=3)
    assert [token["id"] for token in result["tokens"]] == [*made.prompt_ids, *made.ids]
    assert all(token["rank"] == 1 for token in result["tokens"][5:])


def test_a_page_is_written(inspect, tmp_path):
    done = inspect("Hello", "--html", tmp_path / "page.html")
    assert done == (0, "", f"npllm: wrote {tmp_path / 'page.html'} for 5 tokens\n")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '"name":"tiny"' in page  # without the parent folders
    assert str(tmp_path) not in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_follows_a_link_and_replaces_the_file(inspect, tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inspect("Hello", "--html", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_leaves_the_old_one(inspect, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("old")

    def full(self, mode="r", *_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", full)
        done = inspect("Hello", "--html", tmp_path / "page.html")
    refused(done, 2, "cannot be written: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["Hello", "--layer", "2"], "--layer: expected 0 to 1 \\(there are 2 layers\\), got 2"),
        (["Hello", "--head", "4"], "--head: expected 0 to 3 \\(there are 4 heads\\), got 4"),
        (["Hello", "--token", "5"], "--token: expected 0 to 4 \\(there are 5 tokens\\), got 5"),
        (["Hello", "--token", "-1"], "--token: expected 0 to 4"),
        (["Hello", "--top-k", "289"], "--top-k: expected 1 to 288"),
        (["Hello", "--head", "0.4"], "--head: expected 0 to 3 \\(there are 4 heads\\), got 4"),
        (["Hello", "--head", "0.1", "--layer", "1"], "--head: expected N, or without --layer L.N"),
        (["Hello", "--only", "lense"], "--only: expected sections of .*, got 'lense'; did you mean lens\\?"),
        (
            ["Hello", "--only", "heads", "--html", "x"],
            "--only: expected sections of .* with --html, got heads; npllm lab",
        ),
        (["Hello", "--without", "head:5"], "--without: expected head:LAYER.HEAD, .*, got 'head:5'"),
        (
            ["Hello", "--without", "head:2.0"],
            "--without: edit of head: layer: expected 0 to 1 \\(there are 2 layers\\), got 2",
        ),
        (["Hello", "--answer", "e"], "--answer, --against: need --only attribution"),
        (["Hello", "--only", "patching"], "--other: a second prompt and --only patching need each other"),
        (["Hello", "--other", "x"], "--other: a second prompt and --only patching need each other"),
        (["Hello", "--only", "patching", "--other", "Hi"], "the same number of tokens, got 5 and 2"),
        (["Hello", "--only", "attribution", "--answer", "xyz"], "--answer: expected one token, got 'xyz', which is 3"),
        (["Hello", "--only", "attribution", "--answer", "#288"], "--answer: expected 0 to 287, got 288"),
        (["Hello", "--layer", "one"], "--layer: invalid int value"),
        (["Hello", "-n", "-1"], "-n: expected 0 or more, got -1"),
        (["Hello", "--json", "--html", "x"], "not allowed with argument"),
        (["Hello", "--ids", "1"], "--ids: cannot be combined with PROMPT: the ids are"),
        (["--chat", "--ids", "1"], "--ids: cannot be combined with --chat: the ids are"),
        (["--ids", "1;2"], "--ids: expected comma-separated token ids"),
        (["--ids", "0,288"], "token 1: expected an id from 0 to 287, got 288"),
        ([""], "prompt is empty"),
        (["x" * 300], "too long: 300 tokens"),
        (["x" * 300, "-n", "1"], "too long: 300 tokens"),
        (["Hello", "--html", "no/such/x"], "--html no/such/x: expected an existing folder"),
        (["Hello", "--html", "."], "--html .: expected the name of a file, got a folder, a disk or a socket"),
    ],
)
def test_what_cannot_be_done_is_refused(inspect, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    refused(inspect(*argv), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_long_for_a_page_is_refused_with_the_arithmetic(inspect, monkeypatch, tmp_path):
    monkeypatch.setattr("npllm.inspect.page.LARGEST", 400)
    refused(
        inspect("x" * 20, "--html", tmp_path / "x"),
        2,
        r"--html: expected at most 10 tokens, because the page holds 8 attention maps of tokens x tokens, got 20",
    )
    assert inspect("x" * 10, "--html", tmp_path / "x")[0] == 0


def test_a_look_that_would_not_fit_is_refused(inspect, monkeypatch, lm):
    monkeypatch.setattr("npllm.cli.options.load", lambda *_, **__: lm)
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 50_000)
    refused(inspect("x" * 60), 5, "traced values")


def test_a_broken_model_is_shown_and_not_hidden(inspect, folder, tmp_path):
    write_folder(tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, :] = 3e38  # finite, but the product overflows
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with np.errstate(all="ignore"):
        code, out, err = inspect("Hello", "--model", tmp_path / "broken")
        result = json.loads(inspect("Hello", "--model", tmp_path / "broken", "--json")[1])
        assert inspect("Hello", "--model", tmp_path / "broken", "--html", tmp_path / "x")[0] == 0
    assert (code, err) == (0, "")
    assert re.search(r"not finite: layers\.1\.feedforward\.output: \d of 320 elements are NaN or infinite\n", out)
    assert 1 <= result["not_finite"]["layers.1.feedforward.output"] <= 5
    assert result["next"][0]["probability"] is None


class Terminal:
    """A stdout that claims to be a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    def run(inspect, *argv):
        stdout = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            assert inspect(*argv)[0] == 0
        return stdout.text

    return run


def test_a_terminal_gets_colour_where_rich_is_there_and_nobody_said_no(inspect, terminal, monkeypatch):
    pytest.importorskip("rich", reason="rich is not installed: pip install -e '.[inspect]'")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in terminal(inspect, "Hello")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in terminal(inspect, "Hello")


def test_a_terminal_without_rich_gets_the_plain_text(inspect, terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert terminal(inspect, "Hello").startswith("5 tokens through")


def test_json_on_a_terminal_holds_nothing_that_it_obeys(inspect, terminal):
    text = terminal(inspect, "\x9b2J\x1b[31m\u202e", "--json")
    assert text.removesuffix("\n").isprintable()
    assert text.isascii()
    assert json.loads(text)["tokens"]


@needs_default_model
def test_the_default_model_knows_the_capital_of_france(capsys, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL", raising=False)
    assert main(["inspect", "The capital of France is", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["next"][0]["text"] == " Paris"
    assert result["next"][0]["probability"] == pytest.approx(0.77, abs=0.03)
    assert result["lens"][-1]["likeliest"][0]["text"] == " Paris"
    assert [bytes.fromhex(token["bytes"]).decode() for token in result["tokens"]] == [
        "The",
        " capital",
        " of",
        " France",
        " is",
    ]
