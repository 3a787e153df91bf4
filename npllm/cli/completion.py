"""npllm completion: a script with which a shell completes npllm's commands, options and files."""

import argparse
import importlib
from typing import Any

from ..cache import CACHE_DTYPES
from ..checkpoint.load import DTYPES
from ..errors import UnavailableError
from . import report
from .main import COMMANDS

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Print a script with which SHELL completes npllm's commands, options, files and
the values of some options. It takes effect in a new shell.
"""
EXAMPLES = """\
examples:
  npllm completion bash > ~/.local/share/bash-completion/completions/npllm
  npllm completion fish > ~/.config/fish/completions/npllm.fish
  npllm completion zsh > ~/.zfunc/_npllm      (in ~/.zshrc: fpath+=~/.zfunc; autoload -U compinit; compinit)
"""
FILES, FOLDERS = (
    ("FILE", "TEXTFILE", "SRC", "DST", "A B PROMPT", "IN", "OUT.jsonl"),
    ("DIR",),
)  # what an argument is, by its metavar
VALUES = {"device": ("cpu", "cuda", "auto"), "dtype": ("auto", *DTYPES), "cache_dtype": tuple(CACHE_DTYPES)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    """Print the script and return the exit code."""
    try:
        import shtab
    except ImportError as error:
        raise UnavailableError(
            "completion: the library shtab is not installed; install it with: pip install shtab"
        ) from error
    report.write(shtab.complete(whole_parser(shtab.FILE, shtab.DIRECTORY), args.shell) + "\n")
    return 0


def whole_parser(files: Any, folders: Any) -> argparse.ArgumentParser:
    """The parser of all commands, with what to complete for each argument: values, or files or folders as shtab's."""
    whole = argparse.ArgumentParser("npllm")
    whole.add_argument("--version", action="version", version="")
    commands = whole.add_subparsers()
    helper = commands.add_parser("help", help="explain a command", add_help=False)
    helper.add_argument("command", choices=[*COMMANDS])
    for name, what in COMMANDS.items():
        parser = commands.add_parser(name, help=what)
        importlib.import_module(f"{__package__}.{name}").add_arguments(parser)
        for action in parser._actions:
            if action.metavar in FILES or action.dest.endswith("model"):
                action.complete = files  # type: ignore[attr-defined]
            elif action.metavar in FOLDERS:
                action.complete = folders  # type: ignore[attr-defined]
            elif action.choices is None:
                action.choices = VALUES.get(action.dest.removeprefix("a_").removeprefix("b_"))
    return whole
