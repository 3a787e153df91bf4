"""npllm compare and npllm evaluate, as users see them."""

import json
import math
import re

import numpy as np
import pytest
from checkpoints import TOKENS, write_folder, write_gguf
from command_line import fails
from default_model import needs_default_model
from safetensors.numpy import load_file, save_file

from npllm import load
from npllm.apps.evaluate import evaluate, joined
from npllm.cli import options
from npllm.inspect.trace import read_trace, write_trace


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same shapes with different weights."""
    path = tmp_path_factory.mktemp("models") / "other"
    write_folder(path, seed=1)
    return path


@pytest.fixture
def traced(npllm, tmp_path):
    """A trace file of "Hello", and a copy with one value of the second layer changed."""
    assert npllm("trace", "Hello", "-o", tmp_path / "good.safetensors").code == 0
    values, metadata = read_trace(tmp_path / "good.safetensors")
    values["layers.1.attention.v"][1, 2, 3] += 1
    write_trace(tmp_path / "bad.safetensors", values, {"ids": metadata["ids"]})
    return tmp_path


# compare


def test_two_files_that_agree(npllm, traced):
    done = npllm("compare", traced / "good.safetensors", traced / "good.safetensors")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "All 37 steps are within the tolerance."
    assert re.search(r"^   layers\.0   17 steps +0 +0  1\.000000  -$", done.out, re.MULTILINE)
    assert ">>" not in done.out


def test_two_files_that_differ(npllm, traced):
    done = npllm("compare", traced / "good.safetensors", traced / "bad.safetensors")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[-2:] == [
        ">> layers.1.attention.v is the first step beyond the tolerance, in 1 of 160 elements,",
        "   the first of them at head 1, token 2, element 3: "
        + "{} in A, {} in B".format(
            *(
                f"{read_trace(traced / name)[0]['layers.1.attention.v'][1, 2, 3]:.6g}"
                for name in ("good.safetensors", "bad.safetensors")
            )
        ),
    ]
    marked = [line for line in lines if line.startswith((">> ", "x "))]
    assert [line.split()[1] for line in marked] == ["layers.1.attention.v", "layers.1.attention.v"]
    assert "layers.1.attention.q_rotated" in done.out, "the layer of the first step is shown in full"
    assert "layers.0.attention.q" not in done.out


def test_json_has_every_step_and_the_first(npllm, traced, folder):
    done = npllm("compare", traced / "good.safetensors", traced / "bad.safetensors", "--json")
    result = json.loads(done.out)
    assert (done.code, done.err, done.out.count("\n")) == (1, "", 1)
    assert result["first"] == "layers.1.attention.v"
    assert [step["name"] for step in result["steps"]] == list(read_trace(traced / "good.safetensors")[0])
    step = next(step for step in result["steps"] if step["name"] == result["first"])
    assert step["shape"] == [2, 5, 16]
    assert step["beyond"] == 1
    assert step["first_beyond"] == [1, 2, 3]
    assert step["max_abs_error"] == pytest.approx(1, abs=1e-6)
    assert step["max_rel_error"] == pytest.approx(
        1 / np.abs(read_trace(traced / "good.safetensors")[0][result["first"]]).max()
    )
    assert step["cosine"] < 1
    assert result["tolerance"] == pytest.approx({"relative": 1e-4, "of_largest": 2e-5})
    assert result["a"]["model"] == str(folder)
    assert result["b"] == {"file": str(traced / "bad.safetensors")}
    assert len(result["ids"]) == 5
    assert (result["only_in_a"], result["only_in_b"]) == ([], [])


def test_all_shows_every_step(npllm, traced):
    done = npllm("compare", traced / "good.safetensors", traced / "good.safetensors", "--all")
    for name in read_trace(traced / "good.safetensors")[0]:
        assert re.search(rf"^   {re.escape(name)} ", done.out, re.MULTILINE)


def test_a_file_is_compared_with_a_model_on_its_own_ids(npllm, traced, folder, other):
    for argv in (["good.safetensors", folder], [folder, "good.safetensors"], ["good.safetensors"]):
        argv = [traced / word if str(word).endswith(".safetensors") else word for word in argv]
        assert npllm("compare", *argv).code == 0
    result = json.loads(npllm("compare", traced / "good.safetensors", other, "--json").out)
    assert result["first"] == "embedding"
    assert json.loads(npllm("compare", traced / "bad.safetensors", "--json").out)["first"] == "layers.1.attention.v"


def test_a_trace_file_may_have_any_name(npllm, traced):
    (traced / "good.safetensors").rename(traced / "x")
    assert npllm("compare", traced / "x", traced / "x").code == 0


def test_a_file_without_ids_takes_those_of_the_command(npllm, traced, lm):
    values, _ = read_trace(traced / "good.safetensors")
    write_trace(traced / "bare.safetensors", values, {})
    ids = ",".join(map(str, lm.tokenizer.encode("Hello")))
    assert npllm("compare", traced / "bare.safetensors", "--ids", ids).code == 0
    assert npllm("compare", traced / "bare.safetensors", traced / "good.safetensors").code == 0
    fails(npllm("compare", traced / "bare.safetensors", "--ids", "1,2"), 2, "same text, got 5 tokens in A and 2 in B")


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


@pytest.mark.parametrize(
    "flags",
    [
        ["--b-no-cache"],
        ["--a-no-cache"],
        ["--a-chunk", 2, "--b-chunk", 3],
        ["--a-no-cache", "--b-chunk", 1],
        ["--b-chunk", 99],
        ["--b-dtype", "float32"],
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", ["Hello, and the 12 others", "H"], ids=["several tokens", "one token"])
def test_one_model_runs_in_two_ways(npllm, flags, prompt):
    done = npllm("compare", *flags, prompt)
    assert (done.code, done.err) == (0, ""), done.out
    assert "All 37 steps" in done.out


def test_the_prompt_may_come_from_stdin_or_as_ids(npllm, lm):
    ids = lm.tokenizer.encode("Hello")
    by_ids = npllm("compare", "--b-no-cache", "--ids", ",".join(map(str, ids)), "--json")
    by_text = npllm("compare", "--b-no-cache", "Hello", "--json")
    from_stdin = npllm("compare", "--b-no-cache", "--json", stdin=b"Hello\n")
    assert json.loads(by_ids.out)["ids"] == ids
    assert by_ids == by_text == from_stdin


def test_two_folders(npllm, folder, other, lm):
    done = npllm("compare", folder, other, "Hello", "--json")
    result = json.loads(done.out)
    assert (done.code, result["first"]) == (1, "embedding")
    assert result["ids"] == lm.tokenizer.encode("Hello")
    assert (result["a"]["model"], result["b"]["model"]) == (str(folder), str(other))
    assert npllm("compare", folder, folder, "--b-no-cache", "--ids", "1,2,3").code == 0


def test_the_same_weights_are_loaded_once_and_others_one_after_the_other(npllm, monkeypatch, other):
    loaded, load_model = [], options.load_model

    def counting(args):
        loaded.append((args.model, args.dtype))
        return load_model(args)

    monkeypatch.setattr(options, "load_model", counting)
    npllm("compare", "--b-no-cache", "Hello")
    assert len(loaded) == 1
    npllm("compare", "--b-dtype", "bfloat16", "Hello")
    assert [dtype for _, dtype in loaded] == ["auto", "auto", "bfloat16"]


@pytest.mark.slow
def test_rounded_weights_have_a_wider_tolerance(npllm, traced):
    for dtype, tolerance in (("bfloat16", 0.2), ("float16", 0.04), ("float32", 1e-4)):
        result = json.loads(npllm("compare", "--a-no-cache", "--b-dtype", dtype, "Hello", "--json").out)
        assert result["tolerance"]["relative"] == tolerance
        assert result["first"] is None
    assert json.loads(npllm("compare", "--b-dtype", "bfloat16", "--tolerance", 1e-4, "Hello", "--json").out)[
        "first"
    ] == ("embedding")
    done = npllm("compare", "--b-dtype", "int8", "Hello")
    fails(done, 2, "--tolerance: expected a value, because int8 has no default.*npllm evaluate --against")
    assert npllm("compare", "--b-dtype", "int8", "--tolerance", 2, "Hello").code == 0


def test_names_in_one_side_only_are_listed(npllm, traced):
    npllm("trace", "Hello", "-o", traced / "few.safetensors", "--only", "norm,*.up")
    done = npllm("compare", traced / "few.safetensors", traced / "good.safetensors")
    assert done.code == 0
    assert "All 4 steps are within" in done.out
    assert re.search(r"^only in B: embedding, layers\.0\.input_layernorm, ", done.out, re.MULTILINE)
    assert "only in A" not in done.out
    result = json.loads(npllm("compare", traced / "few.safetensors", traced / "good.safetensors", "--json").out)
    assert len(result["only_in_b"]) == 33


def test_only_chooses_what_is_compared(npllm, traced):
    result = json.loads(npllm("compare", traced / "good.safetensors", "--only", "*.up,norm", "--json").out)
    assert [step["name"] for step in result["steps"]] == ["layers.0.feedforward.up", "layers.1.feedforward.up", "norm"]
    assert (result["only_in_a"], result["only_in_b"]) == ([], [])


def test_nan_is_shown_and_counted(npllm, traced):
    values, metadata = read_trace(traced / "good.safetensors")
    values["layers.0.feedforward.up"][1, :3] = math.nan
    write_trace(traced / "nan.safetensors", values, {"ids": metadata["ids"]})
    done = npllm("compare", traced / "good.safetensors", traced / "nan.safetensors")
    assert done.code == 1
    assert re.search(r"^>> layers\.0\.feedforward\.up .* \[1, 0\], 3 NaN or inf in B$", done.out, re.MULTILINE)
    assert done.out.endswith(" in A, nan in B\n")
    done = npllm("compare", traced / "nan.safetensors", traced / "nan.safetensors", "--json")
    result = json.loads(done.out)
    assert (done.code, result["first"]) == (1, "layers.0.feedforward.up")
    step = next(step for step in result["steps"] if step["name"] == result["first"])
    assert (step["not_finite_a"], step["not_finite_b"], step["max_abs_error"]) == (3, 3, 0.0)
    done = npllm("compare", traced / "nan.safetensors", traced / "bad.safetensors")
    assert re.search(r"^x  layers\.1 .* attention\.v, 1 step$", done.out, re.MULTILINE)


def test_what_a_file_says_of_itself_cannot_move_the_cursor(npllm, traced):
    values, metadata = read_trace(traced / "good.safetensors")
    write_trace(traced / "wild.safetensors", values, {"ids": metadata["ids"], "model": "\x1b[31m\nred"})
    done = npllm("compare", traced / "wild.safetensors", traced / "good.safetensors")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert r"\x1b[31m\nred" in done.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["Hello"], "A and B are the same run; make them differ, for example with --b-no-cache"),
        (["MODEL", "MODEL", "Hello"], "A and B are the same run"),
        (["--a-no-cache", "--b-no-cache", "Hello"], "A and B are the same run"),
        (["a", "b", "c", "d"], "expected A and B, PROMPT, or all three, got 4 arguments: put quotes around PROMPT"),
        (["--b-no-cache"], "prompt is empty"),
        (["--b-no-cache", ""], "prompt is empty"),
        (["--b-no-cache", "x" * 300], "too long: 300 tokens"),
        (["--b-no-cache", "a\udcff"], "PROMPT: expected UTF-8"),
        (["--b-no-cache", "Hello", "--ids", "1"], "PROMPT and --ids: expected only one of them"),
        (["--b-no-cache", "--ids", "1,,2"], "--ids: expected comma-separated token ids"),
        (["--b-no-cache", "--ids", "0,288"], "token 1: expected an id from 0 to 287, got 288"),
        (["--b-no-cache", "Hello", "--only", "*.wieghts"], r"--only: no value is named \*\.wieghts; did you mean"),
        (["--b-no-cache", "Hello", "--only", "layers.2.*"], "the layers are 0 to 1"),
        (["--b-chunk", "0", "Hello"], "--b-chunk: expected 1 or more"),
        (["--b-chunk", "2", "--b-no-cache", "Hello"], "--b-chunk: expected 1 or more, and not together with --b-no"),
        (["--b-no-cache", "Hello", "--tolerance", "-1"], "--tolerance: expected 0"),
        (["--b-no-cache", "Hello", "--tolerance", "nan"], "--tolerance: expected 0"),
        (["--b-no-cache", "Hello", "--tolerance", "inf"], "--tolerance: expected 0"),
        (["--b-dtype", "int7", "Hello"], "dtype: expected auto"),
        (["--b-device", "gpu", "Hello"], "device: expected auto, cpu"),
        (["GOOD", "GOOD", "Hello"], "PROMPT, --ids: expected neither"),
        (["GOOD", "--ids", "1,2,3,4,5"], "PROMPT, --ids: expected neither"),
        (["GOOD", "GOOD", "--b-chunk", "2"], r"--b-chunk: B is .*good\.safetensors, a trace, for which nothing is"),
        (["GOOD", "MODEL", "--a-no-cache"], "--a-no-cache: A is .*, a trace"),
        (["GOOD", "GOOD", "--only", "*.wieghts"], r"good\.safetensors: --only: no value is named .*did you mean"),
        (["GOOD", "SHORT"], "expected traces of the same text, got 5 tokens in A and 3 in B"),
        (["GOOD", "OTHERS"], "expected the same ids, got .* in A and .* in B at token 1"),
        (
            ["GOOD", "NARROW"],
            r"embedding: expected the same shape on both sides, got \[5, 64\] in A and \[5, 32\] in B",
        ),
        (["GOOD", "none.safetensors"], r"none\.safetensors: cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(npllm, traced, folder, argv, message):
    npllm("trace", "Hel", "-o", traced / "short.safetensors")
    npllm("trace", "HELLO", "-o", traced / "others.safetensors")
    write_folder(traced / "narrow", hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    npllm("trace", "Hello", "-o", traced / "narrow.safetensors", "-m", traced / "narrow")
    files = {name.upper(): traced / f"{name}.safetensors" for name in ("good", "short", "others", "narrow")}
    fails(npllm("compare", *({**files, "MODEL": folder}.get(word, word) for word in argv)), 2, message)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["GOOD", "./nowhere"], 3, "expected a folder or a .gguf file"),
        (["GOOD", "WEIGHTS"], 4, 'expected a trace, got a safetensors file without a list of "names"'),
        (["GOOD", "TEXT"], 4, "expected a trace, which is a safetensors file"),
        (["--b-device", "cuda", "Hello"], 3, "CuPy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_and_devices_that_cannot_be_had(npllm, traced, folder, monkeypatch, argv, code, message):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    (traced / "text").write_text("Hello")
    files = {"GOOD": traced / "good.safetensors", "WEIGHTS": folder / "model.safetensors", "TEXT": traced / "text"}
    fails(npllm("compare", *(files.get(word, word) for word in argv)), code, message)


def traced_file(path, values=None, **metadata):
    """Write a safetensors file with these values, by default one of two tokens."""
    values = {"embedding": np.ones((2, 64), dtype=np.float32)} if values is None else values
    save_file(values, path, {"names": json.dumps(list(values)), "ids": "1,2"} | metadata)


@pytest.mark.parametrize(
    ("write", "code", "message"),
    [
        (lambda path: traced_file(path, names=""), 4, 'without a list of "names"'),
        (lambda path: traced_file(path, ids="1,2,3"), 4, "expected values of equally many tokens, got [2, 3]"),
        (lambda path: traced_file(path, ids="1," + "9" * 18), 2, "token 1: expected an id from 0 to 287, got 9999"),
        (lambda path: traced_file(path, {"embedding": np.ones((2, 65))}), 2, "embedding: expected the same shape"),
        (
            lambda path: traced_file(path, {"embedding": np.ones((2, 64), dtype=np.int8)}),
            4,
            "embedding: expected a ten",
        ),
        (lambda path: traced_file(path, {"x": np.ones((2, 64))}), 2, "A and B have no name in common"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(60)), 4, "a ZIP file, as PyTorch and NumPy write them"),
        (lambda path: path.write_bytes(b""), 4, "an empty file"),
        (lambda path: path.write_bytes(b"\x80\x02}q"), 4, "a pickle, which could run code when it is read"),
        (lambda path: path.mkdir(), 2, "cannot be read: it is not a file"),
    ],
)
def test_files_that_are_no_trace_of_this_model(npllm, folder, tmp_path, write, code, message):
    write(tmp_path / "x.safetensors")
    done = npllm("compare", tmp_path / "x.safetensors", folder)
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_gguf_file_is_a_model_whatever_its_name(npllm, folder, tmp_path):
    write_gguf(tmp_path / "sha256-01", "phi3", "F32")
    done = npllm("compare", tmp_path / "sha256-01", folder, "Hello")
    assert (done.code, done.err) == (0, "")


def test_what_does_not_fit_is_refused(npllm, traced, monkeypatch, lm):
    monkeypatch.setattr(options, "load", lambda *_, **__: lm)
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 20_000)
    fails(npllm("compare", "--b-no-cache", "Hello"), 5, "traced values")
    fails(npllm("compare", traced / "good.safetensors", traced / "good.safetensors"), 5, r"good\.safetensors")


@pytest.mark.slow
@needs_default_model
def test_the_default_model_against_itself_with_rounded_weights(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    done = npllm("compare", "--b-dtype", "bfloat16", "The capital of France is", "--json")
    result = json.loads(done.out)
    assert (done.code, result["first"]) == (0, None)
    assert len(result["steps"]) == 513


# trace


def test_a_trace_tells_what_made_it(npllm, folder, tmp_path):
    npllm("trace", "Hello", "-o", tmp_path / "x", "--dtype", "bfloat16")
    values, metadata = read_trace(tmp_path / "x")
    assert json.loads(metadata.pop("names")) == list(values)
    assert metadata.pop("ids").count(",") == 4
    assert re.fullmatch(r"npllm [\d.]+\S*", metadata.pop("made_by"))
    assert metadata == {"model": str(folder), "dtype": "bfloat16", "device": "cpu"}
    assert load_file(tmp_path / "x").keys() == values.keys()


# evaluate


TEXT = "and the 12 and the 21 in an inner 12\n" * 8


@pytest.fixture
def letter(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text(TEXT)
    return path


def test_evaluate_prints_perplexity_and_bits_per_byte(npllm, letter, lm):
    done = npllm("evaluate", letter, "--window", 16, "--stride", 4)
    ids = lm.tokenizer.encode(TEXT)
    losses = joined(evaluate(lm, ids, 16, 4)).losses
    bits = losses.sum() / math.log(2) / (len(TEXT) - len(lm.tokenizer.decode(ids[:1])))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{len(ids) - 1:,} of {len(ids):,} tokens scored, {len(TEXT)} bytes, windows of 16, stride 4",
        f"perplexity     {math.exp(losses.mean()):.4f}",
        f"bits per byte  {bits:.4f}",
    ]


def test_json_of_evaluate_is_one_object(npllm, letter, lm):
    done = npllm("evaluate", letter, "--json")
    result = json.loads(done.out)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    ids = lm.tokenizer.encode(TEXT)
    assert (result["tokens"], result["scored_tokens"], result["bytes"]) == (len(ids), len(ids) - 1, len(TEXT))
    assert (result["window"], result["stride"]) == (256, 128), "the model's context is less than 512"
    assert result["perplexity"] == pytest.approx(math.exp(joined(evaluate(lm, ids, 256, 128)).losses.mean()))
    assert result["against"] is None
    assert "mean_kl_divergence" not in result


def test_against_a_dtype(npllm, letter, lm):
    same = json.loads(npllm("evaluate", letter, "--against", "float32", "--json").out)
    assert (same["mean_kl_divergence"], same["max_kl_divergence"], same["same_top_share"]) == (0.0, 0.0, 1.0)
    assert same["perplexity"] == same["reference_perplexity"]
    rounded = json.loads(npllm("evaluate", letter, "--dtype", "int4", "--against", "float32", "--json").out)
    assert rounded["reference_perplexity"] == same["perplexity"] != rounded["perplexity"]
    assert 0 < rounded["mean_kl_divergence"] < rounded["kl_divergence_99"] < rounded["max_kl_divergence"]
    finer = json.loads(npllm("evaluate", letter, "--dtype", "int8", "--against", "float32", "--json").out)
    assert 0 < finer["mean_kl_divergence"] < rounded["mean_kl_divergence"] / 10


def test_against_a_model_which_is_the_reference(npllm, letter, folder, other):
    one = json.loads(npllm("evaluate", letter, "--json").out)
    two = json.loads(npllm("evaluate", letter, "-m", other, "--json").out)
    done = npllm("evaluate", letter, "--against", other, "--json")
    result = json.loads(done.out)
    assert result["perplexity"] == one["perplexity"]
    assert result["reference_perplexity"] == two["perplexity"]
    text = npllm("evaluate", letter, "--against", other).out
    assert f"perplexity of the reference, {other}" in text
    assert "KL(reference || model), mean" in text
    assert f"{result['same_top_share']:.2%}" in text


def test_a_reference_keeps_its_own_dtype(npllm, letter, folder):
    """--dtype applies to the model only: a rounded reference would hide the cost of rounding."""
    result = json.loads(npllm("evaluate", letter, "--dtype", "int4", "--against", folder, "--json").out)
    assert result["mean_kl_divergence"] > 0
    assert result["reference_perplexity"] == json.loads(npllm("evaluate", letter, "--json").out)["perplexity"]


def test_the_text_may_come_from_stdin(npllm, letter):
    from_stdin = npllm("evaluate", "-", "--json", stdin=TEXT.encode() + b"\n")
    assert from_stdin == npllm("evaluate", letter, "--json")


def test_bits_per_byte_count_the_bytes_of_the_scored_tokens(npllm, tmp_path, lm):
    (tmp_path / "x").write_text("é12", encoding="utf-8")
    result = json.loads(npllm("evaluate", tmp_path / "x", "--json").out)
    ids = lm.tokenizer.encode("é12")
    assert (result["bytes"], result["tokens"]) == (4, len(ids))
    bits = result["bits_per_byte"] * math.log(2) / (math.log(result["perplexity"]) * (len(ids) - 1))
    assert 1 / bits == pytest.approx(4 if TOKENS[ids[0]] == "Ã" else 2)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "required: TEXTFILE"),
        (["none.txt"], 2, r"none\.txt: cannot be read: No such file"),
        (["."], 2, "cannot be read: Is a directory"),
        (["EMPTY"], 2, "the text is empty"),
        (["SHORT"], 2, "the text is too short: expected at least two tokens, got 1"),
        (["LATIN"], 2, "expected UTF-8 text, got the byte 0xe9 at offset 3"),
        (["LETTER", "--window", "257"], 2, "window: expected 2 to 256, the model's context, got 257"),
        (["LETTER", "--window", "1"], 2, "window: expected 2 to 256"),
        (["LETTER", "--window", "8", "--stride", "8"], 2, "stride: expected 1 to 7"),
        (["LETTER", "--stride", "0"], 2, "stride: expected 1 to 255"),
        (["LETTER", "--against", "./nowhere"], 3, "expected a folder or a .gguf file"),
        (["LETTER", "--against", "CUTS"], 2, "expected a model with the same tokenizer"),
        (["LETTER", "--against", "BARE"], 4, "no tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_of_evaluate(npllm, letter, tmp_path, argv, code, message):
    files = {"LETTER": letter} | {name: tmp_path / name.lower() for name in ("EMPTY", "SHORT", "LATIN", "CUTS", "BARE")}
    files["EMPTY"].write_text("")
    files["SHORT"].write_text("x")
    files["LATIN"].write_bytes(b"caf\xe9")
    write_folder(files["BARE"], tokenizer=False)
    write_folder(files["CUTS"])
    tokenizer = json.loads((files["CUTS"] / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = []
    (files["CUTS"] / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    fails(npllm("evaluate", *(files.get(word, word) for word in argv)), code, message)


def test_damaged_weights_are_no_perplexity(npllm, letter, tmp_path):
    write_folder(tmp_path / "wild")
    tensors = load_file(tmp_path / "wild" / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, tmp_path / "wild" / "model.safetensors", {"format": "pt"})
    with np.errstate(all="ignore"):
        fails(npllm("evaluate", letter, "-m", tmp_path / "wild"), 4, "the logits for token 1: expected finite numbers")
