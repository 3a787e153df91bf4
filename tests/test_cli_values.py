"""Values that look like flags, and odd environments: never a traceback, never exit code 70."""

import argparse
import importlib
import re

import pytest
from command_line import fails

from npllm.cli.main import COMMANDS
from npllm.errors import UnavailableError

NEEDED = {  # what a command needs besides the flag under test
    "generate": ["Hello", "-n", "2"],
    "chat": ["-n", "2"],
    "fill": ["a [MASK]"],
    "batch": ["text.txt", "-o", "out.jsonl"],
    "models": [],
    "tokenize": ["Hello"],
    "show": [],
    "trace": ["Hello", "-o", "x"],
    "inspect": ["Hello"],
    "lab": ["--port", "99999"],  # refused: it would serve
    "compare": ["Hello", "--b-no-cache"],
    "evaluate": ["text"],
    "convert": ["x", "--dtype", "float32"],
    "bench": ["cache", "-n", "2", "--repeat", "1"],
    "selftest": ["-n", "8"],
    "completion": ["bash"],
}
VALUES = ["--", "-", "-1", "--help", "", "\x1b[31m\n", "\udcff", "é", "nan", "1e999"]


def flags(command: str) -> list[str]:
    """The flags of a command that take a value."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"npllm.cli.{command}").add_arguments(parser)
    return [a.option_strings[-1] for a in parser._actions if a.option_strings and a.nargs is None]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("text", "text.txt"):
        (tmp_path / name).write_text("Hello there", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("npllm.apps.selftest.bandwidth_buffer", lambda like: like)


def check(done) -> None:
    """Assert that a command ended as it may: with a known exit code, and lines without control characters."""
    assert done.code in range(7), done
    assert re.fullmatch(r"([^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,500}\n)*", done.err), ascii(done.err)
    if done.code > 1:
        assert done.err.splitlines()[-1].startswith("npllm: error: ")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_no_value_of_a_flag_is_a_bug(npllm, place, monkeypatch, command, value):
    """Before the model is loaded."""

    def load(*_, **__):
        raise UnavailableError("no model here")

    for module in ("cli.options", "cli.selftest", "checkpoint.write"):
        monkeypatch.setattr(f"npllm.{module}.load", load, raising=False)
    for flag in flags(command):
        check(npllm(command, *NEEDED[command], "--offline", f"{flag}={value}"))
        check(npllm(command, *NEEDED[command], "--offline", flag, value))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_dashes_reach_the_model(npllm, place, command):
    for flag in flags(command):
        check(npllm(command, *NEEDED[command], "--offline", f"{flag}=--"))


def test_two_dashes_are_a_value(npllm, place):
    same = npllm("generate", "Hello", "-n", 5)
    assert npllm("generate", "Hello", "-n", 5, "--stop=--") == same
    fails(npllm("trace", "Hello", "-o", "x", "--only=--"), 2, "no value is named --;")
    fails(npllm("generate", "Hello", "--stop"), 2, "expected one argument")


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["0", "-1", "1", "10", str(10**9), "9" * 5000, "wide", ""])
@pytest.mark.parametrize("command", [["inspect", "Hello"], ["--help"], ["generate", "--help"]], ids=" ".join)
def test_no_width_of_the_terminal_is_a_bug(npllm, monkeypatch, columns, command):
    monkeypatch.setenv("COLUMNS", columns)
    assert npllm(*command).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NPLLM_MODEL", "NPLLM_DEVICE"])
@pytest.mark.parametrize("value", ["--", "-", "é", "\udcff", "\x1b[31m", "cuda:99999999", "/dev/null", "."], ids=ascii)
def test_no_environment_is_a_bug(npllm, place, monkeypatch, name, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(name, value)
    for command in (["generate", "Hello"], ["show"], ["convert", "new", "--dtype", "float32"]):
        check(npllm(*command))


@pytest.mark.slow
@pytest.mark.parametrize("term", ["dumb", "", "no-such-terminal"])
@pytest.mark.parametrize("no_color", ["", "0", "1"])
def test_no_terminal_is_a_bug(npllm, monkeypatch, term, no_color):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert npllm("inspect", "Hello").code == 0
